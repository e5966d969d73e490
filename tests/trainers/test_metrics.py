"""Expected numbers come from scikit-learn, or where noted are worked out by hand."""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from tests.helpers.breaking import exit_code, forked
from trainers.evaluation.classification_metrics import ClassificationMetrics, ClassificationValidation, per_class_scores
from trainers.evaluation.confusion_cells import cells_in, cells_of, columns_of, matrix_of, totals_of

NUM_CLASSES = 7
NAMES = [f"class {i}" for i in range(NUM_CLASSES)]
PATHS = [f"{i}.jpg" for i in range(101)]


def made_up(num_samples: int = 101) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_CLASSES - 1, (num_samples,), generator=generator)  # the last class has no image
    logits = torch.randn(num_samples, NUM_CLASSES, generator=generator)
    logits[torch.arange(num_samples), labels] += 1.0
    return logits, labels


def measured(
    logits: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 16, num_worst: int = 24
) -> ClassificationValidation:
    metrics = ClassificationMetrics(logits.shape[1], "cpu", num_worst)
    for indices in torch.arange(len(labels)).split(batch_size):
        metrics.update(logits[indices], labels[indices], indices)
    return metrics.compute([f"{i}.jpg" for i in range(len(labels))], [f"class {i}" for i in range(logits.shape[1])])


def test_numbers_are_those_of_scikit_learn() -> None:
    logits, labels = made_up()
    result = measured(logits, labels)
    scores, predictions, classes = logits.double().softmax(1).numpy(), logits.argmax(1), list(range(NUM_CLASSES))
    assert result.num_samples == 101
    assert result.cells == cells_in(confusion_matrix(labels, predictions, labels=classes))
    assert result.report_fields()["confusion"] == confusion_matrix(labels, predictions, labels=classes).tolist()
    assert result.top1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=classes))
    assert result.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=classes))
    assert result.loss == pytest.approx(log_loss(labels, scores, labels=classes), rel=1e-6)
    columns = precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=np.nan)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        measured_column = [np.nan if row[name] is None else row[name] for row in result.per_class]
        expected = [
            np.nan if name == "f1" and row["support"] == 0 else value
            for value, row in zip(column, result.per_class, strict=True)
        ]
        assert measured_column == pytest.approx(expected, nan_ok=True), name  # an F1 without images is none, too
    assert [row["class"] for row in result.per_class] == NAMES


def test_top5_of_three_classes_is_top3() -> None:
    assert measured(torch.tensor([[3.0, 2.0, 1.0]] * 4), torch.tensor([0, 1, 2, 2])).top5 == 1.0


def test_half_precision_logits_are_measured_in_float32() -> None:
    logits, labels = made_up()
    assert measured(logits.bfloat16(), labels) == measured(logits.bfloat16().float(), labels)


def test_worst_are_the_wrong_ones_of_highest_loss_whatever_the_batches() -> None:
    logits, labels = made_up()
    scores = logits.double().softmax(1).numpy()
    losses = -np.log(scores[np.arange(len(labels)), labels])
    wrong = [i for i in range(len(labels)) if scores[i].argmax() != labels[i]]
    expected = sorted(wrong, key=lambda i: -losses[i])[:10]
    result = measured(logits, labels, num_worst=10)
    assert [image.path for image in result.worst] == [f"{i}.jpg" for i in expected]
    for image, i in zip(result.worst, expected, strict=True):
        assert (image.label, image.answer) == (labels[i], scores[i].argmax())
        assert image.score == pytest.approx(scores[i].max(), rel=1e-5)
        assert image.loss == pytest.approx(losses[i], rel=1e-5)
    assert measured(logits, labels, num_worst=10, batch_size=101).worst == result.worst
    assert len(measured(logits, labels, num_worst=1000).worst) == len(wrong)


def test_logits_without_a_softmax_are_wrong() -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[nan, 1.0, 0.0], [5.0, 0.0, nan], [inf, inf, 0.0], [-inf] * 3, [9.0, -inf, 0.0]])
    result = measured(logits, torch.tensor([0, 0, 0, 1, 0]))
    assert result.top1 == result.top5 == pytest.approx(1 / 5)  # only the last has a prediction, and it is right
    assert sum(count for *_, count in result.cells) == 5
    assert result.loss == inf
    assert [(image.loss, image.score) for image in result.worst] == [(inf, 0.0)] * 4
    assert [(image.label, image.answer) for image in result.worst] == [(0, 1), (0, 1), (0, 1), (1, 0)]


def test_reset_forgets() -> None:
    logits, labels = made_up()
    metrics = ClassificationMetrics(NUM_CLASSES, "cpu")
    for _ in range(2):
        metrics.update(logits, labels, torch.arange(101))
        result = metrics.compute(PATHS, NAMES)
        metrics.reset()
    assert result == measured(logits, labels)


