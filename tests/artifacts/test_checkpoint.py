"""Checkpoints: saved and read back; damaged, hostile, newer and incomplete ones are refused."""

import argparse
import errno
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import checkpoint as checkpoint_module
from artifacts.checkpoint import (
    Checkpoint,
    is_checkpoint,
    load_checkpoint,
    load_weights,
    load_weights_file,
    save_checkpoint,
    weights_sha256,
)
from artifacts.errors import CheckpointError
from artifacts.formats import artifact_kind
from artifacts.hub_folder import hub_provenance
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.backends.base import BackendError
from deploy.backends.loading import load_backend
from nets.net_interface import build_net


def make_checkpoint(seed: int = 0, **parts: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    net = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "num_batches": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    metadata = ModelMetadata(
        ("猫", "dog"), Preprocess(32, 24, 1, "crop"), {"module": "m", "name": "n", "args": {"a": 1}}
    )
    return Checkpoint({"num_classes": 2}, metadata, net, **parts)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    save_checkpoint(make_checkpoint(), path)
    return path


class Hostile:
    """Unpickled without care, it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_everything_comes_back(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    given = make_checkpoint(
        ema={"w": torch.ones(2)},
        optimizer=optimizer.state_dict(),
        scaler={"scale": 2.0},
        progress={"step": 3, "best": 0.5, "history": [{"epoch": 1}], "rng": torch.get_rng_state()},
    )
    save_checkpoint(given, tmp_path / "deeper" / "folders" / "net.pth")
    got = load_checkpoint(tmp_path / "deeper" / "folders" / "net.pth")
    assert got.config == given.config
    assert got.metadata.class_names == ("猫", "dog")
    assert got.metadata.preprocess == given.metadata.preprocess
    assert got.metadata.net == given.metadata.net
    for name, tensor in given.net.items():
        assert got.net[name].dtype == tensor.dtype
        assert torch.equal(got.net[name], tensor)
    assert given.optimizer is not None
    momentum = given.optimizer["state"][0]["momentum_buffer"]
    assert got.optimizer is not None
    assert torch.equal(got.optimizer["state"][0]["momentum_buffer"], momentum)
    assert got.scaler == given.scaler
    assert torch.equal(got.progress.pop("rng"), given.progress.pop("rng"))
    assert got.progress == given.progress
    assert torch.equal(got.deployed()["w"], torch.ones(2))


def test_without_an_average_the_net_itself_is_deployed(saved: Path) -> None:
    assert load_checkpoint(saved).deployed().keys() == make_checkpoint().net.keys()


def test_the_digest_is_of_names_types_shapes_and_bytes() -> None:
    one = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    assert weights_sha256(one) == weights_sha256(dict(reversed(one.items())))
    others: list[dict[str, torch.Tensor]] = [
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(2)},
        {"a": torch.arange(4.0).view(torch.int32), "b": torch.zeros(2)},
        {"a": torch.arange(4.0) + 1e-6, "b": torch.zeros(2)},
        {"a": torch.arange(4.0)},
    ]
    assert len({weights_sha256(state) for state in [one, *others]}) == 6
    transposed = torch.arange(6.0).view(2, 3).t()
    assert weights_sha256({"a": transposed}) == weights_sha256({"a": transposed.contiguous()})


def test_nothing_but_the_checkpoint_is_left_in_the_folder(saved: Path) -> None:
    assert [file.name for file in saved.parent.iterdir()] == ["net.pth"]


def test_it_is_told_from_bare_weights(saved: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "bare.pth")
    assert is_checkpoint(saved)
    assert not is_checkpoint(tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"bare weights without config and metadata, no checkpoint of train.py$"):
        load_checkpoint(tmp_path / "bare.pth")


@pytest.mark.parametrize("key", ["", "state_dict", "model", "net"])
def test_bare_weights_are_read(key: str, tmp_path: Path) -> None:
    weights = {"w": torch.arange(3.0)}
    torch.save({key: weights, "epoch": 3} if key else weights, tmp_path / "bare.pth")
    assert torch.equal(load_weights(tmp_path / "bare.pth")["w"], torch.arange(3.0))


def test_the_weights_of_a_checkpoint_are_those_that_are_deployed(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(ema={"w": torch.ones(2)}), tmp_path / "net.pth")
    assert load_weights(tmp_path / "net.pth").keys() == {"w"}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_file_is_refused_and_its_command_not_run(protocol: int, tmp_path: Path) -> None:
    made, file = tmp_path / "made", tmp_path / "evil.pth"
    torch.save({"format": checkpoint_module.FORMAT, "net": Hostile(made)}, file)
    with pytest.raises(CheckpointError, match=r"evil\.pth: it holds more than plain tensors and values"):
        load_checkpoint(file)
    file.write_bytes(pickle.dumps(Hostile(made), protocol=protocol))
    for read in (load_checkpoint, load_weights, is_checkpoint):
        with pytest.raises(CheckpointError, match=r"evil\.pth: "):
            read(file)
    assert not made.exists()


def test_a_flipped_byte_in_the_weights_is_detected(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    position = data.find(make_checkpoint().net["conv.weight"].numpy().tobytes())
    assert position > 0
    data[position + 17] ^= 1
    saved.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"net\.pth: .*(sha256|damaged|CRC|cannot read it)"):
        load_checkpoint(saved)


def test_flipped_bytes_anywhere_never_change_what_is_read(saved: Path) -> None:
    whole = saved.read_bytes()
    generator = np.random.default_rng(3)
    for position in generator.integers(0, len(whole), 150):
        data = bytearray(whole)
        data[position] ^= 1 << generator.integers(0, 8)
        saved.write_bytes(bytes(data))
        try:
            got = load_checkpoint(saved)
        except CheckpointError as error:
            assert str(error).startswith(f"{saved}: ")
        else:  # padding between the parts
            assert weights_sha256(got.net) == weights_sha256(make_checkpoint().net)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(saved))}: .+"):
        load_checkpoint(saved)


def rewrite(path: Path, **changes: Any) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in (content | changes).items() if value != "remove"}, path)


def test_a_newer_format_is_refused(saved: Path) -> None:
    rewrite(saved, format_version=2)
    with pytest.raises(CheckpointError, match=r"written by a newer program \(format 2, this one reads 1\)"):
        load_checkpoint(saved)


def test_newer_metadata_is_refused(saved: Path) -> None:
    metadata = torch.load(saved, weights_only=True)["facts"]
    rewrite(saved, facts=metadata | {"facts_version": 9})
    with pytest.raises(CheckpointError, match="the metadata is of version 9, this program reads version 1"):
        load_checkpoint(saved)


@pytest.mark.parametrize("key", ["config", "facts", "net", "ema", "optimizer", "progress", "format_version"])
def test_a_missing_part_is_named(saved: Path, key: str) -> None:
    rewrite(saved, **{key: "remove"})
    with pytest.raises(CheckpointError, match=rf"the checkpoint is incomplete: .*{key}"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "holds a list, not a checkpoint or a state dict"),
        (torch.ones(3), "holds a Tensor, not a checkpoint"),
        ({}, r"no weights in it \(its keys: none\)"),
        ({"epoch": 3, "lr": 0.1}, r"no weights in it \(its keys: epoch, lr\)"),
    ],
)
def test_other_contents_are_named(content: Any, text: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=text):
        load_weights(tmp_path / "x.pth")


def test_a_missing_file_is_named_with_the_current_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file \(relative paths start from /"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"hello, this is a text", b"PK\x03\x04 not really", b"\x80\x02."])
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth: .+"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_failing_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    real_save = torch.save

    def save_half(content: Any, file: Any) -> None:
        real_save(content["config"], file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(CheckpointError, match=r"net\.pth: cannot write the checkpoint: No space left on device"):
        save_checkpoint(make_checkpoint(1), saved)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == ["net.pth"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    real_open = Path.open

    def open_full(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        return real_open(Path("/dev/full") if mode == "w+b" else path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(CheckpointError, match=r"net\.pth: cannot write the checkpoint: "):
        save_checkpoint(make_checkpoint(1), saved)
    assert saved.read_bytes() == before


def test_an_interrupted_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(make_checkpoint(1), saved)
    assert saved.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/net\.pth: cannot write the checkpoint: (File exists|Not a dir)"):
        save_checkpoint(make_checkpoint(), tmp_path / "file" / "net.pth")


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run the tests, has every permission
    with pytest.raises(CheckpointError, match=r"net\.pth: cannot write the checkpoint: Permission denied"):
        save_checkpoint(make_checkpoint(), tmp_path / "net.pth")


# --- foreign weights


def test_which_of_several_weights_are_taken_is_said(tmp_path: Path) -> None:
    one, averaged = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    torch.save({"state_dict_ema": averaged, "state_dict": one, "optimizer": {"state": {}}}, tmp_path / "two.pth")
    found = load_weights_file(tmp_path / "two.pth")
    assert torch.equal(found.weights["w"], averaged["w"]) and found.metadata is None  # as timm's load_checkpoint does
    assert found.note == (
        'the weights are the averaged ones, "state_dict_ema"; it also has "state_dict": to start from it, save it '
        "alone in a file"
    )
    torch.save({"state_dict": one, "model": averaged}, tmp_path / "others.pth")
    found = load_weights_file(tmp_path / "others.pth")
    assert torch.equal(found.weights["w"], one["w"])
    assert found.note.startswith('the weights are those of "state_dict"; it also has "model"')
    torch.save({"student": one, "epoch": 3}, tmp_path / "one.pth")
    assert torch.equal(load_weights_file(tmp_path / "one.pth").weights["w"], one["w"])
    torch.save({"student": one, "teacher": averaged}, tmp_path / "both.pth")
    with pytest.raises(CheckpointError, match=r"both.pth: weights of several nets in it \(student, teacher\); save"):
        load_weights_file(tmp_path / "both.pth")


def test_the_arguments_that_training_scripts_save_are_plain_values(tmp_path: Path) -> None:
    """timm's and torchvision's reference scripts save their argparse.Namespace beside the weights."""
    arguments = argparse.Namespace(model="resnet18", lr=0.1)
    content = {"epoch": 3, "arch": "resnet18", "state_dict": {"w": torch.ones(2)}, "args": arguments, "metric": 71.0}
    torch.save(content, tmp_path / "timm.pth.tar")
    assert torch.equal(load_weights(tmp_path / "timm.pth.tar")["w"], torch.ones(2))
    arguments.model = Hostile(tmp_path / "made")
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: it holds more than plain tensors and values"):
        load_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()


def test_a_folder_of_the_hub_is_read_with_its_class_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    names = ["daisy", "rose"]
    with pytest.raises(CheckpointError, match=r"no weights in this folder: neither model.safetensors nor pytorch_mod"):
        load_weights_file(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its weights are split over several files, which is not read"):
        load_weights_file(tmp_path)
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert load_weights_file(tmp_path).class_names == ()
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    for values in ({"label_names": names}, {"id2label": {"1": "rose", "0": "daisy"}}):  # timm's and transformers'
        config.write_text(json.dumps({"architecture": "resnet18", **values}), encoding="utf-8")
        for path in (tmp_path, tmp_path / "model.safetensors"):
            found = load_weights_file(path)
            assert torch.equal(found.weights["w"], torch.ones(2))
            assert found.class_names == ("daisy", "rose") and found.metadata is None
    odd: list[dict[str, Any]] = [{"label_names": ["a", "a"]}, {"label_names": [1, 2]}, {"id2label": {"7": "x"}}]
    for entry in odd:
        config.write_text(json.dumps(entry), encoding="utf-8")
        assert load_weights_file(tmp_path).class_names == ()
    assert not is_checkpoint(tmp_path)
    config.write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config.json: holds a list, not an object"):
        load_weights_file(tmp_path)


def test_weights_of_a_hub_folder_say_their_licence_and_source(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert hub_provenance(tmp_path) == {}
    config, card = tmp_path / "config.json", tmp_path / "README.md"
    config.write_text(json.dumps({"model_type": "resnet"}), encoding="utf-8")
    assert hub_provenance(tmp_path) == {
        "package": tmp_path.name,
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "licence": "no licence stated",
        "source": "a folder of the Hugging Face Hub",
    }
    published = {"tag": "a1_in1k", "origin_url": "https://example.org/weights"}
    config.write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": published}), encoding="utf-8")
    card.write_text("---\ntags:\n- image\nlicense: 'cc-by-4.0' # here\n---\nlicense: none\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = hub_provenance(path)
        assert (found["package"], found["licence"]) == ("resnet18.a1_in1k", "cc-by-4.0")
        assert found["source"] == "https://example.org/weights"
    values = {"architecture": "resnet18", "pretrained_cfg": {"license": "apache-2.0"}}
    config.write_text(json.dumps(values), encoding="utf-8")
    assert hub_provenance(tmp_path)["licence"] == "apache-2.0"
    card.write_bytes(b"---\n\xff")
    config.write_text(json.dumps({"architecture": "resnet18"}), encoding="utf-8")
    assert hub_provenance(tmp_path)["licence"] == "no licence stated"


def test_what_git_lfs_leaves_in_place_of_weights_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 46807446\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(
            CheckpointError, match=r'model.safetensors: a pointer of Git LFS, not the weights; run "git '
        ):
            load_weights_file(path)


def test_safetensors_are_read_whatever_their_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {"w": torch.arange(6.0).view(2, 3)}
    for name, note in (("net.safetensors", ""), ("net.pth", "it is a safetensors file, whatever its name says")):
        save_file(weights, tmp_path / name)
        found = load_weights_file(tmp_path / name)
        assert torch.equal(found.weights["w"], weights["w"]) and found.note == note
        assert artifact_kind(tmp_path / name) == "checkpoint" and not is_checkpoint(tmp_path / name)
    content = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match=r"net\.pth: cannot read it"):
        load_weights_file(tmp_path / "net.pth")


def hostile(change: Callable[[dict[str, Any]], None], path: Path) -> Path:
    """Write a checkpoint with something in it that no training writes."""
    net = build_net(**HOSTILE.net_arguments())
    save_checkpoint(Checkpoint({}, HOSTILE, net.state_dict()), path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


ARGUMENTS = {"depth": 10, "widen_factor": 1}
HOSTILE = ModelMetadata(
    ("a", "b", "c"), Preprocess(16, 16), {"module": "wide_resnet_module", "name": "WideResNet", "args": ARGUMENTS}
)
SHAPE = (4, 4)
UNUSUAL = {  # values of a tensor -> what is said of it; torch reads each of them
    "expanded": (
        lambda: torch.zeros(1).expand(10**6, 10**6),
        "has the shape (1000000, 1000000), and fewer values than",
    ),
    "sparse": (lambda: torch.eye(4).to_sparse(), "is stored as sparse_coo"),
    "meta": (lambda: torch.empty(SHAPE, device="meta"), "has no values (it is on the device meta)"),
    "conjugate": (
        lambda: torch.zeros(SHAPE, dtype=torch.complex64).conj(),
        "is quantized, or a view that computes its",
    ),
}


@pytest.mark.parametrize("part", ["net", "progress", "optimizer", "bare"])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_that_no_training_writes_are_refused_by_name(kind: str, part: str, tmp_path: Path) -> None:
    make, sentence = UNUSUAL[kind]

    def change(content: dict[str, Any]) -> None:
        values = content["net"] if part == "bare" else content
        if part == "net":
            content["net"]["conv.weight"] = make()
        elif part == "bare":
            content.clear()
            content.update(values, **{"conv.weight": make()})
        else:
            content[part] = {"state": [{"exp_avg": make()}]}

    path = hostile(change, tmp_path / "net.pth")
    name = {"net": "net.conv.weight", "bare": "conv.weight"}.get(part, f"{part}.state.0.exp_avg")
    for read in (load_checkpoint, load_weights, load_backend):
        with pytest.raises(CheckpointError, match=re.escape(f'{path}: its tensor "{name}" {sentence}')):
            read(path)


def test_views_of_larger_tensors_and_shared_ones_are_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    values = {"row": whole[1], "turned": whole.T, "same": whole, "empty": torch.zeros(0, 3), "number": torch.tensor(2)}
    torch.save(values, tmp_path / "net.pth")
    read = load_weights(tmp_path / "net.pth")
    assert all(torch.equal(read[name], value) for name, value in values.items())


def test_a_net_that_asks_for_too_much_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile(lambda content: None, tmp_path / "net.pth")

    def too_large(**arguments: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("nets.net_interface.build_net", too_large)
    sentence = f"{path}: there is too little memory for its net, WideResNet with {json.dumps(ARGUMENTS)}"
    with pytest.raises(BackendError, match=re.escape(sentence)):
        load_backend(path)


def test_torchs_advice_to_run_a_files_code_is_not_passed_on(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "net.pth")
    sentence = r"it is a TorchScript file \(inference\.py takes it with the ending \.pt\), not a checkpoint"
    with pytest.raises(CheckpointError, match=sentence) as error:
        load_weights(tmp_path / "net.pth")
    assert "weights_only" not in str(error.value)
