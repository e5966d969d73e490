"""Distillation: frozen nets whose outputs a task's net learns beside its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from artifacts.checkpoint import load_checkpoint
from artifacts.class_names import compared, labels_by_name
from artifacts.errors import CheckpointError
from artifacts.metadata import ModelMetadata
from configs.schema import OWN_AVERAGE, Config
from data_loader.preprocess import Preprocess
from nets.net_interface import build_net
from nets.support.errors import NetError
from trainers.tasks.distillation_losses import decoupled, imitated_boxes, soft_cross_entropy, soft_labels
from trainers.tasks.feature_review import FeatureReview, stages_of, watching


@dataclass(frozen=True)
class Teacher:
    """A frozen net, how its input is made, and which of its outputs are the classes of the student."""

    net: nn.Module
    preprocess: Preprocess
    order: tuple[int, ...] | None


class Teachers:
    """One teacher or several, whose outputs are averaged. No module: checkpoints and optimizers do not know of them.

    With `has_large_views` they see views of the size of the largest of them, and the student the same ones, made
    smaller: a student of 64 px learns from a teacher that sees 256. Where images are the same in every epoch
    (`is_fixed`), what teachers of classes say of them is kept.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        student: Preprocess,
        *,
        method: str = "logits",
        temperature: float = 4.0,
        weight: float = 1.0,
        warmup_epochs: float = 0.0,
        has_large_views: bool = False,
        is_fixed: bool = False,
    ) -> None:
        self.teachers, self.student = teachers, student
        self.method, self.temperature = method, temperature
        self.weight, self.warmup_epochs = weight, warmup_epochs
        self.epochs: Callable[[], float] = lambda: warmup_epochs  # that are done, of the training
        own = student.height, student.width
        sides = [(one.preprocess.height, one.preprocess.width) for one in teachers] if has_large_views else []
        self.size = max([*sides, own], key=lambda side: side[0] * side[1])  # of a view
        self.reviews: nn.ModuleList | None = None  # of the feature maps, one for each teacher
        self._stages: tuple[list[str], list[list[str]]] = [], []  # names: the net's, and each teacher's
        self._kept: dict[int, Tensor] | None = {} if is_fixed else None  # soft labels (K,) by index

    @property
    def view(self) -> Preprocess:
        """Return the student's preprocessing with the size of a view."""
        return replace(self.student, height=self.size[0], width=self.size[1])

    def for_student(self, images: Tensor) -> Tensor:
        """Return views (N, C, H, W) at the student's size."""
        return _resized(images, (self.student.height, self.student.width))

    def current_weight(self) -> float:
        """Return `distill_weight`, rising from 0 over the epochs of the warm-up."""
        share = self.epochs() / self.warmup_epochs if self.warmup_epochs else 1.0
        return self.weight * min(1.0, share)

    def add_average(self, net: nn.Module) -> None:
        """Let the average of the net's own weights teach it, too (`distill_from` "ema")."""
        self.teachers = [*self.teachers, Teacher(net.eval(), self.student, None)]

    def review_features(self, net: nn.Module) -> nn.ModuleList:
        """Prepare `distill_method` "review" of a net's maps; return what is trained for it. Raises NetError."""
        found = [stages_of(net, _trial(self.student))]
        found += [stages_of(one.net, _trial(one.preprocess)) for one in self.teachers]
        names = [[name for name, _ in stages] for stages in found]
        channels = [[count for _, count in stages] for stages in found]
        self._stages = names[0], names[1:]
        self.reviews = nn.ModuleList(FeatureReview(channels[0], wanted) for wanted in channels[1:])
        return self.reviews

    def watching(self, net: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """Collect the maps that a net makes inside, where they are reviewed."""
        return nullcontext([]) if self.reviews is None else watching(net, self._stages[0])

    def loss_of_maps(self, maps: Sequence[Tensor], images: Tensor) -> Tensor:
        """Return the loss of the net's maps, shallow to deep, for views, a mean over the teachers."""
        assert self.reviews is not None
        losses = []
        for review, teacher, names in zip(self.reviews, self.teachers, self._stages[1], strict=True):
            with watching(teacher.net, names) as wanted:
                self._answer(teacher, images)
            losses.append(review(maps, wanted))
        return torch.stack(losses).mean()

    def loss_of_classes(self, logits: Tensor, images: Tensor, indices: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits (N, K) for views; `targets` (N,) are the labels, or (N, K) of mixed images."""
        soft = self._soft_labels(images, indices)
        if self.method == "dkd":
            return decoupled(logits, soft, targets, self.temperature)
        return soft_cross_entropy(logits, soft, self.temperature)

    def loss_of_masks(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the loss of logits (N, K, H, W) for views; teachers of another size are resized."""
        found = [_resized(output, tuple(logits.shape[2:])) for output in self._outputs(images)]
        return soft_cross_entropy(logits, soft_labels(found, self.temperature), self.temperature)

    def loss_of_boxes(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the loss of rows (N, A, 4 + K) for views. Raises NetError for teachers of other positions."""
        found = self._outputs(images, first=4)
        sizes = [(one.preprocess.height, one.preprocess.width) for one in self.teachers]
        if any(size != self.size for size in sizes) or any(one.shape[1] != outputs.shape[1] for one in found):
            raise NetError("distill_from: boxes are learnt of teachers with the same input size and strides alone")
        return imitated_boxes(outputs, found)

    def _soft_labels(self, images: Tensor, indices: Tensor) -> Tensor:
        if self._kept is None:
            return soft_labels(self._outputs(images), self.temperature)
        numbers = indices.tolist()
        if missing := [place for place, number in enumerate(numbers) if number not in self._kept]:
            found = soft_labels(self._outputs(images[missing]), self.temperature)
            self._kept.update((numbers[place], row) for place, row in zip(missing, found, strict=True))
        return torch.stack([self._kept[number] for number in numbers])

    @torch.no_grad()
    def _answer(self, teacher: Teacher, images: Tensor) -> Tensor:
        """Return a teacher's output for views at its own size and normalisation."""
        size = teacher.preprocess.height, teacher.preprocess.width
        output: Tensor = teacher.net(_rescaled(_resized(images, size), self.student, teacher.preprocess))
        return output

    def _outputs(self, images: Tensor, first: int = 0) -> list[Tensor]:
        """Return each teacher's output, its classes in the student's order; of rows they begin at column `first`."""
        found = []
        for teacher in self.teachers:
            output = self._answer(teacher, images)
            if teacher.order is None:
                found.append(output)
                continue
            axis = output.ndim - 1 if first else 1
            order = [*range(first), *(first + label for label in teacher.order)]
            found.append(output.index_select(axis, torch.tensor(order, device=output.device)))
        return found


def teachers_of(config: Config, student: ModelMetadata, device: torch.device) -> Teachers | None:
    """Return the teachers of a config, None where it names none. Raises CheckpointError, NetError."""
    if not config.distill_from:
        return None
    is_varied = bool(config.data_aug or config.mixup_alpha or config.cutmix_alpha)
    teachers = Teachers(
        [_teacher(path, student, device) for path in config.distill_from if path != OWN_AVERAGE],
        student.preprocess,
        method=config.distill_method,
        temperature=config.distill_temperature,
        weight=config.distill_weight,
        warmup_epochs=config.distill_warmup_epochs,
        has_large_views=student.output == "logits",
        is_fixed=not is_varied and OWN_AVERAGE not in config.distill_from,
    )
    own = student.preprocess.height, student.preprocess.width
    if config.data_cache != "none" and teachers.size != own:
        sizes = "{}x{} px, and its teacher sees {}x{}".format(*own, *teachers.size)
        raise NetError(f'data_cache keeps images of {sizes}; set it to "none", or train at the teacher\'s size')
    return teachers


def _teacher(path: str, student: ModelMetadata, device: torch.device) -> Teacher:
    """Return the deployed net of a checkpoint. Raises CheckpointError for another task, other classes or channels."""
    saved = load_checkpoint(path)
    metadata = saved.metadata
    if metadata.task != student.task:
        raise CheckpointError(f"distill_from: {path} is for {metadata.task}, and this training for {student.task}")
    order = labels_by_name(student.class_names, metadata.class_names)
    if order is None:
        what = compared(student.class_names, metadata.class_names, "the teacher's")
        raise CheckpointError(f"distill_from: {path} has other classes: {what}")
    if metadata.preprocess.channels != student.preprocess.channels:
        counts = f"{metadata.preprocess.channels} channels, this training {student.preprocess.channels}"
        raise CheckpointError(f"distill_from: {path} takes {counts}")
    net = build_net(**metadata.net_arguments())
    net.load_state_dict(saved.deployed())
    return Teacher(net.to(device).eval().requires_grad_(False), metadata.preprocess, order)


def _trial(preprocess: Preprocess) -> Tensor:
    """Return an image of zeros (1, C, H, W) as a net takes it."""
    return torch.zeros(1, preprocess.channels, preprocess.height, preprocess.width)


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return images or maps (N, C, h, w) at (H, W), bilinear; smaller ones are averaged."""
    if tuple(images.shape[2:]) == size:
        return images
    return interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=True)


def _rescaled(images: Tensor, source: Preprocess, target: Preprocess) -> Tensor:
    """Return images (N, C, H, W) that one preprocessing has normalised as another one does it."""
    (scale, shift), (wanted, moved) = source.scale_and_shift(), target.scale_and_shift()
    factor, more = images.new_tensor(wanted / scale), images.new_tensor(moved - shift * wanted / scale)
    return images * factor[:, None, None] + more[:, None, None]
