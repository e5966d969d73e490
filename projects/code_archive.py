"""What a job is sent: the files that git tracks and untracked ones that it does not ignore, as an archive.

Owner, times and all permissions but that to run a file are left out of it, so the same code gives the same archive.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.formatting import counted, size_text
from common.paths import ROOT
from projects.errors import ProjectError

MOST_BYTES = 64 * 2**20
SHOWN = 5  # changed files, in a message
NOT_NEEDED = ("tests", "docs", "findings")  # of the trainer, for a training


@dataclass(frozen=True)
class Code:
    """The files of a folder to send, by paths from it; `changed` are those that are not as committed."""

    folder: Path
    files: tuple[str, ...]
    changed: tuple[str, ...] = ()
    changes: bytes = b""  # of tracked files, as `git diff` has them

    def size(self) -> int:
        """Return the files' bytes. Raises ProjectError for a file that cannot be sent."""
        return sum(_checked(self.folder, name).lstat().st_size for name in self.files)


def read_code(folder: Path, left_out: Sequence[Path] = ()) -> Code:
    """Return what is to be sent of the repository that a folder lies in, without what lies below `left_out`.

    Raises ProjectError where there is none, or no git.
    """
    top = Path(_git(folder, "rev-parse", "--show-toplevel").decode().removesuffix("\n")).resolve()
    out = [path.resolve().relative_to(top).as_posix() for path in left_out if top in path.resolve().parents]
    pathspec = ["--", ":/", *(f":(top,exclude,literal){name}" for name in out)]
    changed = _names(_git(top, "diff", "--name-only", "--no-renames", "-z", "HEAD", *pathspec))
    untracked = _names(_git(top, "ls-files", "-z", "--others", "--exclude-standard", *pathspec))
    changes = _git(top, "diff", "--binary", "HEAD", *pathspec)
    return Code(top, _listed(top, pathspec), tuple(sorted({*changed, *untracked})), changes)


def trainer_code() -> Code:
    """Return the trainer's own files, which an experiment runs on: as git has them, or as they are installed."""
    if (ROOT / ".git").exists():
        return Code(ROOT, _listed(ROOT, ["--", ".", *(f":(top,exclude){name}" for name in NOT_NEEDED)]))
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return Code(ROOT, tuple(sorted(name for name in found if not name.endswith(".pyc"))))


def check_code(code: Code, *, dirty: bool) -> None:
    """Raise ProjectError for code that is not as committed, unless `dirty`, and for more than 64 MiB."""
    if code.changed and not dirty:
        shown = ", ".join(code.changed[:SHOWN]) + (", ..." if len(code.changed) > SHOWN else "")
        what = counted(len(code.changed), "file")
        raise ProjectError(
            f"{code.folder}: {what} not as committed ({shown}); commit them, or send and record them with --dirty"
        )
    size = code.size()
    if size > MOST_BYTES:
        largest = max(code.files, key=lambda name: (code.folder / name).lstat().st_size)
        raise ProjectError(
            f"{code.folder}: {size_text(size)} of code, at most {size_text(MOST_BYTES)} are sent; the largest file is "
            f"{largest}: name what is no code in .gitignore"
        )


def archive(parts: Mapping[str, Code], texts: Mapping[str, bytes]) -> bytes:
    """Return a tar.gz of code below a folder's name each, and of further files: the same bytes for the same content.

    Raises ProjectError for a file that cannot be sent, OSError for one that cannot be read.
    """
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, code in sorted(parts.items()):
            for file in code.files:
                path = _checked(code.folder, file)
                if path.is_symlink():
                    _add(tar, f"{name}/{file}", b"", link=path.readlink().as_posix())
                else:
                    _add(tar, f"{name}/{file}", path.read_bytes(), mode=0o755 if path.stat().st_mode & 0o100 else 0o644)
        for name, content in sorted(texts.items()):
            _add(tar, name, content)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, link: str = "", mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size, entry.linkname = mode, len(content), link
    entry.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
    tar.addfile(entry, io.BytesIO(content))


def _checked(folder: Path, name: str) -> Path:
    """Return the path of a file that can be sent. Raises ProjectError."""
    path = folder / name
    if path.is_symlink():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ProjectError(f"{path}: it is a link to {path.readlink()}, out of the repository, and cannot be sent")
    elif not path.is_file():
        kind = "a submodule or repository of its own" if path.is_dir() else "no ordinary file"
        raise ProjectError(f"{path}: it is {kind} and cannot be sent; name it in .gitignore, or copy its files")
    return path


def _listed(top: Path, pathspec: Sequence[str]) -> tuple[str, ...]:
    """Return the files that are there of those that git tracks, or does not ignore."""
    names = _names(_git(top, "ls-files", "-z", "--cached", "--others", "--exclude-standard", *pathspec))
    return tuple(sorted({name for name in names if (top / name).is_symlink() or (top / name).exists()}))


def _names(output: bytes) -> list[str]:
    """Return the names of a list that git ended with zeros. Raises ProjectError for one that is not UTF-8."""
    try:
        return [name for name in output.decode().split("\0") if name]
    except UnicodeDecodeError as error:
        name = next(name for name in output.split(b"\0") if not _is_utf8(name))
        raise ProjectError(f"{name!r}: a file's name that is not UTF-8 cannot be sent; rename it") from error


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _git(folder: Path, *words: str) -> bytes:
    """Return what git prints. Raises ProjectError."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=600)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        hint = "; a job is sent what git tracks: git init, git add and git commit first"
        raise ProjectError(f"{folder}: git: {said[0] if said else f'exit code {error.returncode}'}{hint}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProjectError(f"{folder}: cannot run git: {error}") from error
    return done.stdout
