"""Commands of tools.antgo that are killed, by SIGKILL, at a certain call of a certain function."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from common.paths import ROOT

CODE = """
import importlib, os, signal, sys
module, name, count, *words = sys.argv[1:]
owner, calls = importlib.import_module(module), 0
real = getattr(owner, name)

def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(count):
        {half}
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(owner, name, counted)
from tools import antgo
antgo.main(words)
"""
HALF = "open(args[1], 'wb').write(open(args[0], 'rb').read()[:10])"  # of a copy


def killed_at(function: str, count: int, *words: str, half: bool = False) -> None:
    """Run a command, and kill it as it calls `module.function` for the `count`-th time; `half`: a copy half done."""
    module, _, name = function.rpartition(".")
    code = CODE.format(half=HALF if half else "pass")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, module, name, str(count), *words]
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == -signal.SIGKILL
