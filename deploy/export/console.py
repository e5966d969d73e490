"""What an export says beside its table, on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress

PROGRAM = "python -m deploy.export"


def tell(text: str) -> None:
    """Write one line to stderr; nobody may be there to read it any more, as after a closed terminal."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def progress(text: str) -> None:
    """Tell someone who waits at a terminal what is being done; a log gets a line a format when it is done."""
    if sys.stderr.isatty():
        tell(f"{text} ...")
