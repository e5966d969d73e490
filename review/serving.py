"""A review served at an address until it is finished: what the commands and scripts that open a page share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from common.console import printable
from datasets.files import Annotations
from deploy.service.listener import address_of, bind, listen
from deploy.service.origins import AllowedOrigins, is_address
from review.desk import Desk, OpenReviews, Options
from review.images import ImageShow
from review.review import Review, open_review
from review.users import Users

Ask = Callable[[Annotations], None]  # puts predictions into records


@dataclass(frozen=True)
class Place:
    """Where a page is served: its address, the names that it answers to, and what messages call its port."""

    host: str = "127.0.0.1"
    port: int = 8090
    allowed_hosts: tuple[str, ...] = ()
    port_flag: str = "--port"

    def origins(self) -> AllowedOrigins:
        """Return the names and origins that may use it."""
        own = set() if is_address(self.host) else {self.host.lower()}
        return AllowedOrigins(own | set(self.allowed_hosts))


def serve_review(
    place: Place,
    options: Options,
    source: Path | None,
    users: Users,
    *,
    ask: Ask = lambda found: None,
    prepare: Callable[[Review], None] = lambda review: None,
) -> int:
    """Serve the page until it is finished or a signal comes; return the exit code. Raises UserError, OSError.

    `ask` may add predictions before the review of the source is made, `prepare` gets it before anybody connects.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(bind(place.host, place.port, place.port_flag))
        reviews = stack.enter_context(OpenReviews(options))
        what = "no file yet"
        if source:
            review = _open(reviews, source, options, ask)
            prepare(review)
            done = "labelled" if review.task else "reviewed"
            what = f"{source.name}: {len(review):,} images, {review.num_reviewed:,} {done}"
        images = ImageShow()
        stack.callback(images.close)
        cookie = f"review_{listener.getsockname()[1]}"  # browsers send a cookie to every port of a host
        desk = Desk(options, source, reviews, images, users, place.origins(), lambda: None, cookie)
        from review.server import serve  # late: --help and mistakes answer without uvicorn

        listen(listener, place.port_flag)
        print(f"{printable(what)}\n  address  {address_of(listener)}\n  Ctrl-C ends it", flush=True)
        return serve(desk, listener)


def _open(reviews: OpenReviews, source: Path, options: Options, ask: Ask) -> Review:
    stack = ExitStack()
    feedback, overwrite, task = options.feedback, options.overwrite, options.task
    opened = open_review(source, options.tags, feedback=feedback, overwrite=overwrite, task=task, ask=ask)
    review = stack.enter_context(opened)
    reviews.add(source, stack, review)
    return review
