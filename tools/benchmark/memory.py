"""The most memory that this process had in a round, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_GB = "peak GB"  # a column


def reset_peak() -> None:
    """Begin to count anew (proc_pid_clear_refs(5), value 5)."""
    if RESET.exists():
        RESET.write_text("5", encoding="ascii")


def peak_gb() -> float:
    """Return the peak of the resident memory since `reset_peak`, NaN off Linux."""
    if not STATUS.exists():
        return float("nan")
    lines = STATUS.read_text(encoding="ascii").splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kilobytes * 1024 / 1e9
