"""A decoder process whose decoder does what an image's bytes, or its file's name, ask for; other images it decodes.

sleep, spin (with the interpreter's lock) and allocate never end by themselves.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from data_loader import decoder_worker

SLEEP, SPIN, ALLOCATE, CRASH, BUG = b"sleep", b"spin", b"allocate", b"crash", b"bug"
MODULE = "tests.helpers.stand_in_decoder"
decode, image_size = decoder_worker.decode, decoder_worker.image_size


def stand_in(source: Any, *args: Any, **options: Any) -> Any:
    asked = source if isinstance(source, bytes) else Path(source).stem.encode()
    if asked == SLEEP:
        time.sleep(3600)
    if asked == SPIN:
        sum(range(sys.maxsize))
    if asked == ALLOCATE:
        blocks = []
        while True:
            blocks.append(bytes(1 << 20))
    if asked == CRASH:
        os.kill(os.getpid(), signal.SIGKILL)
    if asked == BUG:
        raise ZeroDivisionError("in the decoder")
    return decode(source, *args, **options)


def measured(path: str | bytes, *args: Any) -> Any:
    if isinstance(path, str) and Path(path).stem.encode() == SLEEP:
        time.sleep(3600)
    return image_size(path, *args)


if __name__ == "__main__":
    decoder_worker.decode = stand_in
    decoder_worker.image_size = measured  # type: ignore[assignment]
    decoder_worker.main()
