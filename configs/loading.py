"""Reads a config and reports all its mistakes together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.errors import UserError
from common.formatting import did_you_mean, short_json
from configs.rules import Problem, find_contradictions, find_missing_files, needs_no_root
from configs.schema import Config

Check = Callable[[Config], list[Problem]]

PLACEHOLDERS = {  # stand in for required keys that are missing or wrong, so that the others can still be checked
    "model_module_name": "model_module_name",
    "model_net_name": "model_net_name",
    "num_classes": 2,
    "train_data_root_dir": ".",
    "val_data_root_dir": ".",
}
BOUNDS = {  # of pydantic's errors
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text in quotes",
    "list": "a list",
    "dict": "an object {...}",
}


class ConfigError(UserError):
    """All mistakes of one config; `problems` holds a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def process_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    checks: Sequence[Check] = (),
    flags: Mapping[str, str] | None = None,
) -> Config:
    """Read a JSON config, apply `key=value` overrides, and check all of it.

    `checks` are the caller's further rules (is there such a net?), applied together with the ones here. `flags` holds,
    by key, the flag that an override came from where that is not --set. Relative paths start from the current folder.
    Raises ConfigError with every mistake found.
    """
    values, problems = _read_json(Path(path))
    origin = dict.fromkeys(values, str(path))
    problems += _apply_overrides(values, overrides, origin)
    origin |= flags or {}
    problems += _unknown_keys(values, origin)
    config, rejected = _validated({key: value for key, value in values.items() if key in Config.model_fields})
    problems += [_sentence(error, origin, str(path)) for error in rejected]
    wrong = {_key(error) for error in rejected}
    found = _check(config, wrong, check_files, checks) + _check_next_stage(config, wrong, check_files, checks)
    problems += [f"{path}: {sentence}" for sentence in found]
    if problems:
        raise ConfigError(problems)
    return config


def describe_config(config: Config, path: str | Path, overrides: Sequence[str] = (), stage: int = 0) -> str:
    """Return every effective value and its source, a key a line; for stage 2 those of the `next_stage`."""
    replaced = config.next_stage if stage == 2 else {}
    config = config.next_config() or config if stage == 2 else config
    values, _ = _read_json(Path(path))
    in_file = set(values)
    overridden = {item.partition("=")[0].partition(".")[0] for item in overrides}
    lines = []
    for key, value in config.model_dump().items():
        source = "override" if key in overridden else str(path) if key in in_file else "default"
        source = "next_stage" if key in replaced else source
        lines.append(f"{key:<29} {json.dumps(value, ensure_ascii=False):<34} {source}")
    return "\n".join(lines)


def _validated(values: dict[str, Any]) -> tuple[Config, list[Mapping[str, Any]]]:
    """Return a config and pydantic's errors; rejected values are replaced by placeholders or defaults in it.

    Packs need no root folder.
    """
    for split in ("train", "val"):
        if needs_no_root(str(values.get(f"{split}_data_file", ""))):
            values = {f"{split}_data_root_dir": ".", **values}
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        errors: list[Mapping[str, Any]] = [*error.errors()]
    wrong = {_key(error) for error in errors}
    accepted = {key: value for key, value in values.items() if key not in wrong}
    return Config.model_validate({**PLACEHOLDERS, **accepted}), errors


def _check(
    config: Config, wrong: set[str], check_files: bool, checks: Sequence[Check], to_come: Path | None = None
) -> list[str]:
    """Return the rules' sentences, but for the rules that read the replacement of a `wrong` key's value."""

    def sentences(problems: Sequence[Problem]) -> list[str]:
        return [problem.sentence for problem in problems if wrong.isdisjoint(problem.keys)]

    missing = sentences(find_missing_files(config, to_come)) if check_files else []
    if missing:
        missing[-1] += f" (relative paths start from {Path.cwd()})"
    further = [sentence for check in checks for sentence in sentences(check(config))]
    return [*sentences(find_contradictions(config)), *missing, *further]


