"""The nets that `model_name` can name, by task, and the recipe of each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.formatting import did_you_mean
from common.paths import ROOT

SEGMENTATION, DETECTION, CHANGE = "segmentation", "detection", "change_detection"
RECIPES: Mapping[str, Path] = {
    SEGMENTATION: ROOT / "configs" / "pie_segmentation_config.json",
    DETECTION: ROOT / "configs" / "pie_detection_config.json",
    CHANGE: ROOT / "configs" / "pie_change_config.json",
}


@dataclass(frozen=True)
class Net:
    """A net by its names in traincfg.json, and the config's keys for it.

    `is_another`: it is not the published net of its name.
    """

    names: tuple[str, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)
    is_another: bool = False


NETS: Mapping[str, tuple[Net, ...]] = {
    SEGMENTATION: (
        Net(("linknet34",), {"model_module_name": "linknet_module", "model_net_name": "linknet34"}),
        Net(("deeplabv3plus",), {"model_module_name": "deeplab_module", "model_net_name": "deeplabv3plus"}),
    ),
    DETECTION: (Net(("yolov4", "yolo"), {"model_module_name": "detector_module", "model_net_name": "Detector"}, True),),
    CHANGE: (
        Net(
            ("siamese_linknet34", "linknet34", "siamese"),
            {"model_module_name": "change_module", "model_net_name": "siamese_linknet34"},
        ),
        Net(("fc_siam_diff",), {"model_module_name": "change_module", "model_net_name": "fc_siam_diff"}),
    ),
}


def find_net(task: str, model_name: str) -> tuple[Net | None, str]:
    """Return the net of a task by one of its names, whatever their case, - and _; else a sentence with those it has."""
    wanted = _plain(model_name)
    for net in NETS[task]:
        if wanted in map(_plain, net.names):
            return net, ""
    names = [name for net in NETS[task] for name in net.names]
    other = next((kind for kind, nets in NETS.items() for net in nets if wanted in map(_plain, net.names)), "")
    hint = f"; it is a net for {_title(other)}" if other else did_you_mean(model_name, names, ignore_case=True)
    text = (
        f'model_name must be a net for {_title(task)}, which the data are for: {", ".join(names)}, got "{model_name}"'
    )
    return None, text + hint


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _title(task: str) -> str:
    return task.replace("_", " ")
