"""InteractContext: a script's demo, its page to tag what it records, and its page to label it (docs/interact.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from review.demo import OWN_KEYS, Demo, RunningDataset
from review.errors import ReviewError
from review.script_config import ScriptConfig, checked_config
from review.script_pages import BROWSER_KEYS, LABEL_KEYS, LabelPage, TagPage


class ScriptPage(Protocol):
    """A page of a script."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Take what the script records. Raises ReviewError, OSError."""

    def end(self) -> None:
        """End it."""


P = TypeVar("P", bound=ScriptPage)


class Recorder:
    """`ctx.recorder`: hands what a script records to the page that it has started."""

    def __init__(self) -> None:
        self.page: ScriptPage | None = None

    def record(self, record: Mapping[str, Any]) -> None:
        """Record {"id": ..., TITLE: {"data": ..., "type": ...}}, or an image to label.

        Raises ReviewError, a ValueError, for what cannot be recorded, and OSError.
        """
        if self.page is None:
            raise ReviewError("nothing was started that could be recorded for: call start first")
        self.page.record(record)


class Part(Generic[P]):
    """A part of the context, such as `ctx.browser`, with its page once it was started."""

    def __init__(
        self, recorder: Recorder, word: str, keys: Mapping[str, Any], make: Callable[[ScriptConfig], P]
    ) -> None:
        self._recorder, self._word, self._keys, self._make = recorder, word, keys, make
        self._page: P | None = None

    def start(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Begin, with a name for its folder and title. Raises UserError for a mistake in the config, OSError."""
        if self._recorder.page is not None:
            raise ReviewError(f"{self._word}: another page was started already; call its exit first")
        self._recorder.page = self._page = self._make(checked_config(name, config, self._keys))

    def exit(self) -> None:
        """End it."""
        if self._page is not None:
            self._page.end()
            self._recorder.page = self._page = None

    @property
    def page(self) -> P:
        """Return the page. Raises ReviewError where it was not started."""
        if self._page is None:
            raise ReviewError(f"{self._word} was not started: call {self._word}.start first")
        return self._page


class DemoPart(Part[Demo]):
    """`ctx.demo`."""

    @property
    def running_dataset(self) -> RunningDataset:
        """Return what people send, as `iterator_value` yields it."""
        return self.page.running_dataset


class BrowserPart(Part[TagPage]):
    """`ctx.browser`."""

    def waiting(self) -> None:
        """Serve the page until all is reviewed and Finish is pressed. Raises UserError, OSError."""
        self.page.waiting()

    def download(self) -> dict[str, Any]:
        """Return what people said, as `browser/images` writes it, with an entry for each value of a record."""
        return self.page.download()


class LabelPart(Part[LabelPage]):
    """`ctx.activelearning`."""

    def labeling(self) -> None:
        """Begin a round."""
        self.page.labeling()

    def download(self) -> list[dict[str, Any]]:
        """Serve the page until Finish is pressed; return what people drew. Raises UserError, OSError."""
        return self.page.download()

    def waiting(self) -> None:
        """End the round, and empty it."""
        self.page.waiting()

    def state(self) -> dict[str, Any]:
        """Return where the labelling is: "stage" is collect, label or finish."""
        return self.page.state()


class InteractContext:
    """What a script works with: `demo`, `browser` and `activelearning`, one at a time, and `recorder`."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.demo = DemoPart(self.recorder, "demo", OWN_KEYS, Demo)
        self.browser = BrowserPart(self.recorder, "browser", BROWSER_KEYS, TagPage)
        self.activelearning = LabelPart(self.recorder, "activelearning", LABEL_KEYS, LabelPage)
