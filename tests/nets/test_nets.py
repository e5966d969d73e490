"""Every net by its name in the config: shapes, gradients, learning, and the errors' text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import regnet

import nets
from common.paths import ROOT
from nets import net_interface
from nets.GeM_ResNet_module import GeM_ResNet_AVP
from nets.net_interface import available_nets, build_net, check_model_args, check_names
from nets.support.errors import NetError
from tests.conftest import slow_but
from tests.helpers.nets import SMALLEST
from trainers.optim.param_groups import parameter_groups

pytestmark = pytest.mark.usefixtures("one_thread")

MIN_SIZES = {"alexnet": 63, "convnext_tiny": 32, "densenet121": 29, "googlenet": 15, "inception_v3": 75}
MIN_SIZES |= {"squeezenet1_0": 21, "squeezenet1_1": 17, "swin_t": 4, "swin_v2_t": 4, "vgg11": 32, "vgg19_bn": 32}
TORCHVISION_NETS = [  # a family's file by the start of a net's name
    *("alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inception_v3", "mnasnet", "mobilenet_v2"),
    *("mobilenet_v3", "regnet", "resnet", "resnext", "shufflenet_v2", "squeezenet", "swin", "vgg", "vit"),
]


@pytest.fixture(scope="module")
def module_of() -> dict[str, str]:
    return {name: module for module, names in available_nets().items() for name in names}


@pytest.fixture
def nets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files are found as modules of nets."""
    monkeypatch.setattr(net_interface, "NETS_DIR", tmp_path)
    monkeypatch.setattr(nets, "__path__", [str(tmp_path)])
    return tmp_path


def build(module: str, name: str, size_px: int | tuple[int, int], **given: Any) -> nn.Module:
    height, width = size_px if isinstance(size_px, tuple) else (size_px, size_px)
    values = {"num_classes": 5, "num_channels": 3, "model_args": {}, **given}
    return build_net(module, name, img_height=height, img_width=width, **values)


@pytest.mark.parametrize(
    "module", slow_but(SMALLEST.keys() - {"vgg_module", "convnext_module", "swin_module"}, SMALLEST)
)
def test_smallest_of_family_gives_logits_and_gradients_for_colour_and_grey(module: str) -> None:
    name, size_px = SMALLEST[module]
    can_skip_blocks = module in ("convnext_module", "efficientnet_lite_module", "efficientnet_module", "swin_module")
    model_args = {"drop_path": 0.0} if can_skip_blocks else {}  # a skipped block has no gradient
    for num_channels in (3, 1):
        net = build(module, name, size_px, num_channels=num_channels, model_args=model_args)
        if module == "vit_module":
            nn.init.normal_(net.get_submodule("heads.head").weight)  # torchvision's zeros would hide the rest
        for key, parameter in net.named_parameters():
            if module == "GeM_ResNet_module" and key.endswith("bn2.weight"):
                nn.init.ones_(parameter)  # so would residual branches that start at zero
        logits = net(torch.randn(2, num_channels, size_px, size_px))
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        if num_channels == 1:
            logits.logsumexp(1).sum().backward()
            without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
            assert without == []
            assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_smallest_names_every_family() -> None:
    # these are tested in their own files
    dense = {"change_module", "deeplab_module", "detector_module", "linknet_module", "lraspp_module"}
    dense |= {"torchvision_detectors_module", "unet_module"}
    others = {"pim_module", "simsiam_module", "timm_module", "wide_resnet_module"}
    assert set(SMALLEST) == set(available_nets()) - dense - others


def test_every_torchvision_family_is_complete(module_of: dict[str, str]) -> None:
    published = torchvision.models.list_models(module=torchvision.models, exclude="maxvit*")
    assert set(published) <= set(module_of)
    for name in published:
        starts = (
            "resnet" if name.startswith("wide_") else max((s for s in TORCHVISION_NETS if name.startswith(s)), key=len)
        )
        assert module_of[name] == f"{starts}_module"


