"""Assignment and loss of boxes, against a slow version of the paper's rules, one object at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, complete_box_iou_loss

from nets.detector_module import anchor_points
from trainers.tasks.detection_losses import Assignment, assigned, detection_losses, pairwise_iou, unpacked

POINTS = anchor_points(64, 64, (8, 16))  # 64 + 16 positions
CLASSES = 3


def case(seed: int, objects: int = 4, images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs (N, A, 4 + K) and a target (N, M, 6) whose images have fewer objects the later they come."""
    generator = np.random.default_rng(seed)
    middles = POINTS[None, :, :2].numpy() + generator.normal(0, 3, (images, len(POINTS), 2))
    halves = generator.uniform(4, 20, (images, len(POINTS), 2))
    logits = generator.normal(-2, 1, (images, len(POINTS), CLASSES))
    outputs = torch.from_numpy(np.concatenate([middles - halves, middles + halves, logits], axis=2)).float()
    target = torch.full((images, objects, 6), -1.0)
    for image in range(images):
        for row in range(objects - image):
            corner, sides = generator.uniform(0, 40, 2), generator.uniform(3, 24, 2)
            label, ignored = generator.integers(CLASSES), float(row == 0 and image == 1)
            sides += 12 * ignored  # so that there are positions in it
            target[image, row] = torch.tensor([*corner, *(corner + sides), label, ignored])
    return outputs, target


def slow(outputs: torch.Tensor, target: torch.Tensor) -> Assignment:
    """Return the assignment of one image, object by object."""
    boxes, scores = outputs[:, :4], outputs[:, 4:].sigmoid()
    claims: dict[int, list[tuple[float, float, int]]] = {}  # position: IoU, alignment, object
    for number, (left, top, right, bottom, label, ignored) in enumerate(target.tolist()):
        if label < 0 or ignored > 0:
            continue
        ious = box_iou(target[number : number + 1, :4], boxes)[0]
        found = []
        for position, (x, y, stride) in enumerate(POINTS.tolist()):
            wide, high = max((right - left) / 2, stride / 2), max((bottom - top) / 2, stride / 2)
            if abs(x - (left + right) / 2) <= wide and abs(y - (top + bottom) / 2) <= high:
                u = float(ious[position])
                found.append((float(scores[position, int(label)]) * u**6, u, position))
        for t, u, position in sorted(found, key=lambda row: -row[0])[:13]:
            claims.setdefault(position, []).append((u, t, number))
    owners = {position: max(rows, key=lambda row: row[0]) for position, rows in claims.items()}
    aims, goals, counts = torch.zeros_like(scores), boxes.clone(), torch.ones(len(POINTS), dtype=torch.bool)
    for number in {number for _, _, number in owners.values()}:
        own = {position: (u, t) for position, (u, t, owner) in owners.items() if owner == number}
        most_u, most_t = max(u for u, _ in own.values()), max(t for _, t in own.values())
        for position, (_, t) in own.items():
            aims[position, int(target[number, 4])] = t / most_t * most_u
            goals[position] = target[number, :4]
    for left, top, right, bottom, label, ignored in target.tolist():
        if label >= 0 and ignored > 0:
            for position, (x, y, _) in enumerate(POINTS.tolist()):
                if left <= x <= right and top <= y <= bottom and position not in owners:
                    counts[position] = False
    return Assignment(goals, aims, counts)


