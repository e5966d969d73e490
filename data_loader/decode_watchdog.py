"""The watchdog of `data_loader.decode_guard`: a process that ends another one whose decoder does not come back.

It runs as a script and needs nothing but the standard library: it starts in 0.02 s, and looks at the table four times a
second. Arguments: the table's file descriptor, and the process that it reports for. Standard input ends with that
process and its children, and so does the watchdog.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import sys
import time

SLOTS, SLOT_BYTES = 1024, 1024
HEAD = struct.Struct("<iiqdi")  # pid (0: free), state, number of the image, its deadline in s, bytes of the name
NAME_BYTES = SLOT_BYTES - HEAD.size
IDLE, BUSY, EXPIRED = 0, 1, 2
POLL_S = 0.25
MERCY_S = 2.0  # between SIGALRM and SIGKILL

Ages = dict[int, tuple[int, int, float]]  # by slot: pid, number of the image, seconds


def main() -> None:
    """Watch until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it lives as long as what it watches
        signal.signal(number, signal.SIG_IGN)
    descriptor, owner = map(int, sys.argv[1:])
    table = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
    ages: Ages = {}
    looked_at = time.monotonic()
    while not select.select([sys.stdin], [], [], POLL_S)[0]:
        now = time.monotonic()
        look(table, owner, ages, min(now - looked_at, 2 * POLL_S))  # a pause of the machine is no decoder's
        looked_at = now


def look(table: mmap.mmap, owner: int, ages: Ages, seconds: float) -> None:
    """Add the seconds since the last look to each decoder's age, and end the process of one that is too old."""
    for slot in range(SLOTS):
        pid, state, number, deadline_s, _ = HEAD.unpack_from(table, slot * SLOT_BYTES)
        if not pid:
            continue
        if state != EXPIRED and not _is_alive(pid):
            HEAD.pack_into(table, slot * SLOT_BYTES, 0, IDLE, 0, 0.0, 0)
        elif state == BUSY:
            *known, age = ages.get(slot, (0, 0, 0.0))
            age = age + seconds if known == [pid, number] else 0.0
            ages[slot] = pid, number, age
            if age > deadline_s:
                _end(table, slot, (pid, number), owner)


def name_of(table: mmap.mmap, slot: int) -> str:
    """Return the name of a slot's image."""
    size = HEAD.unpack_from(table, slot * SLOT_BYTES)[-1]
    first = slot * SLOT_BYTES + HEAD.size
    return table[first : first + size].decode("utf-8", "backslashreplace")


def sentence(name: str, deadline_s: float) -> str:
    """Return what is said of an image whose decoder did not end."""
    return (
        f"{name}: its decoder did not end within {deadline_s:g} seconds: "
        "remove the image or convert it, or raise decode_timeout_s"
    )


def _end(table: mmap.mmap, slot: int, image: tuple[int, int], owner: int) -> None:
    pid, state, number, deadline_s, size = HEAD.unpack_from(table, slot * SLOT_BYTES)
    if (pid, number) != image or state != BUSY:  # it has just ended
        return
    HEAD.pack_into(table, slot * SLOT_BYTES, pid, EXPIRED, number, deadline_s, size)
    if pid == owner:  # of a loader process the owner itself says it
        text = sentence(name_of(table, slot), deadline_s)
        sys.stderr.write(f"\n{''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)}\n")
        sys.stderr.flush()
    os.kill(pid, signal.SIGALRM)
    time.sleep(MERCY_S)
    if _is_alive(pid):
        os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    main()