@pytest.mark.parametrize("module", sorted(SMALLEST.keys() - {"GeM_ResNet_module", "efficientnet_lite_module"}))
def test_every_net_equals_torchvisions_by_names_and_shapes(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from_params = regnet.BlockParams.from_init_params.__func__

    def on_cpu(cls: type, **arguments: Any) -> Any:  # it reads values of tensors, which meta tensors have not
        with torch.device("cpu"):
            return from_params(cls, **arguments)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(on_cpu))
    own = {"aux_logits": False, "init_weights": False} if module in ("googlenet_module", "inception_v3_module") else {}
    for name in available_nets()[module]:
        with torch.device("meta"):
            net = build(module, name, 224)
            expected = torchvision.models.get_model(name, weights=None, num_classes=5, **own)
        assert [(k, v.shape) for k, v in net.state_dict().items()] == [
            (k, v.shape) for k, v in expected.state_dict().items()
        ]


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_b", "efficientnet_b0", "convnext_small"])
def test_drop_path_defaults_are_torchvisions(name: str, module_of: dict[str, str]) -> None:
    with torch.device("meta"):
        net = build(module_of[name], name, 224)
        expected = torchvision.models.get_model(name, weights=None, num_classes=5)
        none = build(module_of[name], name, 224, model_args={"drop_path": 0.0})

    def rates(net: nn.Module) -> list[float]:
        return [module.p for module in net.modules() if isinstance(module, torchvision.ops.StochasticDepth)]

    assert rates(net) == pytest.approx(rates(expected))
    assert rates(none) == [0.0] * len(rates(net))


def test_dropout_reaches_the_net() -> None:
    with torch.device("meta"):
        net = build("vgg_module", "vgg11", 32, model_args={"dropout": 0.25})
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.25, 0.25]


