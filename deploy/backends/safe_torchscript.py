"""TorchScript, which is a program: loaded only if loading runs no code, and run only if it has no side effects."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deploy.backends.base import BackendError, reason
from deploy.backends.torch_archive import rewrite_archive

if TYPE_CHECKING:
    import torch

RUNS_AT_LOADING = {
    re.compile(rb"__setstate__"): "code that runs when it is loaded (__setstate__)",
    re.compile(rb"torch\W+classes"): "an object of C++ (torch.classes)",
}
NAMESPACES = {"aten", "prim", "torchvision"}  # of what nets compute with; others use networks, files, profilers
# The operators of those namespaces that use files, or write raw text to the terminal.
SIDE_EFFECTS = {"aten::save", "aten::from_file", "prim::Print", "aten::warn"}
UNKNOWN = {  # calls that inlining has not resolved, and of methods that no operator names: they may run anything
    "prim::CallMethod",
    "prim::CallFunction",
    "prim::PythonOp",
    "prim::CreateObject",
    "prim::Enter",
    "prim::Exit",
}
OBJECTS = {"ClassType", "InterfaceType", "PyObjectType"}
REMOTE = "prim::rpc_"


def read_script(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Read a file of torch.jit.save, in evaluation mode.

    Raises BackendError where it is damaged, or does more than compute.
    """
    import torch

    try:
        copy = rewrite_archive(path)
        problem = next(_runs_at_loading(copy), "")
        if not problem:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.load` is")  # deprecated; what is deployed has to be read
                copy.seek(0)
                net = torch.jit.load(copy, map_location=device).eval()
            has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
            modules = {module._c._type().qualified_name() for module in net.modules()}
            problem = "a hook" if has_hooks else next(find_side_effects(net.inlined_graph, modules), "")
            outputs = [value.type() for value in net.inlined_graph.outputs()]
    except Exception as error:  # on a damaged file torch raises anything
        raise BackendError(f"{path}: it is damaged, or no TorchScript file: {reason(error)}") from error
    if problem:
        raise BackendError(f"{path}: it does more than compute, and was not run: it has {problem}")
    if [value.kind() for value in outputs] != ["TensorType"]:
        types = ", ".join(value.annotation_str for value in outputs)
        raise BackendError(f"{path}: it must return one tensor for a batch, and returns {types}")
    return net


def find_side_effects(graph: Any, modules: Set[str] = frozenset()) -> Iterator[str]:
    """Yield the operators with side effects of a graph, of its blocks, and of the graphs that it forks.

    Objects of other types than `modules` (names) are yielded too: their methods run where no operator calls them, for
    example when they are sorted.
    """
    values = [*graph.inputs(), *(value for node in graph.nodes() for value in node.outputs())]
    yield from (what for value in values for what in _objects(value.type(), modules))
    for node in graph.nodes():
        kind: str = node.kind()
        is_known = kind.partition("::")[0] in NAMESPACES and kind not in SIDE_EFFECTS | UNKNOWN
        if not is_known or kind.startswith(REMOTE):
            yield f'the operator "{kind}"'
        for block in node.blocks():
            yield from find_side_effects(block, modules)
        for name in node.attributeNames():
            if node.kindOf(name) == "g":
                yield from find_side_effects(node.g(name), modules)


def _objects(kind: Any, modules: Set[str]) -> Iterator[str]:
    """Yield the objects that a value of a type is or contains, but for a module by itself."""
    if kind.kind() in OBJECTS:
        if kind.annotation_str not in modules:
            yield f'an object of the type "{kind.annotation_str}"'
    else:
        yield from (what for part in kind.containedTypes() for what in _objects(part, frozenset()))


def _runs_at_loading(file: BinaryIO) -> Iterator[str]:
    """Yield what torch would run of an archive while it loads it, in a record of any name."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            content = archive.read(entry)
            yield from (what for pattern, what in RUNS_AT_LOADING.items() if pattern.search(content))
