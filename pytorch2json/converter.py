"""The converter from a trained net to a network description and its weights.

torch.export makes a graph of ATen operators; `operators/table.py` has the layers of each. What depends on weights alone
is computed here, and batch norms are folded into the convolutions before them.
"""

from __future__ import annotations

import copy
import itertools
import logging
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from common.formatting import first_line
from pytorch2json.graph import Builder, Constant, Graph, Value, size_of
from pytorch2json.network import DescriptionError, Network, Parity, Profile, WeightsFile
from pytorch2json.operators.table import OPERATORS
from pytorch2json.tracing import out_of_place

PRODUCER = "classic-trainer pytorch2json"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}  # of the parity sample; half precision rounds every layer
BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
CONVOLUTIONS = ("aten.conv2d.default", "aten.conv1d.default", "aten.conv_transpose2d.input")
NO_MODULE = ("", "the net")


def convert(
    net: nn.Module,
    parity_input: torch.Tensor,
    *,
    precision: str = "fp32",
    profile: tuple[int, int, int] = (1, 8, 64),
    metadata: Mapping[str, Any] | None = None,
    output_name: str = "logits",
) -> tuple[Network, dict[str, torch.Tensor]]:
    """Return the description and the weights of a net from images (N, ...) to outputs (N, ...), not yet verified.

    `parity_input` (n, ...) is real input, float32 or uint8; it is kept with the net's outputs for it. In fp16 and bf16
    weights and tensors are rounded, input and output stay float32, and what the net itself computes in float32, layer
    norms, softmax, powers and exponentials too, stays in float32 between casts.
    Raises DescriptionError: an operator that cannot be described, a batch size that the net fixes, fp16 overflow.
    """
    net = net.eval()
    with torch.inference_mode():
        expected = net(parity_input).float()
    exported = _export(net, parity_input, DTYPES[precision], profile)
    parity = Parity(input="parity.images", output=f"parity.{output_name}", tolerance=TOLERANCES[precision])
    graph = Graph(tensors={parity.input: parity_input, parity.output: expected})
    traced = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, torch.fx.GraphModule))
    images, output = _walk(exported, _originals(net, exported), _module_paths(exported, traced), graph)
    output = graph.rename(output, output_name)
    network = Network(
        producer=PRODUCER,
        precision=precision,  # type: ignore[arg-type]  # checked by the lookup above
        inputs=(images.tensor(),),
        outputs=(output.tensor(),),
        profile=Profile(min=profile[0], best=profile[1], max=profile[2]),
        weights=WeightsFile(file="model.safetensors", sha256="0" * 64),  # set by write_description
        parity=parity,
        facts=dict(metadata or {}),
        layers=graph.finished(output),
    )
    used = {name for layer in network.layers for name in layer.weights.values()}
    return network, {name: tensor for name, tensor in graph.tensors.items() if name in used or "parity." in name}


class _Typed(nn.Module):
    """A net in half precision between a float32 (or uint8) input and a float32 output."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).to(dtype)
        self._dtype = dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.net(images.to(self._dtype) if images.is_floating_point() else images)
        return outputs.float()


class _Plain(nn.Module):
    """A net under the same prefix as `_Typed`, its output as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.net(images)
        return outputs


def _export(
    net: nn.Module, images: torch.Tensor, dtype: torch.dtype, profile: tuple[int, int, int]
) -> torch.export.ExportedProgram:
    typed: nn.Module = _Plain(net) if dtype == torch.float32 else _Typed(net, dtype)
    example = images[:1].repeat(3, *[1] * (images.ndim - 1))  # three: one and two are sizes that nets know
    batch = torch.export.Dim("batch", min=1, max=max(4, profile[2]))
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad(), out_of_place(typed):
            warnings.simplefilter("ignore")  # of deprecations inside torch and torchvision
            exported = torch.export.export(typed.eval(), (example,), dynamic_shapes=({0: batch},), strict=False)
            return exported.run_decompositions({})
    except Exception as error:  # torch.export's errors have no common kind
        why = first_line(error)
        raise DescriptionError(f"torch.export cannot take the net with a free batch size: {why}") from error
    finally:
        log.setLevel(level)


