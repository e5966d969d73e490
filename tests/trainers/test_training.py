"""The training loop: golden losses, exact resume, several processes as one, and every way it can end."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from artifacts.metadata import build_metadata
from common.paths import ROOT
from configs.loading import process_config
from configs.schema import Config
from data_loader.preprocess import Preprocess
from deploy.backends.loading import load_torch
from tests.conftest import GEM_RESNET, slow_but
from tests.helpers.breaking import dying_after_save
from trainers import builder
from trainers.data.reading import read_data
from trainers.optim.lr_schedule import Schedule
from trainers.optim.optimizer import AveragedNet, FreezeError, build_optimizer, freeze_parameters, hold_frozen_in_eval
from trainers.runtime.device import HardwareError, choose_device, choose_precision
from trainers.runtime.distributed import World
from trainers.tasks.classification import ClassificationTask, balanced_class_weights

ConfigMaker = Callable[..., Path]


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


def program(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


def digest(folder: Path, name: str = "net_last.pth") -> str:
    return weights_sha256(load_checkpoint(folder / "weights" / name).net)


# --- the schedule, against the formulas written out ---


def test_step_decay_is_the_classic_one() -> None:
    schedule = Schedule("step", 0.1, num_epochs=9, decay=0.5, decay_epochs=3)
    expected = [0.1 * 0.5 ** (epoch // 3) for epoch in range(9) for _ in range(5)]
    assert [schedule.at(step / 5) for step in range(45)] == pytest.approx(expected)


def test_cosine_with_warmup_agrees_with_torch() -> None:
    schedule = Schedule("cosine", 0.3, num_epochs=4, min_rate=0.01, warmup_epochs=1)
    warm = [schedule.at(step / 10) for step in range(10)]
    assert warm == pytest.approx([0.003 + 0.297 * step / 10 for step in range(10)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30, eta_min=0.01)
    for step in range(10, 40):
        assert schedule.at(step / 10) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        reference.step()


def test_linear_with_warmup_is_a_triangle() -> None:
    schedule = Schedule("linear", 0.4, num_epochs=10, min_rate=0.02, warmup_epochs=2)
    expected = np.interp(np.arange(0, 10.01, 0.1), [0, 2, 10], [0.004, 0.4, 0.02])
    assert [schedule.at(step / 10) for step in range(101)] == pytest.approx(expected)
    assert Schedule("linear", 0.4, num_epochs=10).at(2.5) == pytest.approx(0.3)


# --- the task ---


def test_loss_against_the_formula_written_out() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(6, 3))
    labels = np.array([0, 1, 2, 2, 1, 0])
    weights, smoothing = np.array([1.0, 2.0, 0.5]), 0.2
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    # F.cross_entropy weighs each class's share of a smoothed target by that class's own weight.
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    expected = -(targets * weights * log_p).sum(1).mean()
    task = ClassificationTask(torch.nn.Identity(), label_smoothing=smoothing, class_weights=weights.tolist())
    batch = {"image": torch.tensor(logits, dtype=torch.float32), "target": torch.tensor(labels)}
    assert float(task(batch, generator)["loss"]) == pytest.approx(expected, rel=1e-5)


def test_balanced_class_weights_average_to_one() -> None:
    counts = [90, 9, 1, 0]
    weights = balanced_class_weights(counts)
    assert weights == pytest.approx([100 / (3 * 90), 100 / (3 * 9), 100 / 3, 0])
    assert sum(w * c for w, c in zip(weights, counts, strict=True)) / 100 == pytest.approx(1)


def test_average_follows_its_recurrence() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    torch.nn.init.constant_(net[0].weight, 1.0)
    mean = AveragedNet(net, decay=0.5)
    expected = 1.0
    for number, value in enumerate([2.0, 5.0, 3.0, 8.0, 1.0, 4.0, 7.0, 9.0, 6.0, 2.0, 3.0]):
        torch.nn.init.constant_(net[0].weight, value)
        net[1].num_batches_tracked.fill_(number)
        mean.update(net, number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
        assert float(mean.net[0].weight) == pytest.approx(expected, rel=1e-5)
        assert int(mean.net[1].num_batches_tracked) == number


def test_freezing_by_name_and_by_pattern() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    assert freeze_parameters(net, ["0", "1.w*", "1.bias"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    net.train()
    hold_frozen_in_eval(net)
    before = net[1].running_mean.clone()
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    assert torch.equal(net[1].running_mean, before)
    assert net[0].weight.grad is None and net[2].weight.grad is not None
    with pytest.raises(FreezeError, match='freeze: "layer9" fits no parameter; the net\'s parts are 0, 1, 2'):
        freeze_parameters(net, ["layer9"])
    with pytest.raises(FreezeError, match="leaves no parameter to train"):
        freeze_parameters(net, ["*"])


# --- the hardware ---


def test_without_cuda_one_line_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, line = choose_device([0, 1])
    assert device.type == "cpu"
    assert line == 'no CUDA device here: gpu_id "0,1" is ignored, training on the CPU'


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(HardwareError, match=r"gpu_id names GPU 5, this machine has 2 \(0..1\)"):
        choose_device([0, 5])


def test_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_precision("auto", torch.device("cuda")) == "fp32"
    monkeypatch.setattr("trainers.runtime.device.multiplies_bf16", lambda: True)
    assert choose_precision("auto", torch.device("cpu")) == "bf16"
    assert choose_precision("fp16", torch.device("cpu")) == "fp16"


# --- whole trainings ---


def test_training_learns_and_leaves_everything(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(
        **GEM_RESNET,
        seed=1,
        num_epochs=8,
        batch_size=7,
        learning_rate=0.005,
        data_aug=False,
        is_tensorboard=True,
        ema_decay=0.5,
        evaluate_before_train=True,
    )
    assert run_train(config) == 0
    best = load_checkpoint(dataset / "weights/net.pth")
    assert best.metadata.class_names == ("circle", "方块", "stripes")
    assert best.metadata.net == {
        "module": "GeM_ResNet_module", "name": "GeM_ResNet_AVP", "args": {"model_type": "resnet18"}
    }  # fmt: skip
    assert best.ema is not None and best.optimizer is None
    report = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert report["status"] == "finished"
    assert report["best"]["top1"] == best.progress["best"]["top1"] > 0.6
    assert len(report["curves"]["val"]) == 8
    assert report["num_train"] == 21 and report["num_val"] == 9
    assert "方块" in (dataset / "weights/report.html").read_text(encoding="utf-8")
    assert list((dataset / "logs").rglob("events.out.tfevents.*"))
    out = capsys.readouterr().out
    assert "before training: val loss" in out
    assert "epoch 8/8" in out


GOLDEN = {
    **GEM_RESNET,
    "channels_last": False,
    "learning_rate": 0.001,
    "num_epochs": 2,
    "batch_size": 7,
    "seed": 3,
    "data_aug": False,
}


def test_golden_losses(make_config: ConfigMaker, dataset: Path) -> None:
    """The loop's losses against ten lines that do the same with torch alone."""
    file = make_config(**GOLDEN, log_interval=1, weight_decay=0.01, clip_grad_norm=1.0)
    assert run_train(file) == 0
    curve = load_checkpoint(dataset / "weights/net_last.pth").progress["curves"]["train"]
    config = process_config(file)
    samples, *_ = read_data(config, World(), lambda text: None)
    net = builder.build_start_net(config, lambda text: None)
    preprocess = build_metadata(config, samples.class_names).preprocess
    gem = [p for name, p in net.named_parameters() if name.endswith(".p")]
    rest = [p for name, p in net.named_parameters() if not name.endswith(".p")]
    groups = [{"params": gem, "weight_decay": 0.0}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.01)
    expected = []
    for epoch in range(2):
        order = np.random.default_rng([3, epoch, 0]).permutation(21)
        for first in range(0, 21, 7):
            chosen = [samples.samples[index] for index in order[first : first + 7]]
            arrays = [preprocess(np.asarray(preprocess.decode(sample.path))) for sample in chosen]
            images = torch.from_numpy(np.stack(arrays))
            loss = torch.nn.functional.cross_entropy(net(images), torch.tensor([s.label for s in chosen]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            expected.append(loss.item())
    assert [point["loss"] for point in curve] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_batches_equal_the_big_batch(make_config: ConfigMaker, dataset: Path, optimizer: str) -> None:
    results = []
    for size, accumulation in ((12, 1), (4, 3)):
        config = make_config(
            model_module_name="squeezenet_module", model_net_name="squeezenet1_1",
            model_args={"dropout": 0.0}, img_height=64, img_width=64, batch_size=size,
            accumulation_steps=accumulation, optimizer=optimizer, learning_rate=1e-3, num_epochs=1,
            class_weights=[1.0, 2.0, 0.5],
        )  # fmt: skip
        assert run_train(config) == 0
        results.append(load_checkpoint(dataset / "weights/net_last.pth").net)
    start = builder.build_start_net(process_config(config), lambda text: None).state_dict()
    moved = max(float((results[0][name] - start[name]).abs().max()) for name in start)
    apart = max(float((results[0][name] - results[1][name]).abs().max()) for name in start)
    assert apart < moved / 50  # AdamW's first steps divide by gradients near 0, which rounding moves


RECIPE = {
    "data_aug": True, "random_crop_scale": [0.6, 1.0], "horizontal_flip": 0.5, "ema_decay": 0.9, "mixup_alpha": 0.2,
    "cutmix_alpha": 0.5, "label_smoothing": 0.1, "num_epochs": 3, "batch_size": 4, "accumulation_steps": 2,
    "learning_rate_schedule": "cosine", "warmup_epochs": 1, "log_interval": 1,
}  # fmt: skip


class Interrupted(Exception):
    """Stands for the power going off."""


@pytest.mark.parametrize(
    "net",
    [
        "shufflenet_v2_module.shufflenet_v2_x0_5",
        pytest.param("squeezenet_module.squeezenet1_1", marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch, net: str
) -> None:
    """To the bit: with dropout (squeezenet), batch norm (shufflenet), EMA, mixup, views, mid-epoch and at its end.

    A step is two batches of 4, so an epoch of 21 images has three steps.
    """
    module, _, name = net.partition(".")
    changes = {**RECIPE, "model_module_name": module, "model_net_name": name}
    assert run_train(make_config(**changes, save_path=str(dataset / "whole"))) == 0
    whole = load_checkpoint(dataset / "whole/net_last.pth")
    for stop_at in (2, 3, 4, 7):  # at 3, the end of an epoch, before its validation
        folder = dataset / f"stopped_at_{stop_at}"
        config = make_config(**changes, save_path=str(folder), save_interval_steps=1)
        with pytest.raises(Interrupted), dying_after_save(stop_at, Interrupted):
            run_train(config)
        torch.manual_seed(99)  # whatever happened in between must not matter
        assert run_train(config, "--resume") == 0
        resumed = load_checkpoint(folder / "net_last.pth")
        assert weights_sha256(whole.net) == weights_sha256(resumed.net), stop_at
        assert weights_sha256(whole.deployed()) == weights_sha256(resumed.deployed()), stop_at
        assert whole.progress["curves"] == resumed.progress["curves"], stop_at
        for key in ("step", "epoch", "best"):
            assert whole.progress[key] == resumed.progress[key], stop_at


LAUNCHERS = {
    "train.py": ["train.py", "--set", "num_processes=2"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"],
}


@pytest.mark.parametrize("launcher", slow_but(["train.py"], LAUNCHERS))
def test_two_processes_equal_one_with_twice_the_batch(make_config: ConfigMaker, dataset: Path, launcher: str) -> None:
    """21 images in batches of 8 leave a rest of 5, which is shared 3 to 2; validation's 9 are shared 5 to 4."""
    changes = {
        "model_module_name": "squeezenet_module", "model_net_name": "squeezenet1_1",
        "model_args": {"dropout": 0.0}, "img_height": 64, "img_width": 64, "learning_rate": 1e-3, "num_epochs": 2,
        "test_time_views": 6,
    }  # fmt: skip
    assert train.main(["--config", str(make_config(**changes, batch_size=8))]) == 0
    single = load_checkpoint(dataset / "weights/net_last.pth")
    two = program(*LAUNCHERS[launcher], "--config", str(make_config(**changes, batch_size=4)))
    assert two.returncode == 0, two.stderr
    assert "2 processes" in two.stdout
    assert two.stdout.count("epoch 2/2") == 1  # one process speaks for all
    double = load_checkpoint(dataset / "weights/net_last.pth")
    largest = max(float((value - double.net[name]).abs().max()) for name, value in single.net.items())
    assert largest < 1e-5
    for mine, theirs in zip(single.progress["curves"]["val"], double.progress["curves"]["val"], strict=True):
        assert (mine["top1"], mine["top1_views"]) == (theirs["top1"], theirs["top1_views"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert int(double.progress["best_result"]["cells"][:, 2].sum()) == 9


SIGNALS = [
    (number, code, processes) for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)) for processes in (1, 2)
]


@pytest.mark.parametrize(("number", "code", "processes"), slow_but([SIGNALS[0], SIGNALS[3]], SIGNALS))
def test_a_signal_saves_and_leaves_with_a_word(
    make_config: ConfigMaker, dataset: Path, number: signal.Signals, code: int, processes: int
) -> None:
    config = make_config(num_epochs=500, num_processes=processes, log_interval=1, dataloader_workers=1)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "train.py", "--config", str(config)], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (dataset / "weights/net_last.pth").is_file():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(running.pid, number)  # as a terminal, timeout(1) and systemd do: to the loader processes too
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, out + err
    assert f"interrupted by {number.name}" in out
    assert "(go on with train.py --resume)" in out
    assert "Traceback" not in err
    load_checkpoint(dataset / "weights/net_last.pth")


def test_a_second_interrupt_is_no_failure_and_names_no_other_trainings_checkpoint(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_train(make_config(num_epochs=1)) == 0

    def press_twice(task: ClassificationTask, batch: Any, generator: Any) -> Any:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ClassificationTask, "training_step", press_twice)
    capsys.readouterr()
    assert run_train(make_config(num_epochs=1)) == 130
    out = capsys.readouterr().out
    assert "interrupted by SIGINT before the first validation" in out and "last checkpoint" not in out
    assert json.loads((dataset / "weights/report.json").read_text())["status"] == "interrupted by SIGINT"


def test_a_loss_that_is_not_finite_stops_the_training(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ClassificationTask.training_step

    def spoiled(task: ClassificationTask, batch: Any, generator: Any) -> Any:
        out = step(task, batch, generator)
        spoiled.calls += 1
        return {"loss": out["loss"] * math.nan} if spoiled.calls == 8 else out

    spoiled.calls = 0
    monkeypatch.setattr(ClassificationTask, "training_step", spoiled)
    assert run_train(make_config(log_interval=1)) == 1
    err = capsys.readouterr().err
    assert "the loss became nan in epoch 2, step 7" in err
    assert f"the last good checkpoint is {dataset}/weights/net_last.pth" in err
    last = load_checkpoint(dataset / "weights/net_last.pth")
    assert last.progress["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in last.net.values() if value.is_floating_point())
    monkeypatch.undo()
    assert run_train(make_config(num_epochs=1)) == 0  # without --resume
    warning = f"warning: {dataset}/weights/net_last.pth holds a training that stopped after 1 of "
    assert warning in capsys.readouterr().out
    assert run_train(make_config(num_epochs=1)) == 0
    assert "holds a training that stopped" not in capsys.readouterr().out  # the one before has ended


def test_early_stopping(make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(
        **GEM_RESNET, num_epochs=50, early_stopping_epochs=2, freeze=["conv1", "bn1", "layer*"], learning_rate=1e-9
    )
    assert run_train(config) == 0
    assert "no better top-1 for 2 epochs: stopped early" in capsys.readouterr().out
    assert json.loads((dataset / "weights/report.json").read_text())["status"] == "stopped early"


def test_fp16_gradient_checkpointing_and_balanced_options(make_config: ConfigMaker, dataset: Path) -> None:
    config = make_config(
        precision="fp16", gradient_checkpointing=True, class_weights="balanced", clip_grad_norm=1.0, optimizer="adamw",
        learning_rate=1e-3, decay_norm_and_bias=False, auto_augment="trivialaugment", random_erasing=0.5, num_epochs=1,
    )  # fmt: skip
    assert run_train(config) == 0
    assert load_checkpoint(dataset / "weights/net_last.pth").scaler


def test_gradient_checkpointing_changes_no_number(make_config: ConfigMaker, dataset: Path) -> None:
    digests = set()
    for switch in (False, True):
        assert run_train(make_config(gradient_checkpointing=switch, num_epochs=1)) == 0
        digests.add(digest(dataset))
    assert len(digests) == 1


def test_class_folders_and_grey_images(make_config: ConfigMaker, dataset: Path) -> None:
    for split in ("train", "val"):
        for number in range(21 if split == "train" else 9):
            folder = dataset / "folders" / split / ("a1", "a2", "a10")[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            (dataset / "images" / split / f"{number:02d}.png").rename(folder / f"{number}.png")
    config = make_config(
        train_data_file="", val_data_file="", train_data_root_dir=str(dataset / "folders/train"),
        val_data_root_dir=str(dataset / "folders/val"), num_channels=1, num_epochs=1,
    )  # fmt: skip
    assert run_train(config) == 0
    metadata = load_checkpoint(dataset / "weights/net.pth").metadata
    assert metadata.class_names == ("a1", "a2", "a10")
    assert metadata.preprocess.channels == 1


def test_bad_images_stop_or_are_skipped_and_counted(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = dataset / "images/train/04.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert run_train(make_config(num_epochs=1)) == 2
    assert f"{dataset}/train.txt:5: {bad}: it is damaged" in capsys.readouterr().err
    assert run_train(make_config(num_epochs=1, bad_images="skip")) == 2
    assert "4.76% of the images are bad, 1.00% may be (max_bad_share):" in capsys.readouterr().err
    assert run_train(make_config(num_epochs=1, bad_images="skip", max_bad_share=0.1)) == 0
    report = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert report["num_train"] + len(report["skipped_images"]) == 21
    assert report["skipped_images"][0]["where"] == f"{dataset}/train.txt:5"


def test_finetune_and_update(make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(make_config(**GEM_RESNET, num_epochs=1)) == 0
    first = load_checkpoint(dataset / "weights/net.pth")
    start = {**GEM_RESNET, "pretrained_path": str(dataset / "weights"), "pretrained_file": "net.pth", "num_epochs": 1}
    capsys.readouterr()
    frozen = {"freeze": ["conv1", "bn1", "layer*"], "learning_rate": 1e-7}
    assert run_train(make_config(**start, **frozen, train_mode="finetune", save_name="fine.pth", seed=7)) == 0
    assert "the head's rows of 3 of 3 classes are kept by name" in capsys.readouterr().out
    fine = load_checkpoint(dataset / "weights/fine.pth").net
    assert torch.equal(fine["layer4.1.conv2.weight"], first.net["layer4.1.conv2.weight"])
    torch.testing.assert_close(fine["fc.weight"], first.net["fc.weight"], rtol=1e-3, atol=1e-4)
    assert run_train(make_config(**{**start, "model_type": "resnet34"}, train_mode="update")) == 2
    assert "missing" in capsys.readouterr().err


def test_update_never_replaces_a_better_net(make_config: ConfigMaker, dataset: Path) -> None:
    assert run_train(make_config(**GEM_RESNET, num_epochs=6)) == 0
    best = load_checkpoint(dataset / "weights/net.pth")
    assert best.progress["best"]["top1"] > 0.5
    assert (
        run_train(make_config(**GEM_RESNET, train_mode="update", num_epochs=1, learning_rate=30.0, clip_grad_norm=0.1))
        == 0
    )
    after = load_checkpoint(dataset / "weights/net.pth")
    assert after.progress["best"]["top1"] == best.progress["best"]["top1"]
    assert weights_sha256(after.net) == weights_sha256(best.net)


def test_an_old_config_trains_unchanged(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the classic keys, and relative paths from the current folder, as an old checkout has them."""
    monkeypatch.chdir(dataset)
    old = {
        "model_module_name": "resnet_module", "model_net_name": "resnet18", "gpu_id": "0", "async_loading": True,
        "is_tensorboard": True, "evaluate_before_train": True, "shuffle": True, "data_aug": True, "num_epochs": 1,
        "img_height": 32, "img_width": 32, "num_channels": 3, "num_classes": 3, "batch_size": 8,
        "dataloader_workers": 1, "learning_rate": 0.01, "learning_rate_decay": 0.5, "learning_rate_decay_epoch": 10,
        "train_mode": "fromscratch", "file_label_separator": "----", "pretrained_path": "pretrained",
        "pretrained_file": "resnet18.pth", "pretrained_model_num_classes": 1000, "save_path": "logs",
        "save_name": "model.pth", "train_data_root_dir": "images", "val_data_root_dir": "images",
        "train_data_file": "train.txt", "val_data_file": "val.txt",
    }  # fmt: skip
    (dataset / "old.json").write_text(json.dumps(old))
    assert run_train(Path("old.json")) == 0
    assert load_checkpoint("logs/model.pth").metadata.class_names == ("circle", "方块", "stripes")


def test_an_overflow_leaves_sgd_as_it_was() -> None:
    """Fused SGD left its momentum uninitialised when the scaler skipped its first step."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(net.weight)
    settings = {"learning_rate": 0.1, "weight_decay": 0.0, "momentum": 0.9, "nesterov": True}
    optimizer = build_optimizer(net, "sgd", **settings, decay_norm_and_bias=True, fused=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (float("inf"), 1.0):
        net.weight.grad = torch.full((1, 1), gradient) * scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    assert net.weight.item() == pytest.approx(1 - 0.1 * 1.9)  # one nesterov step: lr * (g + momentum * g)


def test_resume_takes_the_new_settings_and_refuses_another_net(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(make_config(**GEM_RESNET, num_epochs=1)) == 0
    assert (
        run_train(make_config(**GEM_RESNET, num_epochs=2, weight_decay=0.5, ema_decay=0.9, batch_size=7), "--resume")
        == 0
    )
    out = capsys.readouterr().out
    assert "resuming with another weight_decay: 0.0001 before, 0.5 now" in out
    last = load_checkpoint(dataset / "weights/net_last.pth")
    assert last.optimizer is not None and last.optimizer["param_groups"][0]["weight_decay"] == 0.5
    assert last.ema is not None
    distance = (last.ema["conv1.weight"] - last.net["conv1.weight"]).abs().mean()
    assert distance < 0.5 * last.net["conv1.weight"].abs().mean()  # not still a random net's average
    assert run_train(make_config(**{**GEM_RESNET, "model_type": "resnet34"}), "--resume") == 2
    assert "--resume cannot go on with another net or optimizer: model_type was 'resnet18', is 'resnet34'" in (
        capsys.readouterr().err
    )


def test_a_training_from_before_colour_profiles_goes_on_without(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(make_config(num_epochs=1)) == 0
    path = dataset / "weights/net_last.pth"
    assert load_checkpoint(path).metadata.preprocess.icc_profiles == "convert"
    content = torch.load(path, weights_only=True)
    del content["config"]["icc_profiles"], content["facts"]["preprocess"]["icc_profiles"]
    torch.save(content, path)
    assert load_checkpoint(path).metadata.preprocess.icc_profiles == "ignore"
    assert run_train(make_config(num_epochs=2), "--resume") == 0
    assert 'resuming with icc_profiles "ignore": this training began before' in capsys.readouterr().out
    resumed = load_checkpoint(path)
    assert resumed.metadata.preprocess.icc_profiles == resumed.config["icc_profiles"] == "ignore"
    bare = dataset / "bare.pth"
    torch.save(resumed.net, bare)
    for given, expected in (({}, "ignore"), ({"icc_profiles": "convert"}, "convert")):
        _, metadata = load_torch(bare, "cpu", process_config(make_config(**given)))
        assert metadata.preprocess.icc_profiles == expected


def test_resume_keeps_every_point_of_tensorboard(make_config: ConfigMaker, dataset: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run_train(make_config(num_epochs=1, is_tensorboard=True, log_interval=1)) == 0
    assert run_train(make_config(num_epochs=2, is_tensorboard=True, log_interval=1), "--resume") == 0
    (folder,) = (dataset / "logs/tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("val/top1")] == [5, 10]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(10))


def test_a_full_disk_is_named_and_claims_no_checkpoint(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run_train(make_config(num_epochs=1)) == 2
    captured = capsys.readouterr()
    assert f"{dataset}/weights/net.pth: cannot write the checkpoint: No space left on device" in captured.err
    assert "best checkpoint" not in captured.out


def test_a_foreign_state_is_refused_on_resume(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(make_config(num_epochs=1)) == 0
    path = dataset / "weights/net_last.pth"
    content = torch.load(path, weights_only=True)
    changes: list[dict[str, Any]] = [
        {"progress": {**content["progress"], "step": -1}},
        {"optimizer": {"state": {}, "param_groups": []}},
    ]
    for change in changes:
        torch.save({**content, **change}, path)
        assert run_train(make_config(num_epochs=2), "--resume") == 2
        err = capsys.readouterr().err
        assert "does not fit this training" in err or "progress cannot be read" in err
        assert "Traceback" not in err


def test_balanced_sampling_trains(make_config: ConfigMaker, dataset: Path) -> None:
    lines = (dataset / "train.txt").read_text().splitlines()
    (dataset / "few.txt").write_text("\n".join(line for line in lines if not line.endswith("2") or "02" in line))
    config = make_config(train_data_file=str(dataset / "few.txt"), balanced_sampling=True, num_epochs=1)
    assert run_train(config) == 0


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(HardwareError, match=r'2 processes on this machine, but gpu_id "0" names 1 GPU'):
        choose_device([0], local_rank=1, local_size=2)


def test_a_mistake_is_reported_once_by_several_processes(make_config: ConfigMaker) -> None:
    done = program("train.py", "--config", str(make_config(freeze=["layer7"], num_processes=2)))
    assert done.returncode == 2
    assert done.stderr.count('freeze: "layer7" fits no parameter') == 1
    assert "Traceback" not in done.stderr


def test_a_mistake_is_reported_under_torchrun_whichever_process_is_faster(make_config: ConfigMaker) -> None:
    config = str(make_config(learning_rate=-1))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, "train.py", "--config", config], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("train.py: ") == 1 and "learning_rate must be" in done.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({**GEM_RESNET, "model_net_name": "GeM_ResNet_APV"}, 'did you mean "GeM_ResNet_AVP"'),
        ({"model_module_name": "../train"}, "../train"),
        ({"num_classes": 5}, "classes.txt: 3 class names, but num_classes is 5"),
        ({"freeze": ["layer7"]}, 'freeze: "layer7" fits no parameter'),
        ({**GEM_RESNET, "model_type": "resnet17"}, "resnet17"),
        ({"model_args": {"widht": 3}}, "widht"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    make_config: ConfigMaker, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    assert run_train(make_config(**changes)) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err


def test_resume_without_a_checkpoint_and_with_a_changed_key(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(make_config(), "--resume") == 2
    assert "net_last.pth: no such file" in capsys.readouterr().err
    assert run_train(make_config(num_epochs=1)) == 0
    assert run_train(make_config(num_epochs=2), "--resume") == 0
    out = capsys.readouterr().out
    assert "resuming with another num_epochs: 1 before, 2 now" in out
    assert "resuming in epoch 2 at step 5" in out


def test_config_needs_no_change_between_processes(make_config: ConfigMaker) -> None:
    config = process_config(make_config())
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_dead_loader_process_is_a_sentence(
    make_config: ConfigMaker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = os.getpid()
    decode = Preprocess.decode

    def die(preprocess: Preprocess, *given: Any) -> Any:
        if os.getpid() != home:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(preprocess, *given)

    monkeypatch.setattr(Preprocess, "decode", die)
    assert run_train(make_config(dataloader_workers=1)) == 1
    assert "a loader process died: lower dataloader_workers" in capsys.readouterr().err


def test_a_net_that_cannot_be_compiled_is_one_sentence(
    make_config: ConfigMaker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without a compiler, which torch finds out in the first step."""
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    assert run_train(make_config(compile=True)) == 1
    err = capsys.readouterr().err
    assert 'train.py: "compile" fails here: ' in err and "compiler" in err
    assert '"compile": false trains without it' in err and "Traceback" not in err
