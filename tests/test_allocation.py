"""Memory that is freed and asked for again, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.benchmark_sides import ROOT

PROGRAM = """
import resource, sys
import numpy as np
from data_loader.allocation import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
for size in (40, 30, 40):  # MB; the first round takes what the others are handed
    np.ones(size << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(40 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for it")
def test_freed_memory_comes_without_new_pages() -> None:
    faults = {}
    for flag in ("keep", "leave"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, flag], capture_output=True, text=True, cwd=ROOT, check=True
        )
        faults[flag] = int(done.stdout)
    assert faults["keep"] < 100 and faults["leave"] > 50 * faults["keep"] + 50
