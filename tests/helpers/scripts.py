"""Scripts as users of antgo write them, run by `python -m tools.antgo run`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.paths import ROOT

HEAD = "import numpy as np\nfrom antgo.interactcontext import InteractContext\nctx = InteractContext()\n"


@contextmanager
def running_script(folder: Path, text: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a script in a folder; yield its process, and the port of the page that it opens first."""
    (folder / "script.py").write_text(HEAD + text, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.antgo", "run", str(folder / "script.py"), "an argument"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process, port_of(process)
    finally:
        process.kill()
        process.communicate()


def port_of(process: subprocess.Popen[str]) -> int:
    """Read what a script prints until it names a page's address; return the port."""
    assert process.stdout and process.stderr
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise AssertionError(process.stderr.read())
