"""What came from a store is called by its address in messages, not by the path of its copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Addresses = dict[str, str]  # by the paths of the copies


def with_addresses(text: str, addresses: Mapping[str, str]) -> str:
    """Return a text with the addresses of the files and folders whose copies it names."""
    for copy, address in addresses.items():
        for path in (str(Path(copy).absolute()), copy):
            text = text.replace(path, address)
    return text


class AddressStream:
    """A stream that writes addresses instead of their copies' paths, also of copies that are added later."""

    def __init__(self, stream: Any, addresses: Mapping[str, str]) -> None:
        self._stream, self._addresses = stream, addresses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        self._stream.write(with_addresses(text, self._addresses))
        return len(text)
