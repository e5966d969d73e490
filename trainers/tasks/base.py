"""The base of every task: a net with its loss, a target to learn, and a validation. It knows no classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata, build_metadata, preprocess_of
from configs.schema import Config
from data_loader.augment import AugmentSettings, training_view
from data_loader.batch_augment import BatchViews
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from data_loader.targets import Target
from trainers.evaluation.validation import Measure, Validation
from trainers.tasks.teachers import Teachers
from visualization.masks import rgb

if TYPE_CHECKING:
    from trainers.reporting.tensorboard_logger import TrainingLogger

Batch = dict[str, torch.Tensor]  # "image" (N * views, C, H, W), "target" (N, ...), "index" (N,)
BatchSource = Callable[[], Iterable[Batch]]  # one walk through a split, each time it is called


@dataclass(frozen=True)
class Setup:
    """What a task is made from beside its net."""

    config: Config
    train: SampleList
    val: SampleList
    device: torch.device
    log: Callable[[str], None] = lambda text: None


class Task(nn.Module, ABC):
    """Owns the net and what is to be learnt with it; the training loop knows nothing else of either.

    A net names its task in the attribute `task`; `trainers.tasks.TASKS` has the class for the name.
    """

    name: ClassVar[str]
    output: ClassVar[str]  # what the net returns; see `artifacts.outputs`
    validation: ClassVar[type[Validation]]
    measure: ClassVar[Measure]  # which of the validation's numbers decides, and how
    loss_names: ClassVar[tuple[str, str]] = ("loss", "val")  # of training and validation, in an epoch's line
    views: ClassVar[int] = 1  # of an image in a batch
    reports_last_validation: ClassVar[bool] = False  # whether the report needs the last net validated in this process
    stops_on_warning = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.teachers: Teachers | None = None  # whose outputs the net learns beside its labels
        self.companion: nn.Module | None = None  # trained and resumed with the net, but never validated or deployed
        self.rate, self.step = 0.0, 0  # learning rate of the present step, and the steps done before
        self.watch_output: Callable[[torch.Tensor, Batch], None] | None = None  # called with a training batch's output
        self.check_stop: Callable[[], None] = lambda: None  # called between batches that a task reads itself; may raise

    @classmethod
    @abstractmethod
    def target(cls, config: Config) -> Target:
        """Return how the lists of a config are read. Raises ListError."""

    @classmethod
    def preprocess(cls, config: Config) -> Preprocess:
        """Return how a config's images become the net's input."""
        return preprocess_of(config)

    @classmethod
    def training_view(cls, preprocess: Preprocess, settings: AugmentSettings) -> Callable[..., Any]:
        """Return what makes a training view of a sample; the task's `Target.apply_view` calls it."""
        return training_view(preprocess, settings, cls.views)

    @classmethod
    def batch_views(cls, preprocess: Preprocess, settings: AugmentSettings) -> BatchViews:
        """Return what makes training views of a batch of samples. Raises BatchViewsError."""
        return BatchViews(settings, cls.views, (preprocess.height, preprocess.width))

    @classmethod
    def new_metadata(cls, config: Config, samples: SampleList) -> ModelMetadata:
        """Return the metadata of a net that is to learn from these samples, before anything is known of it."""
        metadata = build_metadata(config, samples.class_names)
        return replace(metadata, preprocess=cls.preprocess(config), task=cls.name, output=cls.output)

    @classmethod
    @abstractmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task that a config describes around a net. Raises ListError, NetError."""

    @abstractmethod
    def with_net(self, net: nn.Module) -> Task:
        """Return the same task around another net, such as the averaged one."""

    # Training

    def forward(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Run `training_step`: DistributedDataParallel hooks itself onto the forward call."""
        return self.training_step(batch, generator)

    @abstractmethod
    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return {"loss": scalar to minimise, ...} for a batch; further scalars are logged.

        Everything random follows from torch's own state and from `generator`.
        """

    def own_view(self, images: torch.Tensor) -> torch.Tensor:
        """Return views (N, C, H, W) as the net takes them: with teachers that see more, they are larger."""
        return images if self.teachers is None else self.teachers.for_student(images)

    def distilled(self, losses: dict[str, torch.Tensor], term: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return losses with the teachers' term added."""
        assert self.teachers is not None
        return {**losses, "loss": losses["loss"] + self.teachers.current_weight() * term, "distillation": term}

    def warning(self, terms: Mapping[str, float]) -> str:
        """Return a sentence about what is wrong with a training of these mean scalars; "" where nothing is."""
        return ""

    def shown(
        self, batch: Batch, generator: np.random.Generator, class_names: Sequence[str]
    ) -> tuple[torch.Tensor, list[str]]:
        """Return a batch's images (N * views, C, H, W) as the net sees them in training, and a caption for each."""
        return batch["image"], [""] * len(batch["image"])

    def shown_pixels(
        self, batch: Batch, generator: np.random.Generator, metadata: ModelMetadata
    ) -> tuple[np.ndarray, list[str]]:
        """Return the same as uint8 (N * views, H, W, C), as people look at it."""
        images, captions = self.shown(batch, generator, metadata.class_names)
        pixels = metadata.preprocess.denormalize(images).numpy()
        return (pixels if pixels.shape[3] == 1 else rgb(pixels)), captions

    # Validation

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return the net's output (N, ...) float32 for images (N, C, H, W)."""
        output: torch.Tensor = self.net(images).float()
        return output

    @abstractmethod
    def validate(self, batches: BatchSource, samples: SampleList) -> Validation:
        """Measure the net in eval mode on this process's part; every process gets the result of all.

        `index` in a batch points into `samples`.
        """

    def declare(self, metadata: ModelMetadata, validation: Validation) -> ModelMetadata:
        """Return the metadata with what a validation has settled about the net: here nothing."""
        return metadata

    # Reporting

    def summary(self, validation: Validation) -> str:
        """Return further text for an epoch's line, behind loss and measure."""
        return ""

    def log_validation(
        self, logger: TrainingLogger, validation: Validation, metadata: ModelMetadata, step: int
    ) -> None:
        """Show a validation of this task's net on TensorBoard, beyond its scalars."""

    def log_end(self, logger: TrainingLogger, samples: SampleList, metadata: ModelMetadata, step: int) -> None:
        """Show on TensorBoard what a finished training leaves, once."""

    def conclusions(self, samples: SampleList) -> dict[str, float]:
        """Return further shares (0 to 1) for the report of a finished training, by name."""
        return {}

    def report_images(self, checkpoint: Path, best: Validation, device: torch.device) -> dict[str, np.ndarray]:
        """Return images uint8 (H, W, C) to show in the report beside those of the best validation, by their path."""
        return {}

    @property
    def device(self) -> torch.device:
        """Return where the net's parameters lie."""
        return next(self.net.parameters()).device
