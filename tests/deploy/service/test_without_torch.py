"""An ONNX file served by what requirements-serve.txt brings, and nothing else: the image of the Containerfile."""

from __future__ import annotations

import re
import signal
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from common.paths import ROOT
from tests.helpers.exported import TinyNet, build_metadata, example_of, write_onnx
from tests.helpers.serving import PATIENCE_S, GatedBackend, RunningService, base64_of, png, port_of, start
from tools.sbom import LOCK, chosen, read_lock

SERVE = ROOT / "requirements-serve.txt"
# Refuses the imports of some modules; sys.argv: their names, "--", the service's arguments.
PROGRAM = """
import sys
cut = sys.argv.index("--")
refused, sys.argv[1:] = set(sys.argv[1:cut]), sys.argv[cut + 1 :]

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusing())
from deploy.service.launcher import main
raise SystemExit(main())
"""
OWN = ("artifacts", "common", "configs", "data_loader", "deploy", "nets", "pytorch2json", "visualization")


def others() -> set[str]:
    """Return the installed modules that neither requirements-serve.txt asks for nor what it brings needs."""
    wanted = {package.name for package in chosen(read_lock(LOCK), SERVE)}
    brought = metadata.packages_distributions().items()
    return {module for module, names in brought if not wanted & {canonicalize_name(name) for name in names}}


def test_its_pins_are_those_of_the_training() -> None:
    pins = re.findall(r"^(\S+==\S+)", SERVE.read_text(encoding="utf-8"), re.MULTILINE)
    others = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert len(pins) > 10 and not [
        pin for pin in pins if not re.search(rf"^{re.escape(pin)}(;|\s)", others, re.MULTILINE)
    ]


def test_the_image_holds_the_packages_that_are_imported() -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    assert re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE) == list(OWN)
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in (*OWN, "LICENSE", "requirements-serve.txt")} == {n for n in ignore if n[0] == "!"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_onnx_file_is_served_without_torch(tmp_path: Path, precision: str) -> None:
    net_metadata = build_metadata(precision=precision)  # int8: the CPU is asked whether it adds in 32 bits
    file = write_onnx(TinyNet().eval(), tmp_path / "tiny.onnx", net_metadata, example_of(net_metadata))
    assert {"torch", "torchvision", "openvino", "matplotlib"} <= others()
    process = start(
        PROGRAM, *sorted(others()), "--", "--weights", file, "--service_port", 0, "--runtime", "onnxruntime"
    )
    try:
        service = RunningService(port_of(process)[0], GatedBackend())
        status, content, _ = service.send("/predict", {"content": base64_of(png())})
        assert (status, len(content["data"][0]["top_k"])) == (200, 3)
        assert service.get("/v2/models/tiny")[1]["platform"] == "onnx_onnxv1"
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
