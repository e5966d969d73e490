"""Whether the pinned peers are still worth a comparison: how far each is behind its newest release on PyPI."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from common.errors import BenchmarkError
from tools.benchmark.peer_env import REQUIREMENTS

MEASURED = ("timm", "lightly", "litserve", "segmentation-models-pytorch", "webdataset")  # the others are theirs
MOST_DAYS = 60
INDEX, KIND = "https://pypi.org/simple/{}/", "application/vnd.pypi.simple.v1+json"  # PEP 691, 700
TIMEOUT_S = 30

Project = Mapping[str, Any]


def check_peers(ask: Callable[[str], Project] | None = None) -> list[str]:
    """Return a line for each measured peer. Raises BenchmarkError where one is too far behind, or PyPI gives no answer.

    `ask` returns a project of PyPI's index by its name.
    """
    lines, late = [], []
    for name, pinned in pinned_peers().items():
        uploaded = releases((ask or _ask)(name))
        if pinned not in uploaded:
            raise BenchmarkError(f"{name} {pinned}: PyPI has no such release; pin another in tools/{REQUIREMENTS.name}")
        newest = max(uploaded)
        days = (uploaded[newest] - uploaded[pinned]).days
        lines.append(f"{name} {pinned}: {f'{days} days behind {newest}' if newest > pinned else 'the newest'}")
        if newest > pinned and days > MOST_DAYS:
            late.append(lines[-1])
    if late:
        hint = f"pin the newest in tools/{REQUIREMENTS.name} and measure anew"
        raise BenchmarkError(f"{'; '.join(late)}; {MOST_DAYS} days are allowed: {hint}")
    return lines


def pinned_peers() -> dict[str, Version]:
    """Return the version of each measured peer that REQUIREMENTS pins."""
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE))
    return {name: Version(pins[name]) for name in MEASURED}


def releases(project: Project) -> dict[Version, datetime]:
    """Return when the first file of each release was uploaded; yanked files and pre-releases do not count."""
    found: dict[Version, datetime] = {}
    for file in project["files"]:
        version = _version_of(file["filename"])
        if version is None or version.is_prerelease or file.get("yanked"):
            continue
        uploaded = datetime.fromisoformat(file["upload-time"])
        found[version] = min(uploaded, found.get(version, uploaded))
    return found


def _version_of(filename: str) -> Version | None:
    """Return the version in a file's name; None for a kind of file that pip does not install."""
    try:
        if filename.endswith(".whl"):
            return parse_wheel_filename(filename)[1]
        return parse_sdist_filename(filename)[1]
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None


def _ask(name: str) -> Project:
    request = urllib.request.Request(INDEX.format(name), headers={"Accept": KIND})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            project: Project = json.load(response)
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise BenchmarkError(f"{name}: PyPI gives no answer: {error}") from error
    return project