@pytest.mark.parametrize("seed", range(8))
def test_the_assignment_is_the_papers(seed: int) -> None:
    outputs, target = case(seed)
    found = assigned(outputs[:, :, :4], outputs[:, :, 4:].sigmoid(), target, POINTS)
    for image in range(len(outputs)):
        expected = slow(outputs[image], target[image])
        assert torch.equal(found.boxes[image], expected.boxes)
        assert torch.equal(found.counts[image], expected.counts)
        torch.testing.assert_close(found.scores[image], expected.scores, rtol=1e-4, atol=1e-6)
        assert expected.scores.any()
    assert not found.counts[1].all()  # some lie in the ignored object


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_papers(seed: int) -> None:
    """Focal weight |t - s|^2 on cross entropy, and CIoU by t, both over the sum of t: written with other functions."""
    outputs, target = case(seed)
    losses = detection_losses(outputs, target, POINTS)
    for image in range(len(outputs)):
        goal = slow(outputs[image], target[image])
        scores = outputs[image, :, 4:].double().sigmoid()
        entropy = -(goal.scores * scores.log() + (1 - goal.scores) * (1 - scores).log())
        total = max(float(goal.scores.sum()), 1.0)
        of_classes = float((entropy * (goal.scores - scores) ** 2)[goal.counts].sum()) / total
        of_boxes = sum(
            float(goal.scores[a].sum() * complete_box_iou_loss(outputs[image, a, :4], goal.boxes[a]))
            for a in range(len(POINTS))
        )
        assert float(losses["class_loss"][image]) == pytest.approx(of_classes, rel=1e-4)
        assert float(losses["box_loss"][image]) == pytest.approx(2 * of_boxes / total, rel=1e-4)
        assert float(losses["loss"][image]) == pytest.approx(of_classes + 2 * of_boxes / total, rel=1e-4)


def test_an_images_loss_does_not_depend_on_the_others() -> None:
    outputs, target = case(5)
    together = detection_losses(outputs, target, POINTS)["loss"]
    alone = [detection_losses(outputs[i : i + 1], target[i : i + 1, : 4 - i], POINTS)["loss"] for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_smallest_object_is_learnt() -> None:
    """One between all points: of each map the nearest position may learn it."""
    target = torch.tensor([[[15.0, 15.0, 17.0, 17.0, 1.0, 0.0]]])
    boxes = torch.cat([POINTS[:, :2] - 4, POINTS[:, :2] + 4], dim=1)[None]
    found = assigned(boxes, torch.full((1, len(POINTS), CLASSES), 0.1), target, POINTS)
    learns = found.scores[0, :, 1] > 0
    assert 1 <= int(learns.sum()) <= 8
    assert ((POINTS[learns, :2] - 16).abs() <= POINTS[learns, 2:] / 2).all()


def test_images_without_objects_learn_that_there_are_none() -> None:
    outputs, _ = case(0, images=1)
    outputs.requires_grad_()
    losses = detection_losses(outputs, torch.full((1, 1, 6), -1.0), POINTS)
    losses["loss"].sum().backward()
    assert losses["box_loss"].tolist() == [0.0]
    assert outputs.grad is not None and (outputs.grad[:, :, 4:] > 0).all() and not outputs.grad[:, :, :4].any()


def test_boxes_move_towards_their_objects() -> None:
    outputs, target = case(1)
    outputs = outputs.clone().requires_grad_()
    before = 0.0
    for step in range(60):
        losses = detection_losses(outputs, target, POINTS)["loss"].sum()
        before = before or losses.item()
        (gradient,) = torch.autograd.grad(losses, outputs)
        outputs = (outputs - 0.5 * gradient.sign() * (1 - step / 60)).detach().requires_grad_()
    overlaps = pairwise_iou(target[:, :, :4], outputs[:, :, :4]).amax(dim=2)
    is_object = (target[:, :, 4] >= 0) & (target[:, :, 5] == 0)
    assert losses.item() < before / 4 and (overlaps[is_object] > 0.8).all()


def test_a_target_is_unpacked() -> None:
    boxes, labels, ignored = unpacked(torch.tensor([[[1.0, 2, 3, 4, 7, 1], [-1, -1, -1, -1, -1, -1]]]))
    assert boxes.tolist() == [[[1, 2, 3, 4], [-1, -1, -1, -1]]]
    assert labels.tolist() == [[7, -1]] and labels.dtype == torch.int64
    assert ignored.tolist() == [[True, False]]
