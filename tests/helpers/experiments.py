"""Runs an experiment's main.py in this process, as a user starts it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import nets
from nets import net_interface

TINY = ("--gpu-id", "-1", "--set", 'model_args={"depth": 10, "widen_factor": 1}', "--set", "batch_size=10")
OWN = ("dataset", "hooks", "metrics", "nets.wideres")


def run_main(file: Path, *words: str) -> int:
    """Run main.py and return its exit code; nothing of it stays in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(file), *words])
        patch.setattr(sys, "path", [str(file.parent), *sys.path])
        patch.setattr(nets, "__path__", [*nets.__path__])
        patch.setattr(net_interface, "_further", [])
        try:
            runpy.run_path(str(file), run_name="__main__")
        except SystemExit as error:
            return int(error.code or 0)
        finally:
            for name in OWN:
                sys.modules.pop(name, None)
    raise AssertionError("main.py did not end with an exit code")
