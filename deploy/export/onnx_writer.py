"""A net as an ONNX file: by torch's current exporter, folded, checked, every node named by its module."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from artifacts.formats import METADATA_KEY
from artifacts.metadata import PRODUCER, ModelMetadata
from artifacts.onnx_file import read_onnx, sealed_onnx
from artifacts.outputs import INPUT_NAME, output_name
from common.formatting import first_line
from deploy.export.errors import ExportError
from deploy.export.formats import default_opset
from deploy.export.model_wrapper import export_program, free_sizes, quiet
from pytorch2json.tracing import out_of_place

if TYPE_CHECKING:
    from onnx_ir import Model

LARGEST_FILE = 2**31 - 2**20  # bytes; protobuf holds no more, so beyond it the weights go beside the file
SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's list of the modules around a node, and at its end the operator
KEPT_METADATA = (SCOPES, "namespace")  # the others have paths of the machine that made it


def onnx_model(net: nn.Module, images: torch.Tensor, metadata: ModelMetadata, opset: int | None = None) -> Model:
    """Return a net as an ONNX model with input "images" (any batch size) and the output, its nodes named by module.

    `images` is a real batch of at least two. The model's IR version is the first that has the opset: older runtimes
    refuse a newer one. Raises ExportError.
    """
    import onnx

    opset = opset or default_opset(metadata.precision)
    model = _translated(net, images, opset, metadata)
    _settle_weight_types(model.graph)
    _name_by_module(model.graph, {name for name, _ in [*net.named_parameters(), *net.named_buffers()]})
    _drop_metadata(model)
    model.producer_name = PRODUCER
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return model


def write_model(model: Model, path: Path, metadata: ModelMetadata) -> None:
    """Write an ONNX model with its metadata and its digest. Raises ExportError; OSError where it cannot be written."""
    import onnx

    model.metadata_props[METADATA_KEY] = metadata.to_json()
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    _save(model, path, external=size > LARGEST_FILE)
    write_digest(path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {first_line(error)}") from error


def write_digest(path: Path) -> None:
    """Write into an ONNX file's metadata the digest that `read_onnx` will check. Raises OSError."""
    path.write_bytes(sealed_onnx(path, read_onnx(path)))


def module_ends(nodes: Iterator[tuple[tuple[str, ...], str]]) -> dict[tuple[str, int], str]:
    """Return by module and number of its call the value that ends the call, from (modules around, value) of each node.

    The nodes come in execution order; a call of a module is a run of nodes inside it.
    """
    ends: dict[tuple[str, int], str] = {}
    calls: Counter[str] = Counter()
    inside: dict[str, str] = {}
    for modules, value in nodes:
        for module in [module for module in inside if module not in modules]:
            ends[module, calls[module]] = inside.pop(module)
            calls[module] += 1
        inside.update(dict.fromkeys(modules, value))
    return ends | {(module, calls[module]): value for module, value in inside.items()}


def scopes_of(node: Any) -> tuple[str, ...]:
    """Return the modules around a node of an ONNX file, outermost first, without the net itself."""
    text = next((prop.value for prop in node.metadata_props if prop.key == SCOPES), "[]")
    return tuple(module for module in ast.literal_eval(text)[:-1] if module)


def _translated(net: nn.Module, images: torch.Tensor, opset: int, metadata: ModelMetadata) -> Model:
    # From the net itself, torch.onnx would fall back on a trace that fixes the batch size where torch.export refuses.
    with out_of_place(net):
        program = export_program(net, images, metadata)
    # Its warnings are of itself; its result is checked and verified.
    with quiet("torch.onnx", "torch.export", "onnxscript"), torch.no_grad():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[output_name(metadata)],
                dynamic_shapes=(free_sizes(metadata),),  # their names in the file
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises anything, around what went wrong
            raise ExportError(f"torch.onnx cannot take the net: {first_line(error.__cause__ or error)}") from error
    assert made is not None  # None only where it writes the file itself
    return made.model


def _settle_weight_types(graph: Any) -> None:
    """Cast a convolution's weights to the type that it computes in: the exporter's folding leaves bf16 ones float32."""
    import onnx_ir

    for node in graph:
        if node.op_type != "Conv":
            continue
        wanted = node.outputs[0].dtype
        for value in node.inputs[1:]:
            if value is not None and value.const_value is not None and value.dtype != wanted:
                array = value.const_value.numpy().astype(wanted.numpy())
                value.const_value = onnx_ir.tensor(array, dtype=wanted, name=value.name)
                value.dtype = wanted


def _name_by_module(graph: Any, weights: set[str]) -> None:
    """Name nodes and their outputs `<module>/<operator>`, new constants `<node>.<input>`; weights keep their names."""
    taken: Counter[str] = Counter()
    waiting = set(graph.initializers) - weights
    for node in graph:
        name = f"{_module(node)}/{node.op_type}".removeprefix("/")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        for position, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = node.name if position == 0 else f"{node.name}:{position}"
        for position, value in enumerate(node.inputs):
            if value is None or value.name not in waiting:
                continue
            waiting.discard(value.name)
            norm = value.name.removesuffix(".weight_bias")  # a batch norm's that went into the convolution
            is_bias = norm != value.name and f"{norm}.bias" not in graph.initializers
            _rename(graph, value, f"{norm}.bias" if is_bias else f"{node.name}.{position}")


def _module(node: Any) -> str:
    """Return a node's module; a convolution with a batch norm in it has its own name, not the norm's."""
    weight = node.inputs[1] if node.op_type == "Conv" else None
    if weight is not None and weight.name and weight.name.endswith(".weight"):
        return str(weight.name).removesuffix(".weight")
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "['', '']"))
    return str(scopes[-2] if len(scopes) > 1 else "")


def _rename(graph: Any, value: Any, name: str) -> None:
    del graph.initializers[value.name]
    value.name = name
    value.const_value.name = name
    graph.initializers[name] = value


def _drop_metadata(model: Model) -> None:
    graph = model.graph
    for node in graph:
        for key in [key for key in node.metadata_props if key not in KEPT_METADATA]:
            del node.metadata_props[key]
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()


def _save(model: Model, path: Path, external: bool) -> None:
    import onnx_ir

    onnx_ir.save(model, path, external_data=f"{path.name}.data" if external else None)
