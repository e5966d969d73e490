"""Memory that is freed and asked for again, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.paths import ROOT

PROGRAM = """
import resource, sys
import numpy as np
from common.malloc import keep_freed_memory

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


FREED = """
import sys
import numpy as np
from pathlib import Path
from common.malloc import return_freed_memory

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

if "return" in sys.argv:
    return_freed_memory()
np.ones(20 << 20, np.uint8)  # glibc learns that such blocks come again
before = megabytes()
blocks = [np.ones(20 << 20, np.uint8) for _ in range(4)]
after_them = np.ones(50_000, np.uint8)
del blocks
print(megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for it")
def test_freed_memory_is_given_back() -> None:
    kept = {}
    for flag in ("return", "leave"):
        done = subprocess.run([sys.executable, "-c", FREED, flag], capture_output=True, text=True, cwd=ROOT, check=True)
        kept[flag] = float(done.stdout)
    assert kept["return"] < 5 and kept["leave"] > 60
