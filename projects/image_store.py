"""Images kept under the checksums of their bytes: one that is known is not taken twice, whatever its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from common.atomic_io import write_atomic, writing
from data_loader.errors import ImageError
from data_loader.preprocess import Preprocess


class ImageStore:
    """A folder of images, each called by its sha256 and the ending that it came with."""

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        self._folder, self._preprocess = folder, preprocess
        self._names = {path.stem: path.name for path in folder.iterdir()} if folder.is_dir() else {}

    def add(self, source: str | Path) -> str:
        """Keep a file, and return its name here. Raises ImageError, OSError, ResultsError."""
        content = Path(source).read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        if checksum in self._names:
            return self._names[checksum]
        self._preprocess.decode(content)
        name = checksum + Path(source).suffix.lower()
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._folder / name, content)
        self._names[checksum] = name
        return name

    def add_all(self, sources: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Keep files; return their names here by source, and a sentence for each that cannot be read."""
        names, unreadable = {}, []
        for source in sources:
            try:
                names[source] = self.add(source)
            except (ImageError, OSError) as error:
                unreadable.append(f"{source}: {getattr(error, 'strerror', None) or error}")
        return names, unreadable

    def find(self, source: str | Path) -> str:
        """Return the name of a file's content here, "" where it is not known. Raises OSError."""
        return self._names.get(hashlib.sha256(Path(source).read_bytes()).hexdigest(), "")
