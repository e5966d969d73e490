"""Nets by file and function name: the names and arguments that a config may use, and the net built from them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nets
from common.formatting import did_you_mean
from nets.support.errors import NetError

if TYPE_CHECKING:
    from torch import nn

NETS_DIR = Path(__file__).resolve().parent
CONFIG_KEYS = ("num_classes", "num_channels", "img_height", "img_width")
FROM_THE_CONFIG = {**{key: key for key in CONFIG_KEYS}, "in_size": "img_height"}  # a net's parameter: its config key
NOT_NETS = ("__init__", "net_interface")
_further: list[Path] = []  # folders of a user's own program


@dataclass(frozen=True)
class NetParameter:
    """One parameter of a net's function as its file declares it; the annotation is "" where there is none."""

    name: str
    annotation: str
    required: bool
    default: Any = None
    takes_any: bool = False  # it is **kwargs


def build_net(
    module_name: str,
    net_name: str,
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int,
    img_width: int,
    model_args: Mapping[str, Any],
) -> nn.Module:
    """Build the net `net_name` of `nets/<module_name>.py`: images (N, C, H, W) to what its task needs.

    For classification that is logits (N, num_classes). Of the four values of the config the net gets those that its
    signature names; `in_size` gets img_height. Its class attribute `task` names its task; without one it is
    "classification". Raises NetError: unknown names, unknown or wrongly typed model_args, an input too small for the
    net.
    """
    check_model_args(module_name, net_name, model_args)
    values = {
        "num_classes": num_classes,
        "num_channels": num_channels,
        "img_height": img_height,
        "img_width": img_width,
    }
    accepted = {parameter.name for parameter in net_parameters(module_name, net_name)}
    keys = {name: key for name, key in FROM_THE_CONFIG.items() if name in accepted}
    for key, value in values.items():
        if key in keys.values() and (type(value) is not int or value < 1):
            raise NetError(f"{key} must be a whole number of at least 1, got {value!r}")
    arguments = {name: values[key] for name, key in keys.items()}
    maker = getattr(importlib.import_module(f"nets.{module_name}"), net_name)
    if maker.__module__ != f"nets.{module_name}":
        file = _file(module_name, net_name)
        raise NetError(f"{file}: {net_name} comes from {maker.__module__}; only nets defined here are built")
    try:
        net: nn.Module = maker(**arguments, **model_args)
    except NetError:
        raise
    except ValueError as error:
        raise NetError(f"{_file(module_name, net_name)}: {net_name}: {error}") from error
    return net


def net_task(module_name: str, net_name: str) -> str:
    """Return the task that a net is for: the attribute `task` of its class, "classification" where there is none.

    The class is the net itself, or the return annotation of the function that makes it. Raises NetError.
    """
    check_names(module_name, net_name)
    module = importlib.import_module(f"nets.{module_name}")
    maker = getattr(module, net_name)
    made = maker if isinstance(maker, type) else getattr(maker, "__annotations__", {}).get("return")
    made = getattr(module, made, None) if isinstance(made, str) else made
    task: str = getattr(made, "task", "classification")
    return task


