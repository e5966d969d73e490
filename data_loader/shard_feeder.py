"""A process that fetches the shards of a streamed pack before a training reads them, started by `ShardPrefetch`.

Each line of its standard input is a JSON list of the shards that are needed from now on, in order. It ends with its
standard input, whatever it is doing: a shard that has not come whole is gone on with later. No thread of the training
itself fetches: its loader processes are forked, and would hold the files that are open then, and their place on disk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor

from data_loader.streamed_packs import stream_in

THREADS = 8  # shards fetched at once
MOST_BYTES = 2**20  # read at once


def main() -> None:
    """Fetch until standard input ends.

    What cannot be fetched is not reported: it is tried again when an image of it is read, which is then in vain, too.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # its parent's, which finishes what it has begun
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    stream = stream_in(sys.argv[1])
    assert stream is not None
    pool, works = ThreadPoolExecutor(THREADS), list[Future[None]]()
    rest = b""
    while content := os.read(sys.stdin.fileno(), MOST_BYTES):
        *lines, rest = (rest + content).split(b"\n")
        if not lines:
            continue
        for work in works:
            work.cancel()
        files: list[str] = json.loads(lines[-1])  # the training is there by now, and what it has read may go
        stream.touch(files)
        works = [pool.submit(stream.fetch_ahead, file) for file in files]
    os._exit(0)


if __name__ == "__main__":
    main()
