"""The members of uvicorn that http_protocol.py and server.py build on although they are no public interface.

tests/deploy/service/test_uvicorn_members.py compares this list with both files and the installed uvicorn. Add a new
version to VERSIONS once that test and the other tests of the service pass with it.
"""

from __future__ import annotations

VERSIONS = ("0.54.0",)  # tested
MEMBERS: dict[str, dict[str, tuple[str, ...] | None]] = {  # a method's parameters; None: an attribute
    "HttpToolsProtocol": {
        "connection_made": ("self", "transport"),
        "connection_lost": ("self", "exc"),
        "data_received": ("self", "data"),
        "on_message_begin": ("self",),
        "on_headers_complete": ("self",),
        "on_body": ("self", "body"),
        "on_message_complete": ("self",),
        "on_response_complete": ("self",),
        "send_400_response": ("self", "msg"),
        "timeout_keep_alive_handler": ("self",),
        "_unset_keepalive_if_required": ("self",),
        "connections": None,
        "cycle": None,
        "headers": None,
        "loop": None,
        "pipeline": None,
        "transport": None,
        "url": None,
    },
    "RequestResponseCycle": {
        "disconnected": None,
        "keep_alive": None,
        "message_event": None,
        "response_complete": None,
        "scope": None,
    },
    "Server": {
        "__init__": ("self", "config"),
        "handle_exit": ("self", "sig", "frame"),
        "on_tick": ("self", "counter"),
        "should_exit": None,
    },
}
