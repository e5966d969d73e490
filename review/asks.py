"""What people ask a demo: requests wait in the server's loop until the script, in another thread, has answered."""

from __future__ import annotations

import asyncio
import queue
from dataclasses import dataclass
from typing import Any

from deploy.service.http_protocol import PENDING
from deploy.service.limits import Limits
from review.errors import RefusedError, ReviewError
from review.recording import Item


@dataclass(frozen=True)
class Ask:
    """What a person has sent: an encoded image, or text; `answer` is resolved by the script."""

    id: int
    content: bytes | str
    answer: asyncio.Future[list[Item]]


class Asks:
    """What people ask, in turn. Requests wait in the server's loop, the script takes and answers in another thread."""

    def __init__(self, limits: Limits, waiting_s: float) -> None:
        self.limits, self.waiting_s = limits, waiting_s
        self._queue: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._open: dict[int, Ask] = {}
        self._next = 0

    def reserve(self) -> None:
        """Raise RefusedError where as many requests wait as the limit allows."""
        if len(self._open) >= self.limits.queue:
            raise RefusedError(503, f"{self.limits.queue} requests wait already; try again later", 1)

    async def answer_to(self, content: bytes | str, state: dict[str, Any]) -> tuple[int, list[Item]]:
        """Return what the script records about an image or text, and the id; `state` is the request's.

        Raises RefusedError where it does not answer in time, the image cannot be read, or the client has gone.
        """
        self.reserve()
        ask = Ask(self._next, content, asyncio.get_running_loop().create_future())
        self._next += 1
        self._open[ask.id] = ask
        state[PENDING] = ask.answer
        self._queue.put(ask)
        try:
            return ask.id, await asyncio.wait_for(ask.answer, self.waiting_s)
        except asyncio.CancelledError as error:
            raise RefusedError(400, "the client has gone") from error
        except TimeoutError as error:
            text = f"the script has not answered within {self.waiting_s:g} s; try again later"
            raise RefusedError(503, text, 1) from error
        finally:
            del self._open[ask.id]

    def take(self) -> Ask | None:
        """Wait for the next that is still wanted; None at the end."""
        while (ask := self._queue.get()) is not None and ask.answer.done():
            pass
        return ask

    def record(self, ask_id: int | str, items: list[Item]) -> None:
        """Answer a request; one that has ended meanwhile is left out. Raises ReviewError, a ValueError."""
        if not isinstance(ask_id, int) or not 0 <= ask_id < self._next:
            raise ReviewError(f'there was no request {ask_id!r}; record the id of info["id"]')
        if ask := self._open.get(ask_id):
            ask.answer.get_loop().call_soon_threadsafe(_resolve, ask.answer, items)

    def refuse(self, ask: Ask, status: int, message: str) -> None:
        """Answer with the reason why there is no answer."""
        ask.answer.get_loop().call_soon_threadsafe(_fail, ask.answer, RefusedError(status, message))

    def end(self) -> None:
        """End the script's iteration, and what waits for an answer."""
        self._queue.put(None)
        for ask in list(self._open.values()):
            self.refuse(ask, 503, "the demo has ended")


def _resolve(answer: asyncio.Future[list[Item]], items: list[Item]) -> None:
    if not answer.done():
        answer.set_result(items)


def _fail(answer: asyncio.Future[list[Item]], error: RefusedError) -> None:
    if not answer.done():
        answer.set_exception(error)