def declared_task(module_name: str, net_name: str) -> str:
    """Return what `net_task` returns, read from the net's file without importing it; "" where it is not in the file.

    It is there as `task = "..."` in the net's class, or in that of the return annotation of its function.
    Raises NetError.
    """
    check_names(module_name, net_name)
    tree = ast.parse(_module_path(module_name, net_name).read_text(encoding="utf-8"))
    named = {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    node = named[net_name]
    if isinstance(node, ast.FunctionDef):
        made = named.get(ast.unparse(node.returns).strip("'\"")) if node.returns else None
        if not isinstance(made, ast.ClassDef):
            return ""
        node = made
    for _ in named:  # the class, then its bases in this file
        for line in node.body:
            if isinstance(line, ast.Assign) and [ast.unparse(to) for to in line.targets] == ["task"]:
                return str(_literal(line.value))
        bases = [named[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in named]
        if not bases or not isinstance(bases[0], ast.ClassDef):
            return ""
        node = bases[0]
    return ""


def add_folder(folder: Path) -> None:
    """Let the files of another folder be modules of nets, too, for as long as this process runs.

    Only a program of the user's own calls it, with its own folder. Raises NetError where a name is taken in `nets/`.
    """
    for path in sorted(folder.glob("*.py")):
        if (NETS_DIR / path.name).exists() and path.stem != "__init__":
            raise NetError(f"{path}: nets/ has a module of this name already; choose another")
    if folder not in _further:
        _further.append(folder)
        nets.__path__.append(str(folder))


def available_nets() -> dict[str, list[str]]:
    """Return the nets of every module of `nets/` that has any, both sorted. Nothing is imported."""
    found = {}
    for path in sorted(_files(), key=lambda path: path.stem):
        if path.stem.startswith("_") or path.stem in NOT_NETS:
            continue
        try:
            names = sorted(_declared_nets(path))
        except NetError:  # a file that does not parse is reported when a config names it
            continue
        if names:
            found[path.stem] = names
    return found


def check_names(module_name: str, net_name: str) -> None:
    """Raise NetError unless `nets/<module_name>.py` declares the public net `net_name`. Nothing is imported."""
    net_parameters(module_name, net_name)


def check_model_args(module_name: str, net_name: str, model_args: Mapping[str, Any]) -> None:
    """Raise NetError with every unknown, missing and wrongly typed entry of model_args. Nothing is imported."""
    parameters = {parameter.name: parameter for parameter in net_parameters(module_name, net_name)}
    own = {name: parameter for name, parameter in parameters.items() if name not in FROM_THE_CONFIG}
    takes_any = any(parameter.takes_any for parameter in own.values())
    problems = []
    for name, value in model_args.items():
        if name in FROM_THE_CONFIG:
            problems.append(f"model_args.{name} is not allowed, it comes from the config's {FROM_THE_CONFIG[name]}")
        elif name in own and not own[name].takes_any:
            if own[name].annotation and not _fits(value, ast.parse(own[name].annotation, mode="eval").body):
                problems.append(f"model_args.{name} must be {own[name].annotation}, got {value!r}")
        elif not takes_any:
            hint = did_you_mean(name, own, ignore_case=True)
            problems.append(f'unknown model_args "{name}"{hint}; {_list_allowed(own.values())}')
    problems += [
        f"model_args.{name} is required ({parameter.annotation})"
        for name, parameter in own.items()
        if parameter.required and name not in model_args
    ]
    if problems:
        raise NetError(f"{_file(module_name, net_name)}: {net_name}: " + "; ".join(problems))


def net_parameters(module_name: str, net_name: str) -> list[NetParameter]:
    """Return the parameters of a net, read from its file without importing it. Raises NetError for unknown names."""
    nets = _declared_nets(_module_path(module_name, net_name))
    if not _is_public_identifier(net_name):
        raise NetError(f"model_net_name must be a plain public name (letters, digits, _), got {net_name!r}")
    if net_name not in nets:
        homes = _modules_with(net_name)
        hint = did_you_mean(net_name, nets, ignore_case=True)
        hint = f'; did you mean "model_module_name": "{homes[0]}"?' if homes else hint
        names = ", ".join(sorted(nets)) or "none"
        raise NetError(
            f'{_file(module_name, net_name)} has no net "{net_name}" (model_net_name){hint}; it has: {names}'
        )
    return nets[net_name]


def _modules_with(net_name: str) -> list[str]:
    return [module for module, nets in available_nets().items() if net_name in nets]


def _module_path(module_name: str, net_name: str) -> Path:
    if not _is_public_identifier(module_name):
        raise NetError(
            "model_module_name must be the name of a file in nets/ without .py (letters, digits, _), "
            f"got {module_name!r}"
        )
    paths = {path.stem: path for path in _files()}  # exact, also where names ignore case
    if module_name in NOT_NETS or module_name not in paths:
        names = available_nets()
        homes = _modules_with(net_name)
        hint = f'; did you mean "{homes[0]}"?' if homes else did_you_mean(module_name, names, ignore_case=True)
        raise NetError(f'nets/ has no module "{module_name}" (model_module_name){hint}; it has: {", ".join(names)}')
    return paths[module_name]


def _file(module_name: str, net_name: str) -> str:
    """Return a net's file for messages, such as "nets/resnet_module.py"."""
    return _shown(_module_path(module_name, net_name))


def _shown(path: Path) -> str:
    return f"{'nets' if path.parent == NETS_DIR else path.parent.name}/{path.name}"


def _files() -> list[Path]:
    return [path for folder in (NETS_DIR, *_further) for path in folder.glob("*.py")]


def _is_public_identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("_")


def _declared_nets(path: Path) -> dict[str, list[NetParameter]]:
    """Return the nets of a file: its public functions and classes with a parameter num_classes or num_channels."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise NetError(f"{_shown(path)}:{error.lineno}: {error.msg}") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    nets = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            parameters = _parameters(node.args)
        elif isinstance(node, ast.ClassDef) and (constructor := _constructor(node, classes)):
            parameters = _parameters(constructor.args)[1:]  # without self
        else:
            continue
        is_net = any(parameter.name in ("num_classes", "num_channels") for parameter in parameters)
        if is_net and not node.name.startswith("_"):
            nets[node.name] = parameters
    return nets


def _constructor(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> ast.FunctionDef | None:
    """Return __init__ of a class or of its bases in the same file; None where there is none."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return inner
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and classes[base.id] is not node:
            return _constructor(classes[base.id], classes)
    return None


def _parameters(arguments: ast.arguments) -> list[NetParameter]:
    positional = arguments.posonlyargs + arguments.args
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    parameters = []
    for argument, default in pairs:
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        parameters.append(NetParameter(argument.arg, annotation, default is None, _literal(default)))
    if arguments.kwarg:
        parameters.append(NetParameter(arguments.kwarg.arg, "", required=False, takes_any=True))
    return parameters


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:  # a default that is computed
        return ast.unparse(node) if node else None


def _fits(value: object, annotation: ast.expr) -> bool:
    """Return whether a JSON value has the annotated type; an annotation of no JSON type accepts every value."""
    if isinstance(annotation, ast.BinOp):  # A | B
        return _fits(value, annotation.left) or _fits(value, annotation.right)
    if isinstance(annotation, ast.Constant):
        if isinstance(annotation.value, str):  # a quoted annotation
            return _fits(value, ast.parse(annotation.value, mode="eval").body)
        return value is annotation.value  # None
    if isinstance(annotation, ast.Subscript):
        return _fits_subscript(value, annotation)
    name = ast.unparse(annotation)
    if name in ("int", "float") and isinstance(value, bool):
        return False
    plain: dict[str, type | tuple[type, ...]] = {
        "int": int,
        "float": (int, float),
        "str": str,
        "bool": bool,
        "dict": dict,
        "list": list,
        "tuple": (list, tuple),
    }
    return name not in plain or isinstance(value, plain[name])


def _fits_subscript(value: object, annotation: ast.Subscript) -> bool:
    outer = ast.unparse(annotation.value).split(".")[-1]
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if outer == "Literal":
        allowed = [ast.literal_eval(choice) for choice in inner]
        return any(type(value) is type(choice) and value == choice for choice in allowed)
    if outer in ("Optional", "Union"):
        return (outer == "Optional" and value is None) or any(_fits(value, choice) for choice in inner)
    if outer in ("list", "tuple", "Sequence"):
        if not isinstance(value, (list, tuple)):
            return False
        one_for_all = len(inner) == 1 or ast.unparse(inner[-1]) == "..."
        kinds = [inner[0]] * len(value) if one_for_all else inner
        return len(kinds) == len(value) and all(_fits(item, kind) for item, kind in zip(value, kinds, strict=True))
    return isinstance(value, dict) if outer in ("dict", "Mapping") else True


def _list_allowed(parameters: Iterable[NetParameter]) -> str:
    shown = [
        f"{parameter.name} ({parameter.annotation or 'any'}"
        + ("" if parameter.required else f", {parameter.default!r}")
        + ")"
        for parameter in parameters
    ]
    return f"allowed: {', '.join(shown)}" if shown else "this net takes none"
