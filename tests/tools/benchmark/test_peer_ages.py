"""How far the pinned peers are behind: by releases of a made-up index."""

import io
import urllib.error
import urllib.request
from typing import Any

import pytest

from common.errors import BenchmarkError
from tools.benchmark.__main__ import main
from tools.benchmark.peer_ages import MEASURED, Project, check_peers, pinned_peers, releases


def file(name: str, day: str, *, yanked: bool = False) -> dict[str, Any]:
    return {"filename": name, "upload-time": f"{day}T10:00:00.123456Z", "yanked": yanked}


def index_of(**days: str) -> Any:
    """Return the answers of an index: each pinned release of 2026-01-01, and timm's next on the day that is given."""

    def ask(name: str) -> Project:
        stem, pinned = name.replace("-", "_"), pinned_peers()[name]
        files = [file(f"{stem}-{pinned}-py3-none-any.whl", "2026-01-01")]
        if name in days:
            files.append(file(f"{stem}-{pinned.major + 1}.0.tar.gz", days[name]))
        return {"files": files}

    return ask


def test_releases_begin_with_their_first_file_and_others_do_not_count() -> None:
    files = [
        *(file("a_b-1.0-py3-none-any.whl", "2026-01-02"), file("a_b-1.0.tar.gz", "2026-01-01")),
        *(file("a_b-2.0rc1.tar.gz", "2026-02-01"), file("a_b-3.0.tar.gz", "2026-03-01", yanked=True)),
        *(file("a_b-1.0.exe", "2025-01-01"), file("a_b-old-thing.zip", "2025-01-01")),
    ]
    found = releases({"files": files})
    assert {str(version): day.isoformat()[:10] for version, day in found.items()} == {"1.0": "2026-01-01"}


def test_sixty_days_are_allowed() -> None:
    assert [line.endswith(": the newest") for line in check_peers(index_of())] == [True] * len(MEASURED)
    pinned = pinned_peers()["timm"]
    newer = f"timm {pinned}: {{}} days behind {pinned.major + 1}.0"
    assert newer.format(60) in check_peers(index_of(timm="2026-03-02"))
    with pytest.raises(BenchmarkError) as caught:
        check_peers(index_of(timm="2026-03-03"))
    hint = "60 days are allowed: pin the newest in tools/peers.txt and measure anew"
    assert str(caught.value) == f"{newer.format(61)}; {hint}"


def test_a_release_that_is_gone() -> None:
    with pytest.raises(BenchmarkError, match=r"timm [\d.]+: PyPI has no such release; pin another in tools/peers.txt"):
        check_peers(lambda name: {"files": []})


@pytest.mark.parametrize("answer", [b"<html>", urllib.error.URLError("no route"), TimeoutError("timed out")])
def test_an_index_that_gives_no_answer(
    answer: bytes | Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert request.full_url == "https://pypi.org/simple/timm/" and timeout == 30
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    assert main(["--check_peers"]) == 2
    assert capsys.readouterr().err.startswith("python -m tools.benchmark: timm: PyPI gives no answer: ")
