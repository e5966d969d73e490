"""The fuzzer: mutations of a valid document, limits of a case, and the check that an error is one for the user."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ_TIMES", "0"))  # factor of the number of cases, which then are new; 0: the fixed ones
TIMEOUT_S = 30  # of one case, which takes milliseconds
MEMORY_BYTES = 3 * 2**30  # of one case
LONGEST_LINE = 12_000  # of a message that quotes the input

LONG = 5000  # letters of a long name
NESTED, DIGITS, HUGE = "@nested@", "@digits@", "@huge@"  # stand for values that only the text of a document can hold
IN_TEXT = {NESTED: "[" * 20_000 + "]" * 20_000, DIGITS: "9" * 5000, HUGE: "1e400"}
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"), NESTED, DIGITS, HUGE,
    "", " ", "0", "-1", "nan", "a", "\0", "a\0b", "\n", "\ud800", "\udcff", "猫", "🐈\u200d⬛", "\u202e\0", "\ufeff",
    "../..", "../../etc/passwd", "/etc/passwd", "..", "a/../b", "C:\\a", "a" * LONG, "猫" * 300, "__class__", "{0}%s",
    "=", "----", "N", "2*N", "9999999999*N", [], {}, [None], [[]], [0], [-1, 10**10], [1.5, "a"], {"": ""}, {"a": [{}]},
)  # fmt: skip
KINDS = ("odd", "odd", "odd", "delete", "rename", "repeat", "swap", "wrap", "as text", "near", "near", "cut")
Edit = tuple[int, str, int]  # place, one of KINDS, choice of the new value
EDITS = st.lists(st.tuples(st.integers(0, 9999), st.sampled_from(KINDS), st.integers(0, 9999)), min_size=1, max_size=2)
# Other bytes in a text, but rarely: most of them only end the parsing. Place, bytes, and how many they replace
BYTES = st.lists(st.tuples(st.integers(0, 99_999), st.binary(max_size=4), st.integers(0, 3)), min_size=1, max_size=2)
FEW_BYTES = st.one_of(*[st.just([])] * 5, BYTES)
TRACES = re.compile(r"Traceback \(most|site-packages| object at 0x|^[A-Z]\w+Error\(|File \"/", re.MULTILINE)


class HangError(BaseException):
    """A case that exceeds TIMEOUT_S; no code under test catches it."""


def fuzzed(short: int, *strategies: Any) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Return a decorator that runs a case `short` times with fixed inputs, or FUZZ_TIMES as often with new ones."""
    config = settings(
        max_examples=max(1, TIMES) * short,
        derandomize=not TIMES,
        database=None,
        deadline=None,  # see HangError
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )

    def many(case: Callable[..., None]) -> Callable[[], None]:
        return config(given(*strategies)(case))

    return many


def mutated(document: Any, edits: list[Edit]) -> Any:
    """Return a copy of a document of dicts, lists and plain values with a few changes, at any depth."""
    root = [copy.deepcopy(document)]
    for place, kind, which in edits:
        places = list(_places(root))
        container, key = places[place % len(places)]
        _change(container, key, kind, which, places)
        if not root:
            return None
    return root[0]


def changed_bytes(text: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """Return the text with a few bytes replaced by others."""
    for place, other, count in changes:
        start = place % (len(text) + 1)
        text = text[:start] + other + text[start + count :]
    return text


def as_json(document: Any) -> bytes:
    """Return a document as JSON, with the marks of IN_TEXT replaced by their values."""
    text = json.dumps(document)
    for mark, meaning in IN_TEXT.items():
        text = text.replace(json.dumps(mark), meaning)
    return text.encode()


@contextmanager
def limited() -> Iterator[None]:
    """Limit a case to TIMEOUT_S, and on Linux to MEMORY_BYTES. Raises HangError."""

    def stop(*_: Any) -> None:
        raise HangError(f"no result within {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S)
    try:
        with _memory_limit(MEMORY_BYTES):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_captured(program: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, str]:
    """Run a program in this process with streams like a terminal's; return its exit code and its stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(err):
        code = program(arguments)
        out.flush()
        err.flush()
    return code, err.buffer.getvalue().decode()


def check_sentence(text: str) -> None:
    """Assert that an error's text is one for the user, without traces of the code."""
    assert text.strip(), "the message is empty"
    assert not TRACES.search(text), text
    assert max(map(len, text.splitlines())) <= LONGEST_LINE, text[:300]


@contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Limit this process to `more` bytes above what it has."""
    if sys.platform != "linux":
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], (dict, list)):
            yield from _places(container[key])


def _change(container: Any, key: Any, kind: str, which: int, places: list[tuple[Any, Any]]) -> None:
    value = container[key]
    if kind == "delete":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        others = [odd for odd in ODD if isinstance(odd, str)]
        container[others[which % len(others)] if which % 2 else f"{key}s"] = container.pop(key)
    elif kind == "repeat" and isinstance(value, list):
        container[key] = value * (2 + which % 5 * 100)
    elif kind == "swap":
        other, its_key = places[which % len(places)]
        container[key] = copy.deepcopy(other[its_key])
    elif kind == "wrap":
        container[key] = {str(key): value} if which % 2 else [value]
    elif kind == "as text":
        container[key] = str(value)
    elif kind in ("near", "cut"):
        container[key] = _near(value, kind, which)
    else:
        container[key] = copy.deepcopy(ODD[which % len(ODD)])


def _near(value: Any, kind: str, which: int) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value + 1, value - 1, -value, value * 2, value * 1000, float(value)][which % 6]
    if isinstance(value, str):
        return value[:-1] if kind == "cut" else [value.upper(), f"{value} ", f"{value}\0", f"../{value}"][which % 4]
    return value[:-1] if isinstance(value, list) else value
