"""Initial weights of a net, torchvision's published ones or a file's, and the report of what was loaded."""

from __future__ import annotations

import copy
import importlib
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nets.net_interface import net_parameters
from nets.support.channels import first_conv_name, fit_input_channels
from nets.support.errors import NetError
from nets.support.timm_builder import timm_converted
from nets.support.timm_names import PREFIX
from nets.support.torchvision_builder import is_vision_transformer, torchvision_names

Shape = tuple[int, ...]
State = dict[str, torch.Tensor]
# prefixes of the backbone in nets around one; published files have none
BACKBONES = ("backbone.", "backbone.net.", "backbone.net.net.")
SHOWN = 5  # names listed of each kind
LEAST_FITTING, WELL_FITTING = 0.5, 0.9  # `LoadReport.fitting` below which "finetune" is refused, or warns
AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\.")  # inception_v3's and googlenet's second heads
OLD_NAMES = (  # names in published files that differ from the net's: torchvision renamed some since
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_2\."), r"\g<1>3."),
    (re.compile(r"(^|\.)_(?=[a-z])"), r"\1"),  # the published EfficientNet-Lite's _blocks.0._bn1
)


@dataclass(frozen=True)
class KeptRows:
    """Classes that a net and a file have in common: `labels` is the file's label by the net's."""

    labels: Mapping[int, int]
    num_classes: int  # of the file, whose head has as many rows


@dataclass(frozen=True)
class LoadReport:
    """Whether each tensor of the net and of the file was loaded, by name."""

    loaded: tuple[str, ...]
    skipped_head: tuple[str, ...]  # left fresh on purpose
    skipped_shape: tuple[tuple[str, Shape, Shape], ...]  # name, shape in the file, shape in the net
    skipped_auxiliary: tuple[str, ...]  # of the file: second heads that the net does not have
    unexpected: tuple[str, ...]  # of the file, not in the net
    missing: tuple[str, ...]  # of the net, not in the file
    converted: tuple[str, ...]  # notes on tensors whose shape was converted; they are among the loaded
    kept_rows: tuple[int, ...] = ()  # labels of the classes whose rows of the head are the file's

    @property
    def num_tensors(self) -> int:
        """The number of the net's tensors."""
        return len(self.loaded) + len(self.skipped_head) + len(self.skipped_shape) + len(self.missing)

    @property
    def percent(self) -> float:
        """Share of the net's tensors that were loaded, from 0 to 100."""
        return 100 * len(self.loaded) / self.num_tensors if self.num_tensors else 0.0

    @property
    def fitting(self) -> float:
        """Share, from 0 to 1, of the tensors but the heads' that were loaded: of the file's or the net's, the larger.

        A backbone's weights all fit into a net around it, and a deeper net's fill a shallower one.
        """
        loaded, other_shape = len(self.loaded), len(self.skipped_shape)
        of_file, of_net = (loaded + other_shape + len(names) for names in (self.unexpected, self.missing))
        return loaded / min(of_file, of_net) if of_file and of_net else 0.0

    def summary(self) -> str:
        """Return what was loaded and what was not, one line each."""
        counts = f"loaded {len(self.loaded)} of {self.num_tensors} tensors of the net"
        lines = [f"{counts} ({self.percent:.1f} %)", *self.converted]
        if self.fitting < WELL_FITTING:
            lines.insert(0, "warning: these are the weights of another net: many of the tensors do not fit")
        head = "head, fresh but for the rows that are kept" if self.kept_rows else "new head, left fresh"
        kinds = {
            head: self.skipped_head,
            "other shape, left fresh": [_shape_text(*entry) for entry in self.skipped_shape],
            "not in the file, left fresh": self.missing,
            "only in the file": self.unexpected,
            "only in the file, auxiliary heads": self.skipped_auxiliary,
        }
        return "\n".join(lines + [f"{kind}: {_shorten(names)}" for kind, names in kinds.items() if names])