def _originals(net: nn.Module, exported: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Return by placeholder the net's own float32 weights, so that nothing is folded from rounded ones."""
    own = {f"net.{name}": value.detach() for name, value in [*net.named_parameters(), *net.named_buffers()]}
    signature = exported.graph_signature
    originals = {}
    for placeholder, name in [*signature.inputs_to_parameters.items(), *signature.inputs_to_buffers.items()]:
        originals[placeholder] = own[name]
    for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
        originals[placeholder] = exported.constants[name]
    return originals


def _walk(
    exported: torch.export.ExportedProgram,
    originals: Mapping[str, torch.Tensor],
    paths: Mapping[Any, str],
    graph: Graph,
) -> tuple[Value, Value]:
    """Add the layers of all nodes to the graph; return the net's input and output."""
    results: dict[Any, Any] = {}
    norms = _foldable_norms(exported.graph)
    images: Value | None = None
    nodes: list[Any] = list(exported.graph.nodes)
    for node in nodes:
        if node.op == "placeholder" and node.name in originals:
            results[node] = Constant(originals[node.name], node.meta["val"].dtype, _weight_name(exported, node))
        elif node.op == "placeholder":
            images = results[node] = graph.input("images", node.meta["val"])
        elif node.op == "call_function":
            results[node] = _describe(node, results, norms, paths[node], graph)
        elif node.op == "output":
            output = results[node.args[0][0]]
    if images is None or not isinstance(output, Value) or output.name == "images":
        raise DescriptionError("the net's output does not depend on its input")
    return images, output


def _describe(node: Any, results: dict[Any, Any], norms: dict[Any, Any], path: str, graph: Graph) -> Any:
    """Add the layers of a node; return its result: a Value, a Constant, a size or a tuple of these."""
    target = str(node.target)
    args = torch.fx.node.map_arg(node.args, lambda arg: results[arg])
    kwargs = torch.fx.node.map_arg(node.kwargs, lambda arg: results[arg])
    if node.target is operator.getitem:
        return args[0][args[1]]
    if target.startswith("aten._assert") or target in ("aten.sym_constrain_range_for_size.default",):
        return None
    if target == "aten.sym_size.int" or isinstance(node.meta.get("val"), (int, torch.SymInt)):
        return size_of(node.meta["val"])
    if target in ("aten.new_zeros.default", "aten.new_ones.default", "aten.new_full.default"):
        args = (torch.empty(0, dtype=node.meta["val"].dtype), *args[1:])  # only the tensor's dtype and device count
    values = [value for value in _flat([args, kwargs]) if isinstance(value, Value)]
    if not values and all(not isinstance(value, str) or "N" not in value for value in _flat([args, kwargs])):
        return _computed(node, args, kwargs)
    if node in norms.values():
        return (results[node.args[0]],)  # in its convolution already
    builder = Builder(graph, path, _is_leaf(node), node.meta["val"])
    folded = norms.get(node)
    if folded is not None:
        norm = [results[arg] if isinstance(arg, torch.fx.Node) else arg for arg in folded.args[1:]]
        kwargs = {**kwargs, "norm": norm}
        builder.output_name = _path(folded)
    describe = OPERATORS.get(target)
    try:
        if describe is None:
            raise DescriptionError(f"operator {target} cannot be described")
        return describe(builder, *args, **kwargs)
    except DescriptionError as error:
        class_name = f" ({_class_name(node).rpartition('.')[2]})" if path == _path(node) else ""
        where = f'module "{path or NO_MODULE[1]}"{class_name}'
        raise DescriptionError(f"{where}: {error}; {_source_line(node)}") from error


def _computed(node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
    """Return the result of a node that depends on weights alone."""

    def unwrap(value: Any) -> Any:
        if isinstance(value, Constant):
            return value.tensor
        if isinstance(value, (list, tuple)):
            return type(value)(map(unwrap, value))
        return value

    assert callable(node.target)
    with torch.no_grad():
        result = node.target(*unwrap(args), **{key: unwrap(value) for key, value in kwargs.items()})
    if isinstance(result, (tuple, list)):
        return tuple(Constant(part, meta.dtype) for part, meta in zip(result, node.meta["val"], strict=True))
    return Constant(result, node.meta["val"].dtype)


def _foldable_norms(graph: Any) -> dict[Any, Any]:
    """Return by convolution the batch norm that is the only reader of its output."""
    found = {}
    for node in graph.nodes:
        if str(node.target) != BATCH_NORM:
            continue
        source = node.args[0]
        if str(source.target) in CONVOLUTIONS and len(source.users) == 1:
            found[source] = node
    return found


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in _flat(part)]
    if isinstance(value, dict):
        return _flat(list(value.values()))
    return [value]


def _module_paths(exported: torch.export.ExportedProgram, traced: tuple[str, ...]) -> dict[Any, str]:
    """Return the module of each node; `traced` are the starts of paths within nets that torch.fx has traced.

    Those nets do not record which module called a function. It is the module of the weight that the function takes; and
    since calls nest, a node between two nodes of a module is within it.
    """
    nodes: list[Any] = [node for node in exported.graph.nodes if node.op == "call_function"]
    paths = {node: _path(node) for node in nodes}
    if not traced:
        return paths
    known = {node: paths[node] for node in nodes if _is_leaf(node) or paths[node].startswith(traced)}
    for node in nodes:
        weights = [_weight_name(exported, arg) for arg in node.all_input_nodes if arg.op == "placeholder"]
        if node not in known and (found := [name for name in weights if name.startswith(traced)]):
            known[node] = found[0].rpartition(".")[0]
    before, after = _nearest(nodes, known), _nearest(nodes[::-1], known)
    for node in nodes:
        both = zip(before[node].split("."), after[node].split("."), strict=False)
        around = ".".join(part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
        if f"{around}.".startswith(traced):
            paths[node] = around
    return paths


def _nearest(nodes: Sequence[Any], known: Mapping[Any, str]) -> dict[Any, str]:
    """Return for each node its known path, or that of the last node before it that has one."""
    latest, found = "", {}
    for node in nodes:
        latest = found[node] = known.get(node, latest)
    return found


def _path(node: torch.fx.Node) -> str:
    path: str = list(node.meta.get("nn_module_stack", {}).values() or [NO_MODULE])[-1][0]
    return path.removeprefix("net").removeprefix(".")


def _is_leaf(node: torch.fx.Node) -> bool:
    """Return whether the node's module is one of torch's own; its name then is the layer's."""
    return _class_name(node).startswith("torch.nn.modules.")


def _class_name(node: torch.fx.Node) -> str:
    return str(list(node.meta.get("nn_module_stack", {}).values() or [NO_MODULE])[-1][1])


def _weight_name(exported: torch.export.ExportedProgram, node: torch.fx.Node) -> str:
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return names.get(node.name, "").removeprefix("net.")


def _source_line(node: torch.fx.Node) -> str:
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    calls = [line.strip() for line in lines if line.strip().startswith("File ")]
    return f"called in {calls[-1]}" if calls else "its source line is not known"
