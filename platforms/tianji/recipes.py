"""From the platform's flags to a checked config: the model, its recipe, `advance_settings`, and the fixed keys."""

from __future__ import annotations

import ast
import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.formatting import did_you_mean
from common.paths import ROOT
from configs.loading import ConfigError
from configs.schema import Config
from platforms.base import PlatformError
from platforms.tianji.files import MODULES, SIMSIAM
from trainers.config_checks import training_config

SIMSIAM_RECIPE = ROOT / "configs" / "tianji_simsiam_config.json"  # a package's weights
SIMSIAM_SCRATCH_RECIPE = ROOT / "configs" / "tianji_simsiam_scratch_config.json"  # random weights, so more epochs
PIM_RECIPE = ROOT / "configs" / "tianji_pim_config.json"  # a GPU, and torchvision's weights
PIM_SMALL_RECIPE = ROOT / "configs" / "tianji_pim_small_config.json"  # anything else, and a package's weights
SMALL_BACKBONE = "efficientnet_lite0"
NO_START: Mapping[str, Any] = {"layer_decay": 1.0, "freeze_norm_statistics": False}  # nothing is worth keeping
FROM_SCRATCH: Mapping[str, Any] = {"train_mode": "fromscratch", "pretrained_file": "", **NO_START}
START_KEYS = ("train_mode", "pretrained_file", "pretrained_path")
DOWNLOAD_TIMEOUT_S = 20.0  # without a response
SETTINGS = "advance_settings"

Settings = dict[str, Any]


@dataclass(frozen=True)
class FixedKeys:
    """The keys of a config that the platform's flags and files fix: `advance_settings` may only repeat them.

    A key of the second stage is called "next_stage.<key>".
    """

    values: Settings

    def find(self, key: str) -> tuple[bool, Any]:
        """Return whether a key is fixed, and its value; a second stage inherits the first one's."""
        stage, _, inherited = key.rpartition(".") if key.startswith("next_stage.") else ("", "", key)
        for name in (key, inherited, *([stage] if stage else [])):
            if name in self.values:
                return True, self.values[name]
        return False, None


def read_annotation(text: str) -> Settings:
    """Return the `advance_settings` of `--annotation_data`, a Python or JSON literal. Raises PlatformError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        try:
            data = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            form = "{'advance_settings': {'num_epochs': 20}}"
            raise PlatformError(f"--annotation_data is no Python or JSON literal such as {form}: {error}") from error
    if not isinstance(data, dict):
        raise PlatformError(f"--annotation_data must be an object {{...}}, got a {type(data).__name__}")
    for key in map(str, data):
        if SETTINGS not in data and (hint := did_you_mean(key, [SETTINGS])):
            raise PlatformError(f'--annotation_data: unknown key "{key}"{hint}')
    settings = data.get(SETTINGS, {})
    if not isinstance(settings, dict):
        raise PlatformError(f"--annotation_data: {SETTINGS} must be an object {{...}}, got {_quote(settings)}")
    return settings


def requested_model(flag: str | None, settings: Settings) -> tuple[str | None, Settings]:
    """Return the requested model, None where there is none, and the settings without the keys that name it.

    It is named by the flag, by `advance_settings`' "model", or by its "model_module_name". Raises PlatformError.
    """
    rest = {key: value for key, value in settings.items() if key not in ("model", "model_module_name")}
    given = {"--model": flag, f"{SETTINGS}.model": settings.get("model")}
    module = settings.get("model_module_name")
    if module is not None:
        known = {name: model for model, name in MODULES.items()}
        given[f"{SETTINGS}.model_module_name"] = known.get(str(module), f"a net of {module}")
    requests = {where: model for where, model in given.items() if model is not None}
    for where, model in requests.items():
        if not (isinstance(model, str) and model in MODULES):
            raise PlatformError(f"{where}: the platform's models are {' and '.join(MODULES)}, got {_quote(model)}")
    if len(set(requests.values())) > 1:
        pairs = ", ".join(f"{where} is {model}" for where, model in requests.items())
        raise PlatformError(f"two different models are given: {pairs}")
    return next(iter(requests.values()), None), rest


def make_config(
    model: str, *, uses_cuda: bool, fixed: FixedKeys, settings: Settings, log: Callable[[str], None]
) -> Config:
    """Choose the recipe, override it by `advance_settings`, and check it. Raises ConfigError with every mistake.

    SimSiam starts from an installed package's weights, or with another backbone from random ones. On a GPU PIM starts
    from torchvision's published weights where they are on this machine or can be downloaded; elsewhere the small recipe
    starts from the package's. A backbone that `advance_settings` names starts from torchvision's, or without them from
    random weights. Initial weights that it names are not replaced.
    """
    has_own_backbone = _backbone(settings) not in (None, SMALL_BACKBONE)
    if model == SIMSIAM:
        is_random = has_own_backbone or settings.get("train_mode") == "fromscratch"
        recipe = SIMSIAM_SCRATCH_RECIPE if is_random else SIMSIAM_RECIPE
        config = read_config(recipe, fixed, settings)
    else:
        recipe, config = _pim_config(uses_cuda, has_own_backbone, fixed, settings, log)
    log(f"{model} by configs/{recipe.name}" + (f" and {len(settings)} advance_settings" if settings else ""))
    return config


def _pim_config(
    uses_cuda: bool, has_own_backbone: bool, fixed: FixedKeys, settings: Settings, log: Callable[[str], None]
) -> tuple[Path, Config]:
    """Return PIM's recipe and config, by the start weights that can be had. Raises ConfigError."""
    recipe = PIM_RECIPE if uses_cuda else PIM_SMALL_RECIPE
    names_start = any(key in settings for key in START_KEYS)
    start: Mapping[str, Any] = NO_START if settings.get("train_mode") == "fromscratch" else {}
    if has_own_backbone and not names_start:
        start = {"pretrained_file": "torchvision"}
    config = read_config(recipe, fixed, settings, start)
    if config.pretrained_file == "torchvision" and not names_start:
        problem = why_no_published_weights(config)
        if problem and has_own_backbone:
            log(f"{problem}\nso the net starts from random weights, which costs accuracy")
            config = read_config(recipe, fixed, settings, FROM_SCRATCH)
        elif problem:
            recipe = PIM_SMALL_RECIPE
            log(f"{problem}\nso a smaller net starts from the weights of an installed package")
            config = read_config(recipe, fixed, settings)
    return recipe, config