def published_state_dict(module_name: str, net_name: str, model_args: Mapping[str, Any]) -> State:
    """Download torchvision's best published ImageNet weights for a net, or for its backbone where it has a model_type.

    They are cached in torch's hub folder. Raises NetError: none are published, or the download fails.
    """
    import torchvision

    name = _published_name(module_name, net_name, model_args)
    if name not in torchvision_names():
        raise NetError(f'torchvision publishes no weights for "{name}"; name a weights file in pretrained_file instead')
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state_dict: State = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, HTTP error; a damaged download
        raise NetError(
            f"the published weights of {name} could not be downloaded from {weights.url} ({error}); "
            "fetch that file on another machine, place it in the folder pretrained_path and name it in pretrained_file"
        ) from error
    return state_dict


def published_normalization(
    module_name: str, net_name: str, model_args: Mapping[str, Any]
) -> dict[str, tuple[float, ...]]:
    """Return the mean and the std, per channel, that torchvision's published weights of a net take.

    GoogLeNet's and Inception's were trained with others, into which the nets turn these.
    """
    import torchvision

    name = _published_name(module_name, net_name, model_args)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return {"mean": tuple(preset.mean), "std": tuple(preset.std)}


def reordered_head(net: nn.Module, state_dict: State, rows: Sequence[int], example: torch.Tensor) -> State:
    """Return a state dict whose classes stand in another order: class i is the class `rows[i]` of before.

    `example` is an input (1, C, H, W) on which the outputs of both are compared. Raises NetError where the rows of the
    head's tensors are not the classes, or the weights do not fit.
    """
    heads, order = _head_prefixes(net), torch.tensor(rows)
    moved = {
        name: value[order] if _clean_name(name).startswith(heads) and value.shape[:1] == order.shape else value
        for name, value in state_dict.items()
    }
    before, after = (_outputs(net, state, example) for state in (state_dict, moved))
    if not torch.allclose(before[:, order], after, rtol=1e-4, atol=1e-5):
        raise NetError(
            f"the classes of {type(net).__name__} cannot be put into another order: their rows are not in its head "
            f'({", ".join(heads)}); give the lists the order of the weights, or use train_mode "finetune"'
        )
    return moved


def load_start_weights(
    net: nn.Module, state_dict: Mapping[str, Any], *, new_head: bool, kept_rows: KeptRows | None = None
) -> LoadReport:
    """Copy weights into the net, in place, and report on every name; the net stays unchanged where this raises.

    new_head=True (finetune): the head stays fresh, a first convolution is converted between 1 and 3 channels, a ViT's
    position embeddings are interpolated, weights of a bare backbone are found for a net around one, and what does not
    match is reported; `kept_rows` are the rows of the head to take nevertheless. new_head=False (update): all must
    match.
    A net with other heads than its last linear or convolutional layer lists their prefixes in `head_names`.
    Raises NetError: not a state dict, nothing loaded, or (update) any difference.
    """
    offered = _check_state_dict(state_dict)
    targets = {_clean_name(name): tensor for name, tensor in net.state_dict().items()}
    heads = _head_prefixes(net) if new_head else ()
    offered, note = _without_prefix(offered, targets, may_wrap=new_head)
    notes = [note] if note else []
    if new_head and any(name not in offered or offered[name].shape != tensor.shape for name, tensor in targets.items()):
        offered = timm_converted(net, offered)
    matched, report = _match(net, offered, targets, heads, converts_shapes=new_head)
    report = replace(report, converted=(*notes, *report.converted))
    _check_anything_fits(net, report, offered, targets)
    if not new_head:
        _check_everything_fits(net, report)
    elif report.fitting < LEAST_FITTING:
        raise NetError(
            f"the weights are those of another net than {type(net).__name__}: {report.summary()}\n"
            "name the net that they were trained for (model_net_name, model_args), or their file"
        )
    head = _head_with_rows(offered, targets, heads, kept_rows) if kept_rows and kept_rows.labels else {}
    if kept_rows and head:
        report = replace(report, kept_rows=tuple(sorted(kept_rows.labels)))
        if all(len(value) == len(report.kept_rows) for value in head.values()):  # nothing of it is fresh
            report = replace(report, loaded=(*report.loaded, *head), skipped_head=())
    with torch.no_grad():
        for name, value in (matched | head).items():
            targets[name].copy_(value)
    return report


