"""Work on the records of a data set, divided over the processor's cores."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

from datasets.errors import DatasetError

CORES = min(8, os.cpu_count() or 1)
FEW = 1000  # records, for which starting processes takes longer than they save

Row = TypeVar("Row")
Made = TypeVar("Made")
Work = Callable[[Sequence[Row], range], Made]  # of all rows, and the indices of those that are asked for


def over_cores(work: Work[Row, Made], rows: Sequence[Row], parts: Sequence[range]) -> list[Made]:
    """Return what `work` makes of each part of the rows, in order; several parts at a time where there are many rows.

    Forked processes have the rows already; only what is made is sent. Raises what the work raises, and DatasetError
    where a process has been killed.
    """
    count = min(CORES, len(parts)) if "fork" in multiprocessing.get_all_start_methods() else 1
    if count < 2 or len(rows) < FEW:
        return [work(rows, part) for part in parts]
    context = multiprocessing.get_context("fork")
    started = []
    try:
        for number in range(count):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(there, work, rows, parts[number::count]), daemon=True)
            process.start()
            there.close()
            started.append((process, here))
        answers: list[list[Made]] = [_received(here) for _, here in started]
        return [answers[index % count][index // count] for index in range(len(parts))]
    finally:
        for process, here in started:
            here.close()
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)  # as Ctrl-C: it removes what is half done
            process.join()


def equal_parts(count: int) -> list[range]:
    """Return the indices of `count` rows in a part for each core."""
    ends = [count * number // CORES for number in range(CORES + 1)]
    return [range(first, last) for first, last in itertools.pairwise(ends)]


def _answer(to: Connection, work: Work[Row, Made], rows: Sequence[Row], parts: Sequence[range]) -> None:
    try:
        to.send([work(rows, part) for part in parts])
    except Exception as error:  # the main process raises it
        to.send(error)
    except KeyboardInterrupt:
        pass


def _received(here: Connection) -> list[Made]:
    try:
        found: list[Made] | Exception = here.recv()
    except EOFError as error:
        raise DatasetError("a process died at work: perhaps there is too little memory; run it again") from error
    if isinstance(found, Exception):
        raise found
    return found
