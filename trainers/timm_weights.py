"""The preprocessing that timm's published weights want, for a config that starts from a file of them. Needs no torch.

timm itself, which imports torch, is asked only where the weights have no config.json of the Hub beside them.
"""

from __future__ import annotations

from typing import Any

from artifacts.hub_folder import hub_config
from configs.rules import NET, Problem
from configs.schema import Config
from nets.net_interface import declared_task
from nets.support.timm_names import NOT_INSTALLED, PREFIX, is_installed, is_timm

MODULE = "timm_module"
RESIZE = {"center": "crop", "squash": "squash", "border": "letterbox"}  # timm's crop_mode: ours
DENSE_TASKS = ("segmentation", "change_detection", "detection")  # of nets around a backbone
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


def timm_name(config: Config) -> str:
    """Return the name of timm's net that a config names, as its net or as a backbone; "" for any other net."""
    name = config.net_args().get("model_type")
    if not isinstance(name, str) or not (config.model_module_name == MODULE or is_timm(name)):
        return ""
    return name.removeprefix(PREFIX)


def timm_problems(config: Config) -> list[Problem]:
    """Return what a config with one of timm's nets cannot have."""
    if not timm_name(config):
        return []
    keys = (*NET, "model_type", "model_args")
    problems = []
    if not is_installed():
        problems.append(Problem(NOT_INSTALLED, keys))
    if config.train_mode == "finetune" and config.pretrained_file == "torchvision":
        sentence = "torchvision's published weights are not for timm's nets; name a weights file or a Hub folder"
        problems.append(Problem(sentence, ("pretrained_file", *keys)))
    return problems


def with_published_preprocess(config: Config) -> Config:
    """Return a config in which keys that were left out are as timm's published weights want them.

    Raises CheckpointError, NetError.
    """
    if config.train_mode != "finetune":
        return config
    wanted = published_preprocess(config)
    keys = {"height": "img_height", "width": "img_width"}
    values = {keys.get(key, key): list(value) if isinstance(value, tuple) else value for key, value in wanted.items()}
    if config.augment_on == "device":
        values.pop("interpolation", None)  # which crops bilinearly
    fields = config.model_fields_set
    left_out = {key: value for key, value in values.items() if key not in fields or getattr(config, key) == []}
    if config.has_bands():  # measured instead
        left_out = {key: value for key, value in left_out.items() if key not in ("mean", "std")}
    elif config.num_channels == 1:
        left_out |= {key: [sum(left_out[key]) / 3] for key in ("mean", "std") if key in left_out}
    return config.model_copy(update=left_out)


def published_preprocess(config: Config) -> dict[str, Any]:
    """Return height, width, mean, std, resize and interpolation that the weights of timm's net were published with.

    They are those of the config.json beside the weights, else of timm's own record of the net. Of a backbone under
    masks or boxes mean and std alone: its size is that of whole images, whose borders "crop" would cut off. {} for
    another net, for weights that are no file, and for a checkpoint of this program. Raises CheckpointError, NetError.
    """
    name, file = timm_name(config), config.start_weights()
    if not name or not config.starts_from_file() or not file.exists():
        return {}
    values = hub_config(file).get("pretrained_cfg")
    if not isinstance(values, dict):
        from artifacts.checkpoint import is_checkpoint  # late: a config is checked without torch
        from nets.support.timm_builder import pretrained_cfg

        if is_checkpoint(file):
            return {}
        values = pretrained_cfg(name)
    ours = _as_ours(values)
    if declared_task(config.model_module_name, config.model_net_name) in DENSE_TASKS:
        return {key: value for key, value in ours.items() if key in ("mean", "std")}
    return ours


def _as_ours(values: dict[str, Any]) -> dict[str, Any]:
    """Return timm's values under our names, without those that this program has no word for."""
    ours: dict[str, Any] = {}
    size = values.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 3 and size[0] == 3 and all(type(side) is int for side in size):
        ours["height"], ours["width"] = size[1:]
    for key in ("mean", "std"):
        numbers = values.get(key)
        if isinstance(numbers, (list, tuple)) and len(numbers) == 3 and all(type(n) in (int, float) for n in numbers):
            ours[key] = tuple(map(float, numbers))
    if values.get("crop_mode") in RESIZE:
        ours["resize"] = RESIZE[values["crop_mode"]]
    if values.get("interpolation") in INTERPOLATIONS:
        ours["interpolation"] = values["interpolation"]
    return ours