def adopt_weights(net: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Make a file's tensors the net's own, without a copy: for a net that predicts.

    All must match, as in `load_start_weights` with new_head=False; other dtypes are converted to the net's. For a
    resnet34 it takes 0.01 s of processor time; copying, and restoring the layout that the file has, took 0.5.
    Raises NetError; the net then stays unchanged.
    """
    state = net.state_dict()  # with the versions of its modules, which some of torchvision's ask for
    own_names = {_clean_name(name): name for name in state}
    targets = {name: state[own_name] for name, own_name in own_names.items()}
    offered, _ = _without_prefix(_check_state_dict(state_dict), targets, may_wrap=False)
    matched, report = _match(net, offered, targets, (), converts_shapes=False)
    _check_anything_fits(net, report, offered, targets)
    _check_everything_fits(net, report)
    state.update({own_names[name]: value.to(targets[name].dtype) for name, value in matched.items()})
    net.load_state_dict(state, assign=True)


@torch.no_grad()
def _outputs(net: nn.Module, state_dict: State, example: torch.Tensor) -> torch.Tensor:
    """Return the output (1, K) of a copy of the net with other weights, in eval mode. Raises NetError."""
    copied = copy.deepcopy(net).eval()
    load_start_weights(copied, state_dict, new_head=False)
    output: torch.Tensor = copied(example).float()
    return output


def _published_name(module_name: str, net_name: str, model_args: Mapping[str, Any]) -> str:
    """Return torchvision's name of a net, or of its backbone: its model_type, or what its file's BACKBONES say."""
    defaults = {parameter.name: parameter.default for parameter in net_parameters(module_name, net_name)}
    if "model_type" in defaults:
        name: str = model_args.get("model_type", defaults["model_type"])
        # torchvision's net of a timm net's name is another one
        return f"{PREFIX}{name}" if module_name == "timm_module" else name
    backbones: dict[str, str] = getattr(importlib.import_module(f"nets.{module_name}"), "BACKBONES", {})
    return backbones.get(net_name, net_name)


def _check_state_dict(state_dict: Mapping[str, Any]) -> State:
    """Return the tensors by their clean names. Raises NetError for anything but a non-empty state dict."""
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise NetError("the weights are no state dict: a non-empty mapping of names to tensors is needed")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise NetError(
                f"the weights are no state dict: the entry {name!r} is of type {type(value).__name__}, not a tensor"
            )
    return {_clean_name(name): value for name, value in state_dict.items() if name != "n_averaged"}  # AveragedModel's


def _clean_name(name: str) -> str:
    """Strip what DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") add, and update old names."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name[len("module.") :]
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _without_prefix(offered: State, targets: State, *, may_wrap: bool) -> tuple[State, str]:
    """Return the weights under the names of which most fit the net, and a note where a prefix was left out.

    `may_wrap`: a bare backbone's weights may lie below one of BACKBONES in the net.
    """
    parts = [name.split(".") for name in offered]
    counts = Counter(".".join(names[:depth]) + "." for names in parts for depth in range(1, min(len(names), 4)))
    prefixes = ["", *(prefix for prefix, count in counts.items() if 2 * count >= len(offered))]
    best, note, most = offered, "", -1
    for prefix in prefixes:
        stripped = {name.removeprefix(prefix): value for name, value in offered.items()}
        places = ("", *BACKBONES) if may_wrap else ("",)
        for state in ({f"{place}{name}": value for name, value in stripped.items()} for place in places):
            fitting = sum(name in targets and targets[name].shape == value.shape for name, value in state.items())
            if fitting > most:
                best, most = state, fitting
                note = f'the prefix "{prefix}" of the file\'s names was left out' if prefix else ""
    return best, note


def _head_prefixes(net: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the head: the net's own `head_names`, else its last linear or convolutional layer."""
    for path, module in net.named_modules():
        if (own := getattr(module, "head_names", None)) is not None:
            return tuple(_clean_name(f"{path}.{name}.".lstrip(".")) for name in own)
    layers = [name for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    return (_clean_name(f"{layers[-1]}."),) if layers else ()


def _head_with_rows(offered: State, targets: State, heads: tuple[str, ...], rows: KeptRows) -> State:
    """Return the head's tensors, the rows of some classes the file's; {} unless every one has a row for each class."""
    mine, theirs = list(rows.labels), list(rows.labels.values())
    head: State = {}
    for name, target in targets.items():
        value = offered.get(name)
        if not name.startswith(heads):
            continue
        if value is None or value.shape != (rows.num_classes, *target.shape[1:]):
            return {}
        head[name] = target.clone()
        head[name][mine] = value[theirs].to(target)
    return head


def _match(
    net: nn.Module, offered: State, targets: State, heads: tuple[str, ...], *, converts_shapes: bool
) -> tuple[State, LoadReport]:
    """Return the tensors to copy, by the net's names, and the report on every name of the net and of the file."""
    body = [name for name in targets if not name.startswith(heads)]
    matched: State = {}
    converted: list[str] = []
    other_shape: list[tuple[str, Shape, Shape]] = []
    for name in body:
        if name not in offered:
            continue
        value, target = offered[name], targets[name]
        if value.shape != target.shape and converts_shapes:
            value, note = _convert_shape(net, name, value, target)
            converted += [note] if note else []
        if value.shape == target.shape:
            matched[name] = value
        else:
            other_shape.append((name, tuple(value.shape), tuple(target.shape)))
    extra = [name for name in offered if name not in targets and not name.startswith(heads)]
    return matched, LoadReport(
        loaded=tuple(matched),
        skipped_head=tuple(name for name in targets if name.startswith(heads)),
        skipped_shape=tuple(other_shape),
        skipped_auxiliary=tuple(name for name in extra if AUXILIARY.match(name)),
        unexpected=tuple(name for name in extra if not AUXILIARY.match(name)),
        missing=tuple(name for name in body if name not in offered and not _is_counter(name)),
        converted=tuple(converted),
    )


def _convert_shape(net: nn.Module, name: str, value: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Return a tensor converted to the target's shape and a note; unchanged and "" where it cannot be converted."""
    first_conv = first_conv_name(net)
    if first_conv is not None and name == _clean_name(f"{first_conv}.weight") and value.ndim == 4:
        fitted = fit_input_channels(value, target.shape[1])  # (O, I, kH, kW) to (O, I', kH, kW)
        if fitted is not None and fitted.shape == target.shape:
            given, taken = value.shape[1], target.shape[1]
            ways = {1: "summed over the input channels", 3: "repeated, a third each"}
            way = ways.get(taken, f"repeated in turn, {given}/{taken} of each")
            return fitted, f"{name}: {given} input channels became {taken}, {way}"
    if name == "encoder.pos_embedding" and is_vision_transformer(net):
        from torchvision.models.vision_transformer import interpolate_embeddings

        try:
            state = OrderedDict({name: value})
            fitted = interpolate_embeddings(net.image_size, net.patch_size, state)[name]  # (1, 1 + patches, D)
        except ValueError:  # not a square of patches: reported as of another shape
            return value, ""
        if fitted.shape == target.shape:
            return fitted, f"{name}: interpolated from {value.shape[1] - 1} to {target.shape[1] - 1} patches"
    return value, ""


def _check_anything_fits(net: nn.Module, report: LoadReport, offered: State, targets: State) -> None:
    parameters = {_clean_name(name) for name, _ in net.named_parameters()}
    if parameters.isdisjoint(report.loaded):
        raise NetError(
            f"the weights fit nothing in {type(net).__name__}: the file has {_shorten(offered)}; "
            f"the net has {_shorten(targets)}"
        )


def _check_everything_fits(net: nn.Module, report: LoadReport) -> None:
    kinds = {
        "missing in the file": report.missing,
        "unexpected in the file": report.unexpected,
        "of another shape": [_shape_text(*entry) for entry in report.skipped_shape],
    }
    problems = [f"{len(names)} {kind}: {_shorten(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise NetError(
            f"the weights do not match {type(net).__name__}: {'; '.join(problems)}. "
            'train_mode "update" needs all of them; "finetune" takes what fits and a new head'
        )


def _is_counter(name: str) -> bool:
    """Return whether it is batch norm's counter, which files from before torch 0.4.1 lack and torch lets pass."""
    return name.endswith("num_batches_tracked")


def _shape_text(name: str, in_file: Shape, in_net: Shape) -> str:
    return f"{name} (file {in_file}, net {in_net})"


def _shorten(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:SHOWN])
    return f"{shown}, ... and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