def test_no_image_at_all() -> None:
    result = ClassificationMetrics(3, "cpu").compute([], ["a", "b", "c"])
    assert result.num_samples == 0
    assert math.isnan(result.top1)
    assert math.isnan(result.loss)


def test_deterministic_algorithms_change_nothing() -> None:
    logits, labels = made_up()
    expected = measured(logits, labels)
    torch.use_deterministic_algorithms(True)
    try:
        assert measured(logits, labels) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_mistakes_are_reported() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        ClassificationMetrics(1, "cpu")
    metrics = ClassificationMetrics(3, "cpu")
    with pytest.raises(ValueError, match=r"must be \(N, 3\), \(N,\) and \(N,\), got \(2, 4\), \(2,\) and \(2,\)"):
        metrics.update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    for _ in range(2):
        metrics.update(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="counted 2 images, but the list has 1: some were counted twice"):
        metrics.compute(["a.jpg"], ["a", "b", "c"])


def test_scores_of_a_hand_made_confusion() -> None:
    rows = per_class_scores(["a", "b"], *totals_of([[0, 0, 3], [0, 1, 1]], 2))
    assert rows[0] == {"class": "a", "precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7), "support": 4}
    assert rows[1] == {"class": "b", "precision": 0.0, "recall": None, "f1": None, "support": 0}


def test_cells_are_those_of_the_matrix() -> None:
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 4]])
    cells = [[0, 0, 3], [0, 1, 1], [2, 0, 2], [2, 2, 4]]
    labels, predictions = np.nonzero(matrix)
    counts = matrix[labels, predictions]
    assert cells_in(matrix) == cells_of(labels.repeat(counts)[::-1], predictions.repeat(counts)[::-1]) == cells
    assert np.array_equal(matrix_of(cells, 3), matrix)
    assert [total.tolist() for total in totals_of(cells, 3)] == [[3, 0, 4], [4, 0, 6], [5, 1, 4]]
    assert cells_of(np.empty(0, np.int64), np.empty(0, np.int64)) == cells_in(np.zeros((3, 3), np.int64)) == []
    assert not matrix_of([], 2).any() and columns_of([]).shape == (3, 0)


def test_a_validation_of_100_000_classes_is_as_large_as_its_images(tmp_path: Path) -> None:
    """Their matrix would have 80 GB."""
    count = 100_000
    metrics = ClassificationMetrics(count, "cpu")
    logits = torch.zeros(3, count)
    logits[[0, 1, 2], [7, 99_999, 99_999]] = 1.0
    metrics.update(logits, torch.tensor([7, 99_999, 5]), torch.arange(3))
    result = metrics.compute(["a", "b", "c"], [f"class {i}" for i in range(count)])
    assert result.cells == [[5, 99_999, 1], [7, 7, 1], [99_999, 99_999, 1]] and result.top1 == pytest.approx(2 / 3)
    assert result.per_class[99_999] == {
        **{"class": "class 99999", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    }
    fields = result.report_fields()
    assert (fields["confusion"], fields["confusion_cells"]) == ([], result.cells)
    torch.save(result.to_dict(), tmp_path / "result.pt")
    read = torch.load(tmp_path / "result.pt", weights_only=True)
    assert read["cells"].shape == (3, 3) and ClassificationValidation.from_dict(read) == result


def test_a_checkpoint_with_a_dense_matrix_is_read() -> None:
    result = measured(*made_up())
    values = {**result.to_dict(), "confusion": torch.from_numpy(matrix_of(result.cells, NUM_CLASSES))}
    del values["cells"]
    assert ClassificationValidation.from_dict(values) == result


def one_process(rank: int, partings: list[list[list[int]]], folder: str) -> None:
    """Run in a process of its own: measure its part of the images, for one parting after another."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    logits, labels = made_up()
    for name, parts in enumerate(partings):
        metrics = ClassificationMetrics(NUM_CLASSES, "cpu", num_worst=10)
        for indices in torch.tensor(parts[rank], dtype=torch.long).split(16) if parts[rank] else ():
            metrics.update(logits[indices], labels[indices], indices)
        torch.save(asdict(metrics.compute(PATHS, NAMES)), f"{folder}/{rank}.{name}.pt")
    dist.destroy_process_group()


def test_two_processes_count_every_image_once(tmp_path: Path) -> None:
    everything = list(range(0, 101, 2)) + list(range(1, 101, 2))  # not in order, as a sampler gives them
    partings = [[everything[:67], everything[67:]], [everything, []]]  # uneven; one process without images
    pids = [forked(partial(one_process, rank, partings, str(tmp_path))) for rank in range(2)]
    assert [exit_code(pid) for pid in pids] == [0, 0]
    alone = asdict(measured(*made_up(), num_worst=10))
    for rank in range(2):
        for name in range(len(partings)):
            got = torch.load(tmp_path / f"{rank}.{name}.pt", weights_only=True)
            assert got == alone | {"loss": pytest.approx(alone["loss"], rel=1e-12)}  # added up in another order
