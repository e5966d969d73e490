"""The members of uvicorn that the service builds on although they are no public interface, and uvicorn's own.

MEMBERS lists all that http_protocol.py and server.py use. The tests compare it with both files and with the installed
uvicorn. Add a new version to VERSIONS once these and the other tests of the service pass with it.
"""

import ast
import inspect
from importlib.metadata import version

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl

from deploy.service.http_protocol import LimitedProtocol
from deploy.service.request_framing import UpgradeIgnoringParser
from deploy.service.server import DrainingServer

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
        "pause_writing": ("self",),
        "resume_writing": ("self",),
        "_unset_keepalive_if_required": ("self",),
        "connections": None,
        "cycle": None,
        "headers": None,
        "loop": None,
        "parser": None,
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
        "force_exit": None,
        "should_exit": None,
    },
}
CLASSES: dict[str, type] = {
    "HttpToolsProtocol": httptools_impl.HttpToolsProtocol,
    "RequestResponseCycle": httptools_impl.RequestResponseCycle,
    "Server": uvicorn.Server,
}
SUBCLASSES: dict[str, type] = {"HttpToolsProtocol": LimitedProtocol, "Server": DrainingServer}


def test_the_installed_version_is_a_tested_one() -> None:
    assert version("uvicorn") in VERSIONS, "run the tests of the service with it, then add it to VERSIONS"


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in MEMBERS.items() for name in names])
def test_uvicorn_has_each_member(owner: str, name: str) -> None:
    parameters = MEMBERS[owner][name]
    if parameters is None:
        assert name in assigned_in(CLASSES[owner]), f"uvicorn's {owner} has no attribute {name} any more"
    else:
        method = getattr(CLASSES[owner], name, None)
        assert method is not None, f"uvicorn's {owner} has no method {name} any more"
        assert tuple(inspect.signature(method).parameters) == parameters, f"uvicorn's {owner}.{name}"


@pytest.mark.parametrize("owner", SUBCLASSES)
def test_no_other_member_is_used(owner: str) -> None:
    """An attribute of self or of super() is the subclass's own, or listed."""
    base, tree = CLASSES[owner], class_node(SUBCLASSES[owner])
    inherited = set(dir(base)) | assigned_in(base)
    used = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    used |= {name for of, name in attributes(tree) if of in ("self", "super()")}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert used & inherited == set(MEMBERS[owner])
    unknown = {name for of, name in attributes(tree) if of == "super()"} - inherited
    assert not unknown, f"uvicorn's {owner} has no {unknown} any more"


def test_no_other_member_of_a_request_is_used() -> None:
    """http_protocol.py calls each RequestResponseCycle `cycle`."""
    used = {name for base, name in attributes(class_node(LimitedProtocol)) if base in ("cycle", "self.cycle")}
    assert used == set(MEMBERS["RequestResponseCycle"])


def test_the_parser_calls_known_members_and_has_those_that_uvicorn_calls() -> None:
    tree = class_node(UpgradeIgnoringParser)
    used = {name for of, name in attributes(tree) if of == "self._protocol"}
    others = {"on_url": ("self", "url"), "on_header": ("self", "name", "value")}
    known = {**MEMBERS["HttpToolsProtocol"], **others}
    assert used <= set(known) and others.keys() <= used
    for name, parameters in others.items():
        assert tuple(inspect.signature(getattr(httptools_impl.HttpToolsProtocol, name)).parameters) == parameters
    called = {name for of, name in attributes(class_node(httptools_impl.HttpToolsProtocol)) if of == "self.parser"}
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert called - own == {"set_dangerous_leniencies"}  # of the parser that uvicorn makes itself


def class_node(kind: type) -> ast.ClassDef:
    node = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(node, ast.ClassDef)
    return node


def attributes(tree: ast.AST) -> set[tuple[str, str]]:
    """Return all attributes in a class as (source of the object, name)."""
    return {(ast.unparse(node.value), node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def assigned_in(kind: type) -> set[str]:
    """Return the attributes that the methods of a class assign to self."""
    nodes = (node for node in ast.walk(class_node(kind)) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}
