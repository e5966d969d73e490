"""The requests of the page: who is there, which records there are, and what is changed.

All of them run in the event loop's one thread, so that two never change something at once; what takes long (passwords,
opening a file, decoding) runs in threads.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from data_loader.errors import ImageError
from review.desk import Desk
from review.errors import RefusedError
from review.images import SMALL_SIDES, version_of
from review.marks import Change
from review.record_view import find_sizes, mark_view, record_view
from review.requests import (
    MAX_LABELS_BYTES,
    body_of,
    changing_session,
    choice_in,
    known_session,
    records_in,
    session_of,
    text_in,
)
from review.review import Review
from review.sessions import Session

IMAGES_AT_ONCE, LOGINS_AT_ONCE = 8, 2  # so that slow images and many logins leave threads to the rest


class Api:
    """Handles the page's requests."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._images, self._logins = CapacityLimiter(IMAGES_AT_ONCE), CapacityLimiter(LOGINS_AT_ONCE)

    async def session(self, request: Request) -> Response:
        """Return who is there and what is reviewed; a browser without a session gets one where there are no users."""
        session, cookie = session_of(self._desk, request), ""
        if session is None and not self._desk.users:
            cookie, session = self._desk.sessions.begin("", self._desk.source)
        if session is None:
            return json_response({"needs_login": True})
        response = json_response({"needs_login": False, **await self._described(session)})
        if cookie:
            self._set_cookie(response, cookie)
        return response

    async def login(self, request: Request) -> Response:
        """Begin a session for a name with its password."""
        desk, body = self._desk, await body_of(request)
        name, password = text_in(body, "user"), text_in(body, "password")
        address = request.client.host if request.client else ""
        keys = [f"address {address}", *([f"user {name}"] if name in desk.users else [])]
        if wait_s := desk.attempts.wait_s(*keys):
            seconds = math.ceil(wait_s)
            raise RefusedError(429, f"too many tries; try again in {seconds} seconds", seconds)
        if not await run_sync(desk.users.verify, name, password, limiter=self._logins):
            raise RefusedError(401, "the name or the password is wrong")
        cookie, _ = desk.sessions.begin(name, desk.source)
        response = json_response({"user": name})
        self._set_cookie(response, cookie)
        return response

    async def logout(self, request: Request) -> Response:
        """End a session."""
        session = changing_session(self._desk, request)
        for review in self._desk.reviews.all():
            review.leases.look((), session.user)
        self._desk.sessions.end(request.cookies.get(self._desk.cookie, ""))
        response = json_response({})
        response.delete_cookie(self._desk.cookie)
        return response

    async def open(self, request: Request) -> Response:
        """Let a session go on with another file."""
        session, body = changing_session(self._desk, request), await body_of(request)
        source = self._desk.named_source(text_in(body, "path", 4096))
        await self._opened(source)
        session.source = source
        return json_response(await self._described(session))

    async def list(self, request: Request) -> Response:
        """Return the indices of the records that pass the query's filters."""
        session = known_session(self._desk, request)
        review = await self._review_of(session)
        return json_response({"records": review.listed(choice_in(request.query_params), session.user)})

    async def look(self, request: Request) -> Response:
        """Return records, and lease those that nobody else has; the person's other leases end."""
        session, body = changing_session(self._desk, request), await body_of(request)
        review = await self._review_of(session)
        records = records_in(body, len(review))
        others = review.leases.look(records, session.user) if review.marks else {}

        def views_of() -> list[dict[str, Any]]:
            find_sizes(review, records, lambda index: self._desk.images.size(self._desk.image_path(review, index)))
            return [record_view(review, index) for index in records]

        views = await run_sync(views_of)
        found = [{**view, "holder": others.get(view["index"], "")} for view in views]
        return json_response({"records": found, "reviewed": review.num_reviewed})

    async def change(self, request: Request) -> Response:
        """Tag records, or count them as reviewed."""
        session, body = changing_session(self._desk, request), await body_of(request)
        review = await self._review_of(session)
        is_on = body.get("on", True)
        if not isinstance(is_on, bool):
            raise RefusedError(400, "on must be true or false")
        records, tag = records_in(body, len(review)), text_in(body, "tag")
        return _changed(review, review.change(records, session.user, tag, is_on=is_on))

    async def label(self, request: Request) -> Response:
        """Label records: one with objects, several with a class, or without "labels" each with its draft."""
        session = changing_session(self._desk, request)
        body = await body_of(request, MAX_LABELS_BYTES)
        review = await self._review_of(session)
        records = records_in(body, len(review))
        return _changed(review, review.label(records, session.user, body.get("labels")))

    async def undo(self, request: Request) -> Response:
        """Take back the person's latest press."""
        session = changing_session(self._desk, request)
        review = await self._review_of(session)
        return _changed(review, review.undo(session.user))

    async def finish(self, request: Request) -> Response:
        """Write the result once every record has been reviewed; the server then ends, unless it opens other files."""
        session = changing_session(self._desk, request)
        review = await self._review_of(session)
        if not self._desk.options.feedback:
            raise RefusedError(403, "start with --feedback to write a result")
        task = self._desk.options.task
        left = len(review) - review.num_reviewed
        if left and not (task and task.ignore_incomplete):
            raise RefusedError(409, f"{left} images are not {'labelled' if task else 'reviewed'} yet")
        review.write_result()
        if self._desk.options.input_root is None:
            self._desk.is_finished = True
            self._desk.finish()
        return json_response({"path": review.result_path.name})

    async def image(self, request: Request) -> Response:
        """Return a record's image, small with ?side=N, else whole."""
        review = await self._review_of(known_session(self._desk, request))
        number, side = request.path_params["index"], request.query_params.get("side", "")
        index = int(number) if number.isdecimal() and len(number) < 10 else len(review)
        if index >= len(review) or (side and side not in map(str, SMALL_SIDES)):
            raise RefusedError(404, "there is no such image")
        path = self._desk.image_path(review, index)
        try:
            etag = f'"{version_of(path)}-{index}-{side}"'
            if request.headers.get("if-none-match") == etag:
                return Response(status_code=304, headers={"etag": etag})
            shown = await run_sync(self._desk.images.image, path, int(side or 0), limiter=self._images)
        except (ImageError, OSError) as error:
            raise RefusedError(422, str(error)) from error
        if shown.path:
            return FileResponse(shown.path, media_type=shown.media_type, headers={"etag": etag})
        return Response(shown.content, media_type=shown.media_type, headers={"etag": etag})

    async def _review_of(self, session: Session) -> Review:
        if session.source is None:
            raise RefusedError(409, "no file is open")
        return await self._opened(session.source)

    async def _opened(self, source: Path) -> Review:
        while (review := self._desk.reviews.find(source)) is None:  # again where others have closed it meanwhile
            await run_sync(self._desk.opened, source)
        self._desk.reviews.close_oldest()
        return review

    async def _described(self, session: Session) -> dict[str, Any]:
        options = self._desk.options
        described = {
            "user": session.user,
            "has_users": len(self._desk.users) > 0,
            "token": session.token,
            "can_open": options.input_root is not None,
            "can_finish": options.feedback,
            "order": options.order,
            "name": "",
        }
        if session.source is None:
            return described
        review = await self._review_of(session)
        found = review.annotations
        return {
            **described,
            "name": found.path.name,
            "total": len(review),
            "reviewed": review.num_reviewed,
            "tags": list(review.tags),
            "can_mark": review.marks is not None,
            "labelling": review.task.kind if review.task else "",
            "can_leave_out": bool(review.task and review.task.ignore_incomplete),
            "classes": list(found.category),
            "skeleton": _limbs(found.meta["meta"]["skeleton"]),
            "orders": review.orders,
            "has_answers": bool(review.answers),
        }

    def _set_cookie(self, response: Response, cookie: str) -> None:
        response.set_cookie(self._desk.cookie, cookie, httponly=True, samesite="strict", path="/")


def json_response(content: Any, status: int = 200) -> Response:
    """Return JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), status, media_type="application/json")


def _limbs(skeleton: Any) -> list[list[int]]:
    """Return the pairs of joints of meta.json's skeleton, which nobody has checked."""
    pairs = skeleton if isinstance(skeleton, list) else []
    return [pair for pair in pairs if isinstance(pair, list) and [type(joint) for joint in pair] == [int, int]]


def _changed(review: Review, change: Change) -> Response:
    marks = {index: record_view(review, index) if review.task else mark_view(mark) for index, mark in change.items()}
    return json_response({"marks": marks, "reviewed": review.num_reviewed})