def test_grey_net_equals_colour_net_on_equal_channels() -> None:
    torch.manual_seed(3)
    grey_net = build("resnet_module", "resnet18", 32, num_channels=1).eval()
    torch.manual_seed(3)
    colour_net = build("resnet_module", "resnet18", 32).eval()
    grey = torch.randn(2, 1, 32, 40)
    torch.testing.assert_close(grey_net(grey), colour_net(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIN_SIZES)
def test_smallest_size_is_the_real_one(name: str, module_of: dict[str, str]) -> None:
    smallest = MIN_SIZES[name]
    message = (
        f"{name} needs images of at least {smallest}x{smallest} px, got {smallest - 1}x99 (img_height x img_width)"
    )
    if smallest > 4:  # at 3 px swin has no patch, at 0 a size is refused before
        with pytest.raises(NetError) as caught:
            build(module_of[name], name, (smallest - 1, 99))
        assert str(caught.value) == message
    with torch.device("meta"):
        net = build(module_of[name], name, smallest).eval()
        assert net(torch.zeros(1, 3, smallest, smallest)).shape == (1, 5)
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            net(torch.zeros(1, 3, smallest - 1, smallest - 1))


def test_swin_works_at_one_patch() -> None:
    net = build("swin_module", "swin_t", 4).eval()
    assert net(torch.randn(2, 3, 4, 4)).isfinite().all()


@pytest.mark.parametrize(("size_px", "shown"), [((64, 96), "64x96"), ((40, 40), "40x40")])
def test_vit_needs_a_square_that_is_divisible_into_patches(size_px: tuple[int, int], shown: str) -> None:
    with pytest.raises(NetError) as caught:
        build("vit_module", "vit_b_32", size_px)
    assert str(caught.value) == (
        "vit_b_32 needs square images whose side is a multiple of its patch of 32 px, "
        f"got {shown} (img_height x img_width)"
    )


@pytest.mark.parametrize(
    ("module", "name", "size_px", "num_channels"),
    [
        ("GeM_ResNet_module", "GeM_ResNet_AVP", 32, 1),
        ("mobilenet_v3_module", "mobilenet_v3_small", 32, 3),
        ("shufflenet_v2_module", "shufflenet_v2_x0_5", 32, 3),
    ],
)
def test_one_batch_is_overfitted(module: str, name: str, size_px: int, num_channels: int) -> None:
    model_args = {"GeM_ResNet_AVP": {"model_type": "resnet18"}, "mobilenet_v3_small": {"dropout": 0.0}}.get(name, {})
    net = build(module, name, size_px, num_channels=num_channels, model_args=model_args)
    images, labels = torch.randn(8, num_channels, size_px, size_px), torch.arange(8) % 5
    optimizer = torch.optim.Adam(parameter_groups(net, 1e-3, 0.0))
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.05:
            break
    assert losses[-1] < 0.05 < 1.0 < losses[0]


@pytest.mark.parametrize(
    ("module", "name", "sentence"),
    [
        (
            "vgg_modul",
            "vgg16",
            'nets/ has no module "vgg_modul" (model_module_name); did you mean "vgg_module"?; it has: ',
        ),
        (
            "torchvision_module",
            "shufflenet_v2_x0_5",
            'nets/ has no module "torchvision_module" (model_module_name); did you mean "shufflenet_v2_module"?; ',
        ),
        ("net_interface", "build_net", 'nets/ has no module "net_interface" (model_module_name); it has: '),
        (
            "vgg_module",
            "resnet18",
            'has no net "resnet18" (model_net_name); did you mean "model_module_name": "resnet_module"?; it has: ',
        ),
        (
            "../evil",
            "vgg16",
            "model_module_name must be the name of a file in nets/ without .py (letters, digits, _), got '../evil'",
        ),
        (
            "os.path",
            "join",
            "model_module_name must be the name of a file in nets/ without .py (letters, digits, _), got 'os.path'",
        ),
        (
            "_private",
            "vgg16",
            "model_module_name must be the name of a file in nets/ without .py (letters, digits, _), got '_private'",
        ),
        (
            "vgg_module",
            "vgg6",
            'nets/vgg_module.py has no net "vgg6" (model_net_name); did you mean "vgg16"?; it has: vgg11, vgg11_bn, ',
        ),
        ("vgg_module", "torchvision_net", 'nets/vgg_module.py has no net "torchvision_net" (model_net_name)'),
        ("vgg_module", "eval", 'nets/vgg_module.py has no net "eval" (model_net_name)'),
        (
            "vgg_module",
            "__import__",
            "model_net_name must be a plain public name (letters, digits, _), got '__import__'",
        ),
        ("GeM_ResNet_module", "GeM", 'nets/GeM_ResNet_module.py has no net "GeM" (model_net_name)'),
        ("GeM_ResNet_module", "gem_resnet_avp", 'did you mean "GeM_ResNet_AVP"?; it has: GeM_ResNet_AVP'),
    ],
)
def test_unknown_names_are_reported(module: str, name: str, sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        check_names(module, name)
    assert sentence in str(caught.value)
    with pytest.raises(NetError):
        build(module, name, 64)


def test_unknown_module_lists_all_modules() -> None:
    with pytest.raises(NetError) as caught:
        check_names("zzz", "vgg16")
    assert str(caught.value).endswith("it has: " + ", ".join(available_nets()))


def test_all_wrong_model_args_are_reported_at_once() -> None:
    with pytest.raises(NetError) as caught:
        build("vgg_module", "vgg16", 32, model_args={"drop": 1, "num_classes": 3, "dropout": "0.5"})
    assert str(caught.value) == (
        'nets/vgg_module.py: vgg16: unknown model_args "drop"; did you mean "dropout"?; allowed: dropout (float, 0.5); '
        "model_args.num_classes is not allowed, it comes from the config's num_classes; "
        "model_args.dropout must be float, got '0.5'"
    )


@pytest.mark.parametrize(
    ("module", "name", "model_args", "sentence"),
    [
        ("regnet_module", "regnet_x_400mf", {"x": 1}, 'unknown model_args "x"; this net takes none'),
        ("vgg_module", "vgg16", {"dropout": True}, "model_args.dropout must be float, got True"),
        ("vgg_module", "vgg16", {"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),
        ("swin_module", "swin_t", {"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1.0"),
        ("convnext_module", "convnext_tiny", {"drop_path": -1}, "drop_path must be at least 0 and below 1, got -1"),
        ("resnet_module", "resnet18", {"zero_init_residual": 1}, "model_args.zero_init_residual must be bool, got 1"),
        ("GeM_ResNet_module", "GeM_ResNet_AVP", {"model_type": 34}, "model_args.model_type must be str, got 34"),
        (
            "GeM_ResNet_module",
            "GeM_ResNet_AVP",
            {"model_type": "resnet43"},
            'must be one of resnet18, resnet34, resnet50, resnet101, got "resnet43"; did you mean "resnet34"?',
        ),
        (
            "GeM_ResNet_module",
            "GeM_ResNet_AVP",
            {"in_size": 64},
            "model_args.in_size is not allowed, it comes from the config's img_height",
        ),
    ],
)
def test_wrong_model_args_are_reported(module: str, name: str, model_args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        build(module, name, 64, model_args=model_args)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_channels": 65}, "resnet18: num_channels must be from 1 to 64, got 65"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"num_classes": 2.0}, "num_classes must be a whole number of at least 1, got 2.0"),
    ],
)
def test_wrong_values_are_reported(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        build("resnet_module", "resnet18", 64, **given)
    assert str(caught.value) == sentence


def test_one_class_is_allowed() -> None:
    assert build("squeezenet_module", "squeezenet1_1", 32, num_classes=1)(torch.randn(1, 3, 32, 32)).shape == (1, 1)


OWN_NET = """
from __future__ import annotations
from typing import Literal
from torch import nn
from torch.nn import Linear

class Base(nn.Module):
    def __init__(
        self, num_classes, img_width: int, widths: list[int], kind: Literal["a", "b"] = "a", t: int | None = 1
    ):
        super().__init__()
        if len(widths) > 2:
            raise ValueError("two widths at most")
        self.got = (num_classes, img_width, widths, kind, t)

class Net(Base):
    pass

def anything(num_classes: int, **rest):
    return Base(num_classes, 1, [rest["x"]])

def helper(x):
    return x
"""


def test_a_file_placed_in_nets_is_found(nets_folder: Path) -> None:
    (nets_folder / "own_a.py").write_text(OWN_NET)
    assert available_nets() == {"own_a": ["Base", "Net", "anything"]}
    net = build("own_a", "Net", (8, 9), model_args={"widths": [1, 2], "t": None, "kind": "b"})
    assert net.got == (5, 9, [1, 2], "b", None)
    assert build("own_a", "anything", 8, model_args={"x": 3}).got[2] == [3]
    with pytest.raises(NetError, match=r"nets/own_a.py: Net: two widths at most"):
        build("own_a", "Net", 8, model_args={"widths": [1, 2, 3]})
    with pytest.raises(NetError) as caught:
        check_model_args("own_a", "Net", {"kind": "c", "t": "1"})
    assert str(caught.value) == (
        "nets/own_a.py: Net: model_args.kind must be Literal['a', 'b'], got 'c'; "
        "model_args.t must be int | None, got '1'; model_args.widths is required (list[int])"
    )
    with pytest.raises(NetError, match=r"model_args.widths must be list\[int\], got \[1, 'x'\]"):
        check_model_args("own_a", "Net", {"widths": [1, "x"]})


def test_a_net_replaced_by_an_import_is_refused(nets_folder: Path) -> None:
    (nets_folder / "own_b.py").write_text("def Linear(num_classes):\n    pass\n\nfrom torch.nn import Linear\n")
    with pytest.raises(
        NetError, match=r"nets/own_b.py: Linear comes from torch.nn.modules.linear; only nets defined here"
    ):
        build("own_b", "Linear", 8)


def test_a_file_that_does_not_parse_is_named(nets_folder: Path) -> None:
    (nets_folder / "own_c.py").write_text("x = 1\ndef f(:\n")
    assert available_nets() == {}
    with pytest.raises(NetError, match=r"^nets/own_c.py:2: invalid syntax"):
        check_names("own_c", "f")


def test_names_are_checked_without_torch() -> None:
    code = (
        "import sys; from nets.net_interface import check_names, check_model_args; check_names('vgg_module', 'vgg16'); "
        "check_model_args('vgg_module', 'vgg16', {'dropout': 0.1}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_parameter_groups_partition_the_trainable_parameters() -> None:
    net = GeM_ResNet_AVP("resnet18")
    net.conv1.weight.requires_grad_(False)
    groups = parameter_groups(net, 0.01, 1e-4)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.01, 1e-4), (0.01, 0.0)]
    assert [id(p) for p in groups[1]["params"]] == [id(net.gem.p)]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert len(grouped) == len(set(grouped))
    torch.optim.SGD(groups, lr=0.01)


def test_parameter_groups_free_norms_and_biases_from_decay() -> None:
    net = GeM_ResNet_AVP("resnet18")
    groups = parameter_groups(net, 0.01, 1e-4, no_decay_norm_bias=True)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [
        (21, 1e-4),  # 20 convolutions and the linear layer
        (42, 0.0),  # weight and bias of 20 batch norms, the linear layer's bias, GeM's exponent
    ]


def test_parameter_groups_need_a_trainable_parameter() -> None:
    with pytest.raises(NetError, match="the net has no trainable parameter: requires_grad is False on all of them"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.01, 0.0)
