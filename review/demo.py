"""A demo: people send an image or text to a page, a script answers, and the page shows what it recorded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from data_loader.decoder_process import DecoderPool
from data_loader.errors import ImageError
from data_loader.preprocess import Preprocess
from deploy.service.listener import address_of, bind, listen
from review.asks import Asks
from review.demo_app import make_demo_app
from review.errors import ReviewError
from review.recording import COLORS, id_of, items_of
from review.script_config import ScriptConfig
from review.server import LIMITS, server_of

END_S = 10.0  # for the server
LONGEST_WAIT_S = 3600
OWN_KEYS = {"support_user_upload": True, "support_user_input": False, "request_waiting_time": 30.0}


class RunningDataset:
    """What people send, as a script gets it."""

    def __init__(self, asks: Asks, color: str) -> None:
        self._asks, self._color = asks, color

    def iterator_value(self) -> Iterator[tuple[np.ndarray | str, dict[str, Any]]]:
        """Yield what people send until the demo ends: uint8 (H, W, 3), upright, or text; and {"id": ...}."""
        limits = self._asks.limits
        pool = DecoderPool(Preprocess(8, 8), 1, limits.decode_timeout_s)
        with closing(pool):
            while (ask := self._asks.take()) is not None:
                data: np.ndarray | str
                if isinstance(ask.content, str):
                    data = ask.content
                else:
                    try:
                        data, _ = pool.whole(ask.content, limits.max_megapixels * 10**6)
                    except ImageError as error:
                        self._asks.refuse(ask, 422, f"the image cannot be read: {error}")
                        continue
                    data = np.ascontiguousarray(data[..., ::-1]) if self._color == COLORS[0] else data
                yield data, {"id": ask.id}


class Demo:
    """The page of a demo, served in a thread of its own while the script runs; its address is printed.

    Raises UserError.
    """

    def __init__(self, config: ScriptConfig) -> None:
        if len(config.users):
            raise ReviewError("config: a demo has no white_users; keep it on this machine, or put a proxy before it")
        waiting_s = float(config.values["request_waiting_time"])
        if not 0 < waiting_s <= LONGEST_WAIT_S:
            most = f"at most {LONGEST_WAIT_S} s, got {waiting_s:g}"
            raise ReviewError(f"config: request_waiting_time must be above 0, {most}")
        if not (config.values["support_user_upload"] or config.values["support_user_input"]):
            raise ReviewError("config: support_user_upload or support_user_input must be true")
        self._asks, self._color, place = Asks(LIMITS, waiting_s), config.color, config.place
        self.running_dataset = RunningDataset(self._asks, config.color)
        self._listener = bind(place.host, place.port, place.port_flag)
        self._server = server_of(make_demo_app(self._asks, config))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        listen(self._listener, place.port_flag)
        self._thread.start()
        print(f"{config.name}: the demo runs\n  address  {address_of(self._listener)}\n  Ctrl-C ends it", flush=True)

    def record(self, record: Mapping[str, Any]) -> None:
        """Answer a request. Raises ReviewError, a ValueError."""
        self._asks.record(id_of(record), items_of(record, self._color))

    def end(self) -> None:
        """End the iteration, and then the server."""
        self._asks.end()
        self._server.should_exit = True
        self._thread.join(END_S)
        self._listener.close()
