"""What an export writes on stderr, beside its table."""

from __future__ import annotations

import sys
from contextlib import suppress

PROGRAM = "python -m deploy.export"


def log(text: str) -> None:
    """Write one line to stderr, which may be closed, as after a closed terminal."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def log_progress(text: str) -> None:
    """Write to a terminal what is being done; a log gets one line for each finished format."""
    if sys.stderr.isatty():
        log(f"{text} ...")
