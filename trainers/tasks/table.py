"""The tasks by the names that nets have for them."""

from __future__ import annotations

from torch import nn

from configs.schema import Config
from nets.net_interface import net_task
from nets.support.errors import NetError
from trainers.tasks.base import Task
from trainers.tasks.classification import ClassificationTask
from trainers.tasks.detection import DetectionTask
from trainers.tasks.fixmatch import FixMatchTask
from trainers.tasks.mpl import MplTask
from trainers.tasks.pim import PimTask
from trainers.tasks.segmentation import ChangeTask, SegmentationTask
from trainers.tasks.simsiam import SimSiamTask

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (ClassificationTask, PimTask, SimSiamTask, SegmentationTask, ChangeTask, DetectionTask)
}
SEMI_SUPERVISED: dict[str, type[Task]] = {"fixmatch": FixMatchTask, "mpl": MplTask}  # of classes, by `semi`


def task_of_config(config: Config) -> type[Task]:
    """Return the task that the config's net is for, before the net is built. Raises NetError."""
    return _task(net_task(config.model_module_name, config.model_net_name), config)


def task_of_net(net: nn.Module, config: Config) -> type[Task]:
    """Return the task that a built net is for. Raises NetError."""
    return _task(getattr(net, "task", ClassificationTask.name), config)


def _task(name: str, config: Config) -> type[Task]:
    if config.semi and name == ClassificationTask.name:
        return SEMI_SUPERVISED[config.semi]
    if name not in TASKS:
        net = f"nets/{config.model_module_name}.py: {config.model_net_name}"
        raise NetError(f'{net} is for the task "{name}", which is none of {", ".join(TASKS)}')
    return TASKS[name]
