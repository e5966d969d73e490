"""TorchScript files that do more than compute: torch runs them, we refuse them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy.backends.base import BackendError
from deploy.backends.loading import load_backend
from deploy.backends.safe_torchscript import find_side_effects
from tests.helpers.exported import TinyNet, build_metadata, example_of, records_of, write_jit, write_two_in_one

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated
LINE = "return torch.linear(input, weight, bias)\n"  # of the last layer, as torch writes it


class AtLoading(nn.Module):
    """Opens a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target, self.values = str(target), torch.zeros(8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    @torch.jit.export
    def __getstate__(self) -> str:
        return self.target

    @torch.jit.export
    def __setstate__(self, state: str) -> None:
        self.target = state
        self.training = False
        self.values = torch.from_file(state, True, 8)


def touch(images: torch.Tensor, target: str) -> torch.Tensor:
    return images.mean() + torch.from_file(target, True, 8).sum()


class Forks(nn.Module):
    """Opens a file beside what it computes."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target = str(target)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + torch.jit.wait(torch.jit.fork(touch, images, self.target))


class Hooked(nn.Module):
    """Opens a file before it computes."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target = str(target)
        self.register_forward_pre_hook(touch_first)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 1


class Comparing:
    """Writes a file when it is compared."""

    def __init__(self, values: torch.Tensor, target: str) -> None:
        self.values, self.target = values, target

    def __lt__(self, other: Comparing) -> bool:
        torch.save(self.values, self.target)
        return True


class Sorts(nn.Module):
    """Writes a file in sorting."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target = str(target)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both = [Comparing(images, self.target), Comparing(images, self.target)]
        both.sort()
        return both[0].values


class Context:
    """Writes a file when it is entered."""

    def __init__(self, values: torch.Tensor, target: str) -> None:
        self.values, self.target = values, target

    def __enter__(self) -> torch.Tensor:
        torch.save(self.values, self.target)
        return self.values

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass


class Enters(nn.Module):
    """Writes a file beside what it computes."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target = str(target)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with Context(images, self.target) as values:
            means = values.mean((2, 3))
        return means


class EntersModule(nn.Module):
    """Writes a file beside what it computes, by a module's own method."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.inner = Entered(target)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.inner:
            means = images.mean((2, 3))
        return means


class Entered(nn.Module):
    """Writes a file when it is entered."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target, self.values = str(target), torch.zeros(8)

    @torch.jit.export
    def __enter__(self) -> None:
        torch.save(self.values, self.target)

    @torch.jit.export
    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class ReturnsItself(nn.Module):
    """Returns a part of itself, which does something when it is made float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor):  # type: ignore[no-untyped-def]
        return self.inner


class Two(TinyNet):
    """Returns two tensors."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        logits: torch.Tensor = self.head(self.conv(images).mean((2, 3)))
        return logits, logits


def touch_first(net: Hooked, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return touch(inputs[0], net.target)


def write_script(net: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(net), path, _extra_files={"facts.json": build_metadata().to_json().encode()})


def write_changed(path: Path, line: str) -> None:
    """Write a net whose last layer does something else as well."""
    whole = write_jit(TinyNet().eval(), path.with_name("whole.pt"), build_metadata(), example_of(build_metadata()))
    times = 0
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".py"):
                times += content.count(LINE.encode())
                content = content.replace(LINE.encode(), f"{line}\n    {LINE}".encode())
            changed.writestr(name.replace("whole/", "model/"), content)
    assert times == 1


SIDE_EFFECTS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "saves": (
        lambda path, target: write_changed(path, f'torch.save(input, "{target}")'),
        'the operator "aten::save"',
    ),
    "opens": (
        lambda path, target: write_changed(path, f'print(torch.from_file("{target}", True, 8))'),
        'the operator "aten::from_file"',
    ),
    "opens by a name in octal": (
        lambda path, target: write_changed(path, f'print(getattr(torch, "\\146rom_file")("{target}", True, 8))'),
        'the operator "aten::from_file"',
    ),
    "forks": (lambda path, target: write_script(Forks(target), path), 'the operator "prim::CallFunction"'),
    "in a hook": (lambda path, target: write_script(Hooked(target), path), "a hook"),
    "in sorting": (lambda path, target: write_script(Sorts(target), path), 'an object of the type "__torch__.'),
    "in entering": (lambda path, target: write_script(Enters(target), path), 'an object of the type "__torch__.'),
    "in entering a module": (
        lambda path, target: write_script(EntersModule(target), path),
        'the operator "prim::Enter"',
    ),
    "at loading": (lambda path, target: write_script(AtLoading(target), path), "code that runs when it is loaded"),
}


@pytest.mark.parametrize("name", SIDE_EFFECTS)
def test_files_are_not_opened(name: str, tmp_path: Path) -> None:
    path, target = tmp_path / "model.pt", tmp_path / "made"
    write, text = SIDE_EFFECTS[name]
    write(path, target)
    torch.jit.load(path)(example_of(build_metadata()))
    assert target.exists()  # torch does it
    target.unlink()
    with pytest.raises(BackendError) as caught:
        load_backend(path, device="cpu")
    assert str(caught.value).startswith(f"{path}: it does more than compute, and was not run: it has {text}")
    assert not target.exists()


def test_what_is_checked_is_what_torch_reads(tmp_path: Path) -> None:
    whole, path, target = tmp_path / "whole.pt", tmp_path / "model.pt", tmp_path / "made"
    write_script(AtLoading(target), whole)
    records = records_of(whole)
    harmless = {name: content for name, content in records.items() if "code/" not in name and "data" not in name}
    write_two_in_one(path, harmless, records)
    torch.jit.load(path)
    assert target.exists()  # torch finds it, and zipfile does not
    target.unlink()
    with pytest.raises(BackendError, match=r"it is damaged, or no TorchScript file"):
        load_backend(path, device="cpu")
    assert not target.exists()


@pytest.mark.parametrize("inner", [TinyNet(), None], ids=["a part of itself", "two"])
def test_a_net_returns_one_tensor(inner: nn.Module | None, tmp_path: Path) -> None:
    write_script(ReturnsItself(inner) if inner else Two(), tmp_path / "model.pt")
    with pytest.raises(BackendError, match=r"model\.pt: it must return one tensor for a batch, and returns \w+"):
        load_backend(tmp_path / "model.pt", device="cpu")


@pytest.mark.parametrize("kind", ["rpc::call", "prim::rpc_async", "image::read_file", "profiler::start"])
def test_what_is_no_computation_is_found_in_any_block(kind: str) -> None:
    text = """graph(%x : Tensor, %is_small : bool):
      %y : Tensor = prim::If(%is_small)
        block0():
          %z : Tensor = KIND(%x)
          -> (%z)
        block1():
          %w : Tensor = aten::relu(%x)
          -> (%w)
      return (%y)"""
    assert list(find_side_effects(torch._C.parse_ir(text.replace("KIND", kind)))) == [f'the operator "{kind}"']
    assert list(find_side_effects(torch._C.parse_ir(text.replace("KIND", "aten::relu")))) == []


class Prints(nn.Module):
    """Writes what it likes to the terminal, such as a sequence that sets its title."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        print("\x1b]0;title\x07")
        return images.mean((2, 3))


def test_a_net_that_prints_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(Prints()), path, _extra_files={"facts.json": build_metadata().to_json().encode()})
    with pytest.raises(BackendError, match=r'it has the operator "prim::Print"$'):
        load_backend(path, device="cpu")
    assert capfd.readouterr() == ("", "")
