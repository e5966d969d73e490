"""requirements.lock: pinned as requirements.txt pins, whole, hashed, and past the versions that advisories ask for."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from common.paths import ROOT

TARGET = {  # what the lock is for
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
    "os_name": "posix",
}
LEAST = {  # fixed in these: see SECURITY.md
    "pillow": "12.2",
    "onnx": "1.21",
    "starlette": "0.47.2",
    "python-multipart": "0.0.27",
    "torch": "2.10",
}


def locked() -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes by name."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(
        r"^([a-z0-9][a-z0-9.-]*)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    assert len(entries) == len(re.findall(r"^\S*==", text, re.M))
    return {name: (version, re.findall(r"[0-9a-f]{64}", hashes)) for name, version, hashes in entries}


def direct() -> dict[str, Requirement]:
    """Return what requirements.txt pins for the lock's machine."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    fitting = [item for item in wanted if item.marker is None or item.marker.evaluate(TARGET)]
    assert len({item.name for item in fitting}) == len(fitting)
    return {canonicalize_name(item.name): item for item in fitting}


def test_the_lock_pins_what_requirements_pin() -> None:
    lock = locked()
    assert len(direct()) > 25
    for name, item in direct().items():
        assert str(item.specifier) == f"=={lock[name][0]}", name


def test_every_package_is_hashed_and_no_place_is_named() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert all(len(set(hashes)) == len(hashes) > 0 for _, hashes in locked().values())
    assert not re.search(r"https?:|file:|@|--(extra-)?index|--find-links|^-|/", text, re.M)


@pytest.mark.skipif(
    (platform.system(), platform.machine(), sys.version_info[:2]) != ("Linux", "x86_64", (3, 11)),
    reason="the lock is for Linux x86_64 and Python 3.11",
)
def test_the_lock_holds_all_that_its_packages_ask_for() -> None:
    """By what the installed packages themselves say that they need."""
    lock, waiting, seen = locked(), list(direct().values()), set()
    # requirements.txt alone leaves the versions of what it does not name free
    others = {name for name, (version, _) in lock.items() if metadata.version(name) != version}
    assert not others & set(direct())
    while waiting:
        item = waiting.pop()
        name, extras = canonicalize_name(item.name), frozenset(item.extras)
        assert name in lock, f"{name} is not in requirements.lock: make lock"
        assert item.specifier.contains(lock[name][0], prereleases=True), item
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name in others:
            continue
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if any(needed.marker is None or needed.marker.evaluate({"extra": e}) for e in (extras or {""}) | {""}):
                waiting.append(needed)
    found = {name for name, _ in seen}
    assert found == set(lock) or (others and found <= set(lock))


@pytest.mark.parametrize("name", LEAST)
def test_what_advisories_ask_for(name: str) -> None:
    assert Version(locked()[name][0]) >= Version(LEAST[name])
    assert Version(metadata.version(name)) >= Version(LEAST[name])