def read_config(recipe: Path, fixed: FixedKeys, settings: Settings, start: Mapping[str, Any] | None = None) -> Config:
    """Read a recipe, override it by `start`, `settings` and then `fixed`, and check it. Raises ConfigError."""
    problems = []
    if not isinstance(settings.get("next_stage", {}), dict):
        problems.append(f"{SETTINGS}: next_stage must be an object {{...}}, got {_quote(settings['next_stage'])}")
        settings = {key: value for key, value in settings.items() if key != "next_stage"}
    items = [_item(key, value) for key, value in (start or {}).items()]
    for key, value in flattened(settings).items():
        is_fixed, fixed_value = fixed.find(key)
        if is_fixed:
            if value != fixed_value:
                problems.append(
                    f"{SETTINGS}: {key} follows from the platform's flags and files ({_quote(fixed_value)}), "
                    f"got {_quote(value)}; leave it out"
                )
            continue
        try:
            items.append(_item(key, value))
        except (TypeError, ValueError, RecursionError):
            problems.append(f"{SETTINGS}: {key} holds what JSON cannot, a {type(value).__name__}")
    items += [_item(key, value) for key, value in fixed.values.items()]
    try:
        config = training_config(recipe, items)
    except ConfigError as error:
        raise ConfigError([*problems, *(_as_setting(problem, items) for problem in error.problems)]) from error
    if problems:
        raise ConfigError(problems)
    return config


def flattened(settings: Settings) -> Settings:
    """Return the settings with a second stage's keys as "next_stage.<key>", so that the recipe's other keys stay."""
    flat: Settings = {}
    for key, value in settings.items():
        if key == "next_stage" and isinstance(value, dict):
            flat |= {f"next_stage.{inner}": item for inner, item in value.items()}
        else:
            flat[str(key)] = value
    return flat


def why_no_published_weights(config: Config) -> str:
    """Download torchvision's weights for a config's net; return "", or why they are not available."""
    from nets.support.errors import NetError
    from nets.support.pretrained import published_state_dict

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch's download has none, and a firewall may drop its packets
    try:
        published_state_dict(config.model_module_name, config.model_net_name, config.net_args())
    except NetError as error:
        return str(error)
    finally:
        socket.setdefaulttimeout(before)
    return ""


def _backbone(settings: Settings) -> Any:
    """Return the `model_type` that the settings name, None where they name none."""
    arguments = settings.get("model_args")
    inner = arguments.get("model_type") if isinstance(arguments, dict) else None
    return inner or settings.get("model_type")


def _item(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _as_setting(problem: str, items: Sequence[str]) -> str:
    """Replace the place of a mistake, `train.py`'s flag, by the setting that the platform's user wrote."""
    for item in items:
        if problem.startswith(f"--set {item}: "):
            return f"{SETTINGS}: {problem.removeprefix(f'--set {item}: ')}"
    return re.sub(f"^{re.escape(str(ROOT))}/", "", problem)


def _quote(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = f'"{text}"' if isinstance(value, str) else text
    return text if len(text) <= 60 else text[:57] + "..."
