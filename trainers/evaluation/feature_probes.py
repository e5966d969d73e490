"""The quality of frozen features: weighted kNN accuracy, and a linear probe fitted on features that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data_loader.bad_images import checked
from data_loader.loaders import ImageDataset, validation_loader
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from trainers.evaluation.validation import evaluating

KNN_TEMPERATURE = 0.1
KNN_CHUNK = 4096  # queries at once
LEAST_VOTE = 1e-6  # of a class that no neighbour has: a loss of 14, not of infinity
PROBE_EPOCHS, PROBE_BATCH, PROBE_RATE = 90, 256, 0.1
FOLDS = 5
BANK_BATCH = 256


@dataclass(frozen=True)
class Embedded:
    """Features (N, D) float32 of images, their labels (N,) and their places (N,) in the list."""

    features: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor

    def chosen(self, rows: torch.Tensor) -> Embedded:
        """Return some of them, by a mask (N,) or rows."""
        return Embedded(self.features[rows], self.labels[rows], self.indices[rows])


@torch.inference_mode()
def embed(net: nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> Embedded:
    """Return the features that a net in eval mode has for normalised batches; they stay on the net's device."""
    with evaluating(net):
        rows = [(net(batch["image"]).float(), batch["target"], batch["index"]) for batch in batches]
    if not rows:  # of several processes one may have no image
        nothing = torch.empty(0, dtype=torch.long)
        return Embedded(torch.empty(0, 0), nothing, nothing)
    features, labels, indices = (torch.cat(column) for column in zip(*rows, strict=True))
    return Embedded(features, labels, indices)


def of_all_processes(embedded: Embedded) -> Embedded:
    """Return the parts of all processes together, in the order of the list, on this process's device."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return embedded
    device = embedded.features.device
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, tuple(x.cpu() for x in vars(embedded).values()))
    features, labels, indices = (torch.cat(column).to(device) for column in zip(*filter(_has_rows, parts), strict=True))
    return Embedded(features, labels, indices).chosen(torch.argsort(indices))


def plain_batches(
    samples: SampleList, preprocess: Preprocess, workers: int, device: torch.device
) -> Callable[[], Iterator[dict[str, torch.Tensor]]]:
    """Return a function that yields the batches of all images of a list, fitted as in validation and normalised."""
    loader = validation_loader(ImageDataset(samples, preprocess), BANK_BATCH, workers)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for batch in loader:
            moved = {key: value.to(device) for key, value in checked(batch).items()}
            yield {**moved, "image": preprocess.normalize(moved["image"])}

    return batches


def knn_votes(
    queries: Embedded, bank: Embedded, num_classes: int, neighbours: int, *, leave_out_own: bool = False
) -> torch.Tensor:
    """Return each query's votes (N, K), which add up to 1, of its nearest images in the bank by cosine.

    A neighbour's vote is exp(cosine / 0.1): Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", sec. 3.4, as SimSiam's published curves use it. `leave_out_own` leaves out the bank's image of
    the query's own index.
    """
    others = nn.functional.normalize(bank.features, dim=1).T  # (D, M)
    count = min(neighbours, len(bank.labels) - int(leave_out_own))
    votes = []
    for start in range(0, len(queries.labels), KNN_CHUNK):
        part = slice(start, start + KNN_CHUNK)
        likeness = nn.functional.normalize(queries.features[part], dim=1) @ others  # (n, M)
        if leave_out_own:
            likeness = likeness.masked_fill(queries.indices[part, None] == bank.indices, -2.0)
        nearest, places = likeness.topk(count, dim=1)  # (n, k)
        weights = (nearest / KNN_TEMPERATURE).exp()
        of_class = weights.new_zeros(len(weights), num_classes).scatter_add(1, bank.labels[places], weights)
        votes.append(of_class / of_class.sum(dim=1, keepdim=True))
    return torch.cat(votes)


def probe_accuracy(queries: Embedded, bank: Embedded | None, num_classes: int, seed: int) -> float:
    """Return the accuracy on the queries of a linear probe fitted on the bank; without one, of one fitted on the other
    four fifths of the queries, for each fifth."""
    if bank is not None:
        return _share_right(fit_probe(bank, num_classes, seed), queries)
    fold = queries.indices % FOLDS
    rights = 0.0
    for number in range(FOLDS):
        held_out = queries.chosen(fold == number)
        if len(held_out.labels):
            layer = fit_probe(queries.chosen(fold != number), num_classes, seed)
            rights += _share_right(layer, held_out) * len(held_out.labels)
    return rights / len(queries.labels)


def fit_probe(train: Embedded, num_classes: int, seed: int) -> nn.Linear:
    """Fit a linear layer on features by SGD, in seconds: the probe of a frozen backbone without augmentation.

    Weights start at N(0, 0.01) and have no decay, the rate falls as a cosine over 90 epochs, as in the paper's linear
    evaluation; features are standardised first, and the layer that is given back takes them as they are.
    """
    features, labels = train.features.clone(), train.labels.clone()  # out of inference mode
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    features = (features - mean) / std
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features.shape[1], num_classes, device=features.device)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(layer.weight.shape, generator=generator))
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=PROBE_RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PROBE_EPOCHS)
    for _ in range(PROBE_EPOCHS):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for rows in order.split(PROBE_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        layer.weight.div_(std)
        layer.bias.sub_(layer.weight @ mean)
    return layer


def _has_rows(part: tuple[torch.Tensor, ...]) -> bool:
    return len(part[1]) > 0


@torch.no_grad()
def _share_right(layer: nn.Linear, of: Embedded) -> float:
    return float((layer(of.features.clone()).argmax(dim=1) == of.labels).float().mean())