def _check_next_stage(config: Config, wrong: set[str], check_files: bool, checks: Sequence[Check]) -> list[str]:
    """Check the training that follows as one of its own, but for the weights that this one is still to write."""
    given = config.next_stage
    origin = dict.fromkeys(given, "next_stage")
    problems = _unknown_keys({key: value for key, value in given.items() if key != "next_stage"}, origin)
    if "next_stage" in given:
        problems.append("next_stage: a third training cannot follow")
    known = {key: value for key, value in given.items() if key in Config.model_fields and key != "next_stage"}
    errors: list[Mapping[str, Any]] = []
    try:
        following = config.model_copy(update={"next_stage": known}).next_config()
    except ValidationError as error:
        errors = [*error.errors()]
        accepted = {key: value for key, value in known.items() if key not in {_key(each) for each in errors}}
        following = config.model_copy(update={"next_stage": accepted}).next_config()
    problems += [_sentence(error, origin, "next_stage") for error in errors]
    if following is None:
        return problems
    still_wrong = (wrong - set(known)) | {_key(error) for error in errors}
    found = _check(following, still_wrong, check_files, checks, to_come=config.best_checkpoint())
    is_comparable = "save_path" not in wrong | still_wrong
    if is_comparable and Path(following.save_path).resolve() == Path(config.save_path).resolve():
        found.append(f'save_path must be another folder than the first stage\'s, got "{following.save_path}"')
    return problems + [f"next_stage: {problem}" for problem in found]


def _read_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a file's values, and a sentence for each key that is given twice. Raises ConfigError."""
    problems: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        problems.extend(f'{path}: key "{key}" is given twice' for key in sorted({k for k in keys if keys.count(k) > 1}))
        return dict(pairs)

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise ConfigError([f"{path}: cannot read the config: {reason} (current folder: {Path.cwd()})"]) from error
    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        hint = " (a comma before } or ] is one too many)" if "property name" in error.msg else ""
        raise ConfigError([f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}{hint}"]) from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError([f"{path}: {error}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: nested too deeply for a config"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f'{path}: a config is a JSON object {{"key": value, ...}}, got {short_json(values)}'])
    values.pop("$schema", None)
    return values, problems


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str], origin: dict[str, str]) -> list[str]:
    """Set `key=value` items in `values` and their source in `origin`; return a sentence for each that cannot be."""
    problems = []
    for item in overrides:
        key, equals, text = item.partition("=")
        key, _, inner = key.strip().partition(".")
        if not equals:
            problems.append(f"--set {item}: write key=value")
            continue
        value = _override_value(inner if key == "next_stage" and inner else key, text)
        if inner and key not in ("model_args", "next_stage"):
            problems.append(f"--set {item}: only model_args and next_stage have inner keys")
            continue
        before = values.get(key, {})
        values[key] = {**(before if isinstance(before, dict) else {}), inner: value} if inner else value
        origin[key] = f"--set {item}"
    return problems


def _override_value(key: str, text: str) -> Any:
    field = Config.model_fields.get(key)
    if field is not None and field.annotation is str and not text.startswith('"'):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or a number of thousands of digits
        return text


def _unknown_keys(values: dict[str, Any], origin: dict[str, str]) -> list[str]:
    return [
        f'{origin[key]}: unknown key "{key}"{did_you_mean(key, Config.model_fields)}'
        for key in values
        if key not in Config.model_fields
    ]


def _key(error: Mapping[str, Any]) -> str:
    return str(error["loc"][0])


def _sentence(error: Mapping[str, Any], origin: Mapping[str, str], path: str) -> str:
    """Return pydantic's error as a sentence of ours: what, where, the value got, the values allowed."""
    key = _key(error)
    where = origin.get(key, path)
    if error["type"] == "missing":
        return f'{where}: key "{key}" is missing ({Config.model_fields[key].description})'
    index = "".join(f"[{part}]" for part in error["loc"][1:] if isinstance(part, int))
    return f"{where}: {key}{index}{_requirement(error)}, got {short_json(error['input'])}"


def _requirement(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in BOUNDS:
        word, limit = BOUNDS[kind]
        return f" must be {word} {context[limit]:g}"
    if kind == "literal_error":
        return f" must be {context['expected']}"
    if kind == "finite_number":
        return " must be a finite number"
    if kind == "nul_character":
        return " holds a NUL character"
    if word := TYPES.get(kind.removesuffix("_type").removesuffix("_parsing"), ""):
        return f" must be {word}"
    if kind in ("too_short", "too_long", "string_too_short"):
        needed = context.get("min_length", context.get("max_length"))
        return f" must have {needed} {'character' if 'string' in kind else 'entries'}"
    return f": {error['msg']}"
