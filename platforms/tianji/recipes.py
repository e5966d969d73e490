"""From the platform's flags to a checked config: the model, its recipe, `advance_settings`, and what the files fix."""

from __future__ import annotations

import ast
import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.formatting import nearest_names
from common.paths import ROOT
from configs.schema import Config, ConfigError, process_config
from platforms.tianji.files import MODULES, SIMSIAM, PlatformError
from trainers.config_checks import net_problems

SIMSIAM_RECIPE = ROOT / "configs" / "tianji_simsiam_config.json"
PIM_RECIPE = ROOT / "configs" / "tianji_pim_config.json"  # a GPU, and published weights
PIM_SMALL_RECIPE = ROOT / "configs" / "tianji_pim_small_config.json"  # anything else
FROM_SCRATCH: Mapping[str, Any] = {"train_mode": "fromscratch", "pretrained_file": ""}
START_KEYS = ("train_mode", "pretrained_file", "pretrained_path")
DOWNLOAD_TIMEOUT_S = 20.0  # without an answer
SETTINGS = "advance_settings"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """What the platform's layout fixes of a config: keys that `advance_settings` may only repeat.

    A key of the second stage is called "next_stage.<key>".
    """

    values: Settings

    def fixed(self, key: str) -> tuple[bool, Any]:
        """Say whether a key is fixed, and its value; a second stage inherits the first one's."""
        stage, _, inherited = key.rpartition(".") if key.startswith("next_stage.") else ("", "", key)
        for name in (key, inherited, *([stage] if stage else [])):
            if name in self.values:
                return True, self.values[name]
        return False, None


def read_annotation(text: str) -> Settings:
    """Read `--annotation_data`, a Python or JSON literal, and give its `advance_settings`. Raises PlatformError."""
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
    near = nearest_names(SETTINGS, [key for key in map(str, data) if key != SETTINGS])
    if near and SETTINGS not in data:
        raise PlatformError(f'--annotation_data: unknown key "{near[0]}"; did you mean "{SETTINGS}"?')
    settings = data.get(SETTINGS, {})
    if not isinstance(settings, dict):
        raise PlatformError(f"--annotation_data: {SETTINGS} must be an object {{...}}, got {_short(settings)}")
    return settings


def wanted_model(flag: str | None, settings: Settings) -> tuple[str | None, Settings]:
    """Give the model that is asked for, None where nobody asks, and the settings without what says it.

    Said by the flag, by `advance_settings`' "model", or by its net's module. Raises PlatformError.
    """
    rest = {key: value for key, value in settings.items() if key not in ("model", "model_module_name")}
    said = {"--model": flag, f"{SETTINGS}.model": settings.get("model")}
    module = settings.get("model_module_name")
    if module is not None:
        known = {name: model for model, name in MODULES.items()}
        said[f"{SETTINGS}.model_module_name"] = known.get(str(module), f"a net of {module}")
    for where, model in said.items():
        if model is not None and not (isinstance(model, str) and model in MODULES):
            raise PlatformError(f"{where}: the platform's models are {' and '.join(MODULES)}, got {_short(model)}")
    predictions = {where: model for where, model in said.items() if model is not None}
    if len(set(predictions.values())) > 1:
        pairs = ", ".join(f"{where} says {model}" for where, model in predictions.items())
        raise PlatformError(f"the model is said twice and differently: {pairs}")
    return next(iter(predictions.values()), None), rest


def make_config(
    model: str, *, uses_cuda: bool, places: Places, settings: Settings, log: Callable[[str], None]
) -> Config:
    """Choose the recipe, put `advance_settings` over it, and check it. Raises ConfigError with every mistake.

    PIM starts from torchvision's published weights where they are on this machine or can be fetched, with the large
    recipe on a GPU and the small one elsewhere; where they cannot be had, the small one starts from random weights.
    A start named in `advance_settings` is not replaced.
    """
    recipe = SIMSIAM_RECIPE if model == SIMSIAM else PIM_RECIPE if uses_cuda else PIM_SMALL_RECIPE
    config = read_config(recipe, places, settings)
    if config.pretrained_file == "torchvision" and not any(key in settings for key in START_KEYS):
        problem = why_no_published_weights(config)
        if problem:
            recipe = PIM_SMALL_RECIPE
            log(f"{problem}\nso the net starts from random weights, which costs accuracy")
            config = read_config(recipe, places, settings, FROM_SCRATCH)
    log(f"{model} by configs/{recipe.name}" + (f" and {len(settings)} advance_settings" if settings else ""))
    return config


def read_config(recipe: Path, places: Places, settings: Settings, start: Mapping[str, Any] | None = None) -> Config:
    """Read a recipe, put `start`, `settings` and then `places` over it, and check it all. Raises ConfigError."""
    problems = []
    if not isinstance(settings.get("next_stage", {}), dict):
        problems.append(f"{SETTINGS}: next_stage must be an object {{...}}, got {_short(settings['next_stage'])}")
        settings = {key: value for key, value in settings.items() if key != "next_stage"}
    items = [_item(key, value) for key, value in (start or {}).items()]
    for key, value in flattened(settings).items():
        is_fixed, fixed = places.fixed(key)
        if is_fixed:
            if value != fixed:
                problems.append(
                    f"{SETTINGS}: {key} follows from the platform's flags and files ({_short(fixed)}), "
                    f"got {_short(value)}; leave it out"
                )
            continue
        try:
            items.append(_item(key, value))
        except (TypeError, ValueError, RecursionError):
            problems.append(f"{SETTINGS}: {key} holds what JSON cannot, a {type(value).__name__}")
    items += [_item(key, value) for key, value in places.values.items()]
    try:
        config = process_config(recipe, items, checks=[net_problems])
    except ConfigError as error:
        raise ConfigError([*problems, *(_in_words(problem, items) for problem in error.problems)]) from error
    if problems:
        raise ConfigError(problems)
    return config


def flattened(settings: Settings) -> Settings:
    """Write the keys of a second stage as "next_stage.<key>", so that the recipe's others stay."""
    flat: Settings = {}
    for key, value in settings.items():
        if key == "next_stage" and isinstance(value, dict):
            flat |= {f"next_stage.{inner}": what for inner, what in value.items()}
        else:
            flat[str(key)] = value
    return flat


def why_no_published_weights(config: Config) -> str:
    """Fetch torchvision's weights for a config's net, and give "", or why they cannot be had."""
    from nets.support.errors import NetError
    from nets.support.pretrained import published_state_dict

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch's download has none, and a firewall may swallow its packets
    try:
        published_state_dict(config.model_module_name, config.model_net_name, config.net_args())
    except NetError as error:
        return str(error)
    finally:
        socket.setdefaulttimeout(before)
    return ""


def _item(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _in_words(problem: str, items: Sequence[str]) -> str:
    """Say where a mistake stands as the platform's user knows it, not as `train.py`'s flag."""
    for item in items:
        if problem.startswith(f"--set {item}: "):
            return f"{SETTINGS}: {problem.removeprefix(f'--set {item}: ')}"
    return re.sub(f"^{re.escape(str(ROOT))}/", "", problem)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = f'"{text}"' if isinstance(value, str) else text
    return text if len(text) <= 60 else text[:57] + "..."
