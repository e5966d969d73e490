"""What the service uses of uvicorn beyond its public interface: listed, and as uvicorn has it."""

import ast
import inspect
from importlib.metadata import version

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl

from deploy.service.http_protocol import LimitedProtocol
from deploy.service.server import DrainingServer
from deploy.service.uvicorn_members import MEMBERS, VERSIONS

CLASSES: dict[str, type] = {
    "HttpToolsProtocol": httptools_impl.HttpToolsProtocol,
    "RequestResponseCycle": httptools_impl.RequestResponseCycle,
    "Server": uvicorn.Server,
}
SUBCLASSES: dict[str, type] = {"HttpToolsProtocol": LimitedProtocol, "Server": DrainingServer}


def test_the_installed_version_is_a_tested_one() -> None:
    assert version("uvicorn") in VERSIONS, (
        "run the tests of the service with it, then add it to uvicorn_members.VERSIONS"
    )


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
