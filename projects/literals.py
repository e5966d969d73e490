"""Settings in a file: JSON, or antgo's Python, which is read and never run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from common.formatting import parse_json
from data_loader.samples import current_folder
from projects.errors import ProjectError


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a JSON or .py file. Raises ProjectError."""
    if not path.is_file():
        raise ProjectError(f"{path}: no such file{current_folder(str(path))}")
    try:
        text = path.read_text(encoding="utf-8")
        values = read_literals(path, text) if path.suffix == ".py" else parse_json(text)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ProjectError):
            raise
        raise ProjectError(f"{path}: cannot read it: {error}") from error
    if not isinstance(values, dict):
        raise ProjectError(f"{path}: must be an object with settings by name")
    return values


def read_literals(path: Path, text: str) -> dict[str, Any]:
    """Return the names that a Python text assigns literals to, or `dict(...)` of them. Raises ProjectError."""
    try:
        lines = ast.parse(text).body
    except SyntaxError as error:
        raise ProjectError(f"{path}:{error.lineno}: {error.msg}") from error
    values: dict[str, Any] = {}
    for line in lines:
        is_text = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
        if is_text and not values:  # the file's own description
            continue
        if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
            raise ProjectError(f"{path}:{line.lineno}: only assignments of literals are read, NAME = VALUE")
        values[line.targets[0].id] = _value(path, line.value)
    return values


def _value(path: Path, node: ast.expr) -> Any:
    """Return a literal's value, which JSON can hold. Raises ProjectError."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        names = [keyword.arg for keyword in node.keywords]
        if None not in names:
            return {keyword.arg: _value(path, keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        if all(isinstance(key, str) for key in keys):
            return dict(zip(keys, (_value(path, value) for value in node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(path, item) for item in node.elts]
    try:
        value = ast.literal_eval(node)
    except (ValueError, RecursionError):
        value = node
    if value is None or isinstance(value, bool | int | float | str):
        return value
    text = "a value must be a number, text, list or dict(...) of them, which is read and not run"
    raise ProjectError(f"{path}:{node.lineno}: {text}")
