"""TorchScript, which is a program: loaded only where loading runs none of it, and run only where it computes alone."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.runtimes import BackendError, reason

if TYPE_CHECKING:
    import torch

RUNS_AT_LOADING = {
    re.compile(rb"__setstate__"): "code that runs when it is loaded (__setstate__)",
    re.compile(rb"torch\W+classes"): "an object of C++ (torch.classes)",
}
NAMESPACES = {"aten", "prim", "torchvision"}  # of what nets compute with; others speak to networks, files, profilers
DEEDS = {"aten::save", "aten::from_file"}  # the operators of those namespaces that touch files
UNKNOWN = {"prim::CallMethod", "prim::CallFunction", "prim::PythonOp"}  # what inlining has not resolved can be anything
REMOTE = "prim::rpc_"


def read_script(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Read what torch.jit.save wrote, in evaluation mode.

    Raises BackendError where it is damaged, or does more than compute.
    """
    import torch

    try:
        problem = next(_runs_at_loading(path), "")
        if not problem:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.load` is")  # deprecated; what is deployed has to be read
                net = torch.jit.load(path, map_location=device).eval()
            hooks = any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
            problem = "a hook" if hooks else next(find_deeds(net.inlined_graph), "")
    except Exception as error:  # on a damaged file torch raises anything
        raise BackendError(f"{path}: it is damaged, or no TorchScript file: {reason(error)}") from error
    if problem:
        raise BackendError(f"{path}: it does more than compute, and was not run: it holds {problem}")
    return net


def find_deeds(graph: Any) -> Iterator[str]:
    """Say which operators of a graph, of its blocks, or of the graphs that it forks, are no computation on tensors."""
    for node in graph.nodes():
        kind: str = node.kind()
        is_known = kind.partition("::")[0] in NAMESPACES and kind not in DEEDS | UNKNOWN
        if not is_known or kind.startswith(REMOTE):
            yield f'the operator "{kind}"'
        for block in node.blocks():
            yield from find_deeds(block)
        for name in node.attributeNames():
            if node.kindOf(name) == "g":
                yield from find_deeds(node.g(name))


def _runs_at_loading(path: Path) -> Iterator[str]:
    """Say what in an archive torch would run while it loads it, whatever the record that it is in is called."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            content = archive.read(entry)
            yield from (what for pattern, what in RUNS_AT_LOADING.items() if pattern.search(content))
