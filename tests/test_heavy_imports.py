"""Which heavy modules each program has imported when it has answered: exact lists, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from common.paths import ROOT
from data_loader.preprocess import Preprocess
from nets.net_interface import build_net

HANG_S = 600  # a process that has not ended by then hangs
HEAVY = {
    *("torch", "torchvision", "torch._dynamo", "torch._inductor", "sympy", "timm"),
    *("onnx", "onnxruntime", "openvino", "tensorrt_rtx", "matplotlib", "tensorboard", "scipy", "sklearn"),
    *("fastapi", "starlette", "uvicorn", "numpy", "PIL", "pydantic", "jinja2"),
}
HELP = {  # a program: what its --help imports
    "train": {"pydantic"},
    "inference": {"pydantic"},
    "inference_uncertain": {"numpy", "PIL", "pydantic"},
    "deploy.export.__main__": {"numpy", "PIL", "pydantic"},
    "deploy.service.__main__": set(),
    "tools.doctor.__main__": {"numpy", "PIL", "pydantic"},
    "tools.benchmark.__main__": {"numpy"},
    "tools.embed": {"pydantic"},
    "tools.search": {"pydantic"},
}
PREDICTING = {"torch", "numpy", "PIL", "pydantic"}
TORCHVISION = {"torchvision", "torch._dynamo", "torch._inductor", "sympy"}  # its operators import torch's compiler
CHECKPOINTS = {  # a net: what a first prediction of its checkpoint imports
    ("resnet_module", "resnet18", ""): PREDICTING,
    ("GeM_ResNet_module", "GeM_ResNet_AVP", "resnet18"): PREDICTING,
    ("wide_resnet_module", "WideResNet", ""): PREDICTING,
    ("efficientnet_lite_module", "efficientnet_lite0", ""): PREDICTING,
    ("squeezenet_module", "squeezenet1_1", ""): {
        *PREDICTING,
        "torchvision",
        "torch._dynamo",
        "torch._inductor",
        "sympy",
    },
}


def heavy_after(code: str) -> set[str]:
    """Run code in a new process, and return the heavy modules that it imported."""
    program = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", sorted(HELP))
def test_help(module: str) -> None:
    call = "try: main(['--help'])\nexcept SystemExit: pass"
    assert heavy_after(f"from {module} import main\n{call}") == HELP[module]


@pytest.mark.parametrize("net", sorted(CHECKPOINTS))
def test_a_first_prediction(net: tuple[str, str, str], tmp_path: Path) -> None:
    module, name, model_type = net
    args = {"model_type": model_type} if model_type else {"depth": 10} if module == "wide_resnet_module" else {}
    built = build_net(module, name, num_classes=2, img_height=32, img_width=32, model_args=args)
    described = {"module": module, "name": name, "args": args}
    weights = tmp_path / "net.pth"
    save_checkpoint(
        Checkpoint({}, ModelMetadata(("a", "b"), Preprocess(32, 32), described), built.state_dict()), weights
    )
    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    flags = ["--weights", str(weights), "--image", str(tmp_path / "image.png"), "--output", str(tmp_path / "r.csv")]
    assert heavy_after(f"from inference import main\nassert main({flags!r}) == 0") == CHECKPOINTS[net]


def test_heat_maps() -> None:
    assert heavy_after("import nets.support.saliency") == {"torch", "numpy"}
