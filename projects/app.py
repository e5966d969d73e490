"""The server of the projects' page, which only reads: for this machine, with the headers of all pages of ours."""

from __future__ import annotations

import signal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from deploy.service.listener import address_of, bind, listen
from deploy.service.page_headers import PAGE_POLICY
from projects.book import Book
from projects.errors import ProjectError
from projects.pages import PAGE, project_html, projects_html
from review.app import own_app, page_file
from review.server import server_of
from review.serving import Place

POLICY = PAGE_POLICY.replace("form-action 'none'", "form-action 'self'")  # the runs to compare are a form's


def make_app(book: Book, place: Place) -> ASGIApp:
    """Return the application."""

    def all_projects(request: Request) -> Response:
        return HTMLResponse(projects_html(book))

    def one_project(request: Request) -> Response:
        try:
            project = book.read(book.name_of(request.path_params["name"]))
        except ProjectError as error:
            raise HTTPException(404) from error
        return HTMLResponse(project_html(project, request.query_params.getlist("run")))

    routes = [
        Route("/", all_projects),
        Route("/project/{name}", one_project),
        Route("/page.css", page_file(PAGE / "page.css", "text/css; charset=utf-8")),
    ]
    return own_app(routes, place.origins(), POLICY)


def serve_projects(book: Book, place: Place) -> int:
    """Serve the page until a signal comes; return 128 and its number. Raises UserError, OSError."""
    with bind(place.host, place.port, place.port_flag) as listener:
        server = server_of(make_app(book, place))
        listen(listener, place.port_flag)
        print(f"{book.home}\n  address  {address_of(listener)}\n  Ctrl-C ends it", flush=True)
        server.run(sockets=[listener])
        return 128 + (server.received or signal.SIGINT)
