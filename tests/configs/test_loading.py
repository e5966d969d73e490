"""Reading a config: classic keys work unchanged, and all mistakes are reported, each as a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from configs.docs_writer import SCHEMA_FILE
from configs.loading import ConfigError, describe_config, process_config
from configs.schema import Config
from trainers.config_checks import net_problems

PACK = "s3://bucket/P-*-tfrecord"


@pytest.fixture
def classic(tmp_path: Path) -> dict[str, Any]:
    """A config of an old checkout: the classic keys alone."""
    (tmp_path / "images").mkdir()
    (tmp_path / "trainset.txt").write_text("a.jpg----0\n")
    return {
        "model_module_name": "vgg_module",
        "model_net_name": "vgg16",
        "gpu_id": "0,1",
        "async_loading": True,
        "is_tensorboard": True,
        "evaluate_before_train": False,
        "shuffle": True,
        "data_aug": True,
        "num_epochs": 90,
        "img_height": 224,
        "img_width": 224,
        "num_channels": 3,
        "num_classes": 102,
        "batch_size": 32,
        "dataloader_workers": 4,
        "learning_rate": 0.001,
        "learning_rate_decay": 0.5,
        "learning_rate_decay_epoch": 10,
        "train_mode": "fromscratch",
        "file_label_separator": "----",
        "pretrained_path": "",
        "pretrained_file": "vgg16-397923af.pth",
        "pretrained_model_num_classes": 1000,
        "save_path": "logs",
        "save_name": "model.pth",
        "train_data_root_dir": str(tmp_path / "images"),
        "val_data_root_dir": str(tmp_path / "images"),
        "train_data_file": str(tmp_path / "trainset.txt"),
        "val_data_file": str(tmp_path / "trainset.txt"),
    }


def written(tmp_path: Path, values: Any) -> str:
    file = tmp_path / "a.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return str(file)


def problems(tmp_path: Path, values: Any, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        process_config(written(tmp_path, values), overrides)
    return [problem.replace(str(tmp_path) + "/", "") for problem in caught.value.problems]


def test_an_old_config_is_read_unchanged(tmp_path: Path, classic: dict[str, Any]) -> None:
    config = process_config(written(tmp_path, classic), ())
    assert {key: getattr(config, key) for key in classic} == classic
    assert config.gpu_ids() == [0, 1]
    assert config.best_checkpoint() == Path("logs/model.pth")
    assert config.last_checkpoint() == Path("logs/model_last.pth")


def test_every_newer_key_has_a_default(classic: dict[str, Any]) -> None:
    required = {name for name, field in Config.model_fields.items() if field.is_required()}
    assert required <= set(classic)


def test_all_mistakes_are_reported_together(tmp_path: Path, classic: dict[str, Any]) -> None:
    classic |= {"learing_rate": 0.1, "num_epochs": 0, "batch_size": "32", "resize": "stretch", "std": [1.0, 0.0]}
    found = problems(tmp_path, classic)
    assert 'a.json: unknown key "learing_rate"; did you mean "learning_rate"?' in found
    assert "a.json: num_epochs must be at least 1, got 0" in found
    assert 'a.json: batch_size must be a whole number, got "32"' in found
    assert "a.json: resize must be 'squash', 'letterbox' or 'crop', got \"stretch\"" in found
    assert "a.json: std must be at least 1e-09, got [1.0, 0.0]" in found  # this needs no other key
    assert "a.json: std must have num_channels (3) entries, got 2" in found
    assert len(found) == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"std": [1.0, 0.0, 1.0]}, "a.json: std must be at least 1e-09, got [1.0, 0.0, 1.0]"),
        ({"mean": [0.5]}, "a.json: mean must have num_channels (3) entries, got 1"),
        ({"gpu_id": "0;1"}, 'a.json: gpu_id must be "0", several as "0,1", or "cpu", got "0;1"'),
        ({"gpu_id": "1,1"}, 'a.json: gpu_id names a GPU twice, got "1,1"'),
        ({"gpu_id": 0}, "a.json: gpu_id must be a text in quotes, got 0"),
        ({"class_weights": [1.0]}, "a.json: class_weights must have num_classes (102) entries, got 1"),
        ({"warmup_epochs": 91}, "a.json: warmup_epochs must not exceed num_epochs, got 91 > 90"),
        ({"save_name": "a/b.pth"}, 'a.json: save_name is a file name without folders, got "a/b.pth"; put them in '),
        ({"train_mode": "finetune", "pretrained_file": ""}, 'a.json: train_mode "finetune" needs pretrained_file'),
        ({"random_crop_scale": [0.5, 1.5]}, "a.json: random_crop_scale must be at most 1, got 1.5"),
        ({"random_crop_scale": [0.5]}, "a.json: random_crop_scale must have 2 entries, got [0.5]"),
        ({"file_label_separator": ""}, 'a.json: file_label_separator must have 1 character, got ""'),
        ({"model_args": []}, "a.json: model_args must be an object {...}, got []"),
        ({"learning_rate": 1e999}, "a.json: learning_rate must be a finite number, got Infinity"),
        ({"save_name": "report.json"}, "a.json: save_name cannot be the name of a report"),
        ({"save_path": "a\0b"}, "a.json: save_path holds a NUL character"),
        ({"train_data_root_dir": "a\0b"}, "a.json: train_data_root_dir holds a NUL character"),
        ({"pretrained_file": "a\0b"}, "a.json: pretrained_file holds a NUL character"),
        ({"next_stage": {"save_path": "a\0b"}}, "a.json: next_stage: save_path holds a NUL character"),
        ({"random_crop_ratio": [1e-300, 1e300]}, "a.json: random_crop_ratio must be within 0.01 and 100"),
        ({"shuffle": 1}, "a.json: shuffle must be true or false, got 1"),
        (
            {"streamed_shards": 1, "train_data_file": PACK},
            "a.json: streamed_shards must be 0, or at least 2: one is read while the next one",
        ),
        ({"streamed_shards": 4}, 'a.json: streamed_shards is for packs, not for train_data_file "'),
        (
            {"streamed_shards": 4, "train_data_file": PACK, "balanced_sampling": True},
            "a.json: balanced_sampling draws from all images, and streamed_shards has few at a time; leave one out",
        ),
        ({"balanced_sampling": True, "class_weights": "balanced"}, "a.json: balanced_sampling and class_weights both"),
        ({"model_type": "a", "model_args": {"model_type": "b"}}, 'a.json: model_type is "a" but model_args.model_type'),
        (
            {"model_module_name": "simsiam_module", "model_net_name": "SimSiam", "horizontal_flip_alternates": True},
            "a.json: horizontal_flip_alternates would mirror both of SimSiam's views alike; use horizontal_flip",
        ),
        (
            {"model_module_name": "pim_module", "model_net_name": "PIM", "test_time_views": 6},
            "a.json: test_time_views is for nets that are validated by their logits alone, not for PIM",
        ),
        ({"test_time_views": 3}, "a.json: test_time_views must be 1, 2 or 6, got 3"),
        ({"min_learning_rate": 1.0}, "a.json: min_learning_rate must not exceed learning_rate, got 1 > 0.001"),
        ({"color_jitter": [0.1, 0.1, 0.1, 0.9]}, "a.json: color_jitter must be within 0 and 10, its hue"),
    ],
)
def test_each_mistake_is_a_sentence(
    tmp_path: Path, classic: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    found = problems(tmp_path, classic | change)
    assert len(found) == 1
    assert found[0].startswith(sentence)
    found = problems(tmp_path, classic | change | {"seed": "x"})  # another key's mistake hides none
    assert len(found) == 2
    assert any(problem.startswith(sentence) for problem in found)


def test_a_mistake_hides_no_other_that_holds_its_keys_letters(tmp_path: Path, classic: dict[str, Any]) -> None:
    """The letters of the rejected keys stand in the names of missing files."""
    changes = {"seed": "x", "resize": 1, "mean": "x", "std": 1, "compile": 7}
    files = {
        "train_data_root_dir": "/data/seeds/images",
        "val_data_file": "resize.std.txt",
        "class_names_file": "compile/meaning.txt",
    }
    found = problems(tmp_path, classic | changes | files)
    assert len(found) == len(changes) + len(files)
    assert 'a.json: train_data_root_dir "/data/seeds/images" is not a folder' in found
    assert 'a.json: val_data_file "resize.std.txt" is not a file' in found
    hint = f"(relative paths start from {Path.cwd()})"
    assert f'a.json: class_names_file "compile/meaning.txt" is not a file {hint}' in found


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"class_weights": [1.0]}, {"num_classes": "2"}),
        ({"mean": [0.5]}, {"num_channels": 65}),
        ({"warmup_epochs": 91}, {"num_epochs": "100"}),
        ({"min_learning_rate": 1.0}, {"learning_rate": 0}),
        ({"augment_on": "device", "rotation_degrees": 5}, {"rotation_degrees": "5"}),
        ({"train_mode": "update", "save_path": "nowhere"}, {"pretrained_file": 0}),
        ({"train_mode": "update", "pretrained_file": ""}, {"save_path": 0}),
        ({"balanced_sampling": True, "class_weights": "balanced"}, {"class_weights": "even"}),
        ({"model_type": "a", "model_args": {"model_type": "b"}}, {"model_args": []}),
        ({"next_stage": {"mean": [0.5]}}, {"num_channels": 65}),
        ({"next_stage": {"mean": [0.5], "num_channels": 65}}, {}),
    ],
)
def test_a_rule_is_not_applied_to_what_stands_in_for_a_rejected_value(
    tmp_path: Path, classic: dict[str, Any], change: dict[str, Any], wrong: dict[str, Any]
) -> None:
    found = problems(tmp_path, classic | change | wrong)
    (key,) = wrong or {"num_channels": 65}
    assert {problem.split(": ", 1)[1].removeprefix("next_stage: ").split()[0] for problem in found} == {key}


def test_the_mistakes_of_the_next_stage_hide_none(tmp_path: Path, classic: dict[str, Any]) -> None:
    following = {"num_epochs": 0, "learing_rate": 1, "next_stage": {}, "std": [0.0, 1.0, 1.0], "mean": [0.5]}
    found = problems(tmp_path, classic | {"next_stage": following, "num_classes": "2", "class_weights": [1.0]})
    assert found == [
        'a.json: num_classes must be a whole number, got "2"',
        'a.json: next_stage: unknown key "learing_rate"; did you mean "learning_rate"?',
        "a.json: next_stage: a third training cannot follow",
        "a.json: next_stage: num_epochs must be at least 1, got 0",
        "a.json: next_stage: mean must have num_channels (3) entries, got 1",
        "a.json: next_stage: std must be at least 1e-09, got [0.0, 1.0, 1.0]",
    ]


def test_a_nets_mistake_is_not_hidden_either(tmp_path: Path, classic: dict[str, Any]) -> None:
    """And one about the net is not made of the name that stands in for a rejected one."""
    simsiam = {"model_module_name": "simsiam_module", "model_net_name": "SimSiam", "data_aug": False, "seed": "x"}
    file = written(tmp_path, classic | simsiam | {"compile": "labels", "label_smoothing": 0.1, "model_args": {"x": 1}})
    with pytest.raises(ConfigError) as caught:
        process_config(file, checks=[net_problems])
    starts = [problem.removeprefix(f"{file}: ")[:20] for problem in caught.value.problems]
    assert [start.split()[0] for start in starts[:2]] == ["compile", "seed"]
    assert starts[2:] == ["nets/simsiam_module.", "label_smoothing need", "data_aug cannot be o"]
    file = written(tmp_path, classic | {"model_net_name": 3, "model_args": {"x": 1}})
    with pytest.raises(ConfigError) as caught:
        process_config(file, checks=[net_problems])
    assert caught.value.problems == [f"{file}: model_net_name must be a text in quotes, got 3"]


def test_packs_need_no_root_folder(tmp_path: Path, classic: dict[str, Any]) -> None:
    """Folders that are not there are not looked for; a pattern that is wrong is told alone."""
    for name in ("train-00000-of-00001-tfrecord", "val-00000-of-00002-tfrecord", "val-00001-of-00002-tfrecord"):
        (tmp_path / name).touch()
    packs = {f"{split}_data_file": f"{tmp_path}/{split}-*-tfrecord" for split in ("train", "val")}
    classic |= {"train_data_root_dir": "photos/train", "val_data_root_dir": "", "class_names_file": "", **packs}
    process_config(written(tmp_path, classic), check_files=True)
    (found,) = problems(tmp_path, classic | {"val_data_file": f"{tmp_path}/v-*-tfrecord"})
    assert f'val_data_file "v-*-tfrecord" fits no shard; in {tmp_path} are the packs train, val' in found
    (found,) = problems(tmp_path, classic | {"val_data_file": f"{tmp_path}/val-*"})
    assert "is a pattern, and one of a pack's shards must end in -tfrecord, such as" in found
    (found,) = problems(tmp_path, classic | {"train_data_file": "", "train_data_root_dir": "photos/train"})
    assert 'train_data_root_dir "photos/train" is not a folder' in found


def test_missing_key_and_missing_files(tmp_path: Path, classic: dict[str, Any]) -> None:
    del classic["num_classes"]
    assert problems(tmp_path, classic) == ['a.json: key "num_classes" is missing (outputs)']
    classic |= {"num_classes": 2, "train_data_root_dir": "nowhere", "val_data_file": "none.txt"}
    found = problems(tmp_path, classic)
    assert found[0] == 'a.json: train_data_root_dir "nowhere" is not a folder'
    assert found[1] == f'a.json: val_data_file "none.txt" is not a file (relative paths start from {Path.cwd()})'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1,}', "a.json:1:9: not valid JSON: "),
        ("[1]", 'a.json: a config is a JSON object {"key": value, ...}, got [1]'),
        ('{"num_epochs": 1, "num_epochs": 2}', 'a.json: key "num_epochs" is given twice'),
        ('{"num_epochs": ' + "1" * 5000 + "}", "a.json: Exceeds the limit"),
        ("[" * 100_000, "a.json: nested too deeply for a config"),
    ],
)
def test_what_is_not_a_config(tmp_path: Path, text: str, sentence: str) -> None:
    assert problems(tmp_path, text)[0].startswith(sentence)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json: cannot read the config: No such file or directory \(current"):
        process_config("none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        process_config(tmp_path / "b.json")


def test_overrides(tmp_path: Path, classic: dict[str, Any]) -> None:
    file = written(tmp_path, classic)
    config = process_config(file, ["num_epochs=3", "gpu_id=1", "save_name=x.pth", "model_args.dropout=0.1", "mean=[]"])
    assert (config.num_epochs, config.gpu_id, config.save_name) == (3, "1", "x.pth")
    assert config.net_args() == {"dropout": 0.1}
    assert problems(tmp_path, classic, ("mean=[1e999, 1, 1]", "model_args=3", "model_args.x=1")) == [
        "--set mean=[1e999, 1, 1]: mean[0] must be a finite number, got Infinity",
    ]
    assert problems(tmp_path, classic, ("num_epochs=0", "nonsense", "shuffle.x=1")) == [
        "--set nonsense: write key=value",
        "--set shuffle.x=1: only model_args and next_stage have inner keys",
        "--set num_epochs=0: num_epochs must be at least 1, got 0",
    ]


def test_print_config_names_the_origin(tmp_path: Path, classic: dict[str, Any]) -> None:
    file = written(tmp_path, classic)
    text = describe_config(process_config(file, ["seed=4"]), file, ["seed=4"])
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["seed"] == ["4", "override"]
    assert rows["num_epochs"] == ["90", file]
    assert rows["precision"] == ['"auto"', "default"]
    assert set(rows) == set(Config.model_fields)


@pytest.mark.parametrize("file", sorted(p for p in (ROOT / "configs").glob("*.json") if p != SCHEMA_FILE))
def test_every_recipe_is_valid_and_names_the_schema(file: Path) -> None:
    process_config(file, check_files=False)
    assert json.loads(file.read_text(encoding="utf-8"))["$schema"] == "./config.schema.json"


def test_help_and_config_mistakes_come_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, train\n"
        f"code = train.main(['--config', {str(tmp_path / 'none.json')!r}])\n"
        "assert code == 2 and 'torch' not in sys.modules and 'matplotlib' not in sys.modules, code\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot read the config" in done.stderr
    assert "Traceback" not in done.stderr
