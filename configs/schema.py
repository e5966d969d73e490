"""The config: every key, its meaning and default, and `process_config`, which reads one and reports all its mistakes.

Run `python -m configs.schema` to write `configs/config.schema.json`, by which editors complete and check the keys, and
`docs/config.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import UserError
from common.formatting import did_you_mean

SCHEMA_FILE = Path(__file__).with_name("config.schema.json")
TABLE_FILE = SCHEMA_FILE.parent.parent / "docs" / "config.md"
DEFAULT_CONFIG = "configs/config.json"
LEAST_STD = 1e-9  # an image divided by less has no float32
ON_CPU_ONLY = ("rotation_degrees", "auto_augment")  # augmentations that take one image at a time


PLACEHOLDERS = {  # stand in for required keys that are missing or wrong, so that the others can still be checked
    "model_module_name": "model_module_name",
    "model_net_name": "model_net_name",
    "num_classes": 2,
    "train_data_root_dir": ".",
    "val_data_root_dir": ".",
}


class ConfigError(UserError):
    """All mistakes of one config; `problems` holds a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class Config(BaseModel):
    """One complete training recipe. Frozen; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    # The net
    model_module_name: str = Field(description="file in nets/ without .py, e.g. GeM_ResNet_module")
    model_net_name: str = Field(description="function or class in that file, e.g. GeM_ResNet_AVP")
    model_type: str = Field("", description="short for model_args.model_type, e.g. resnet34")
    model_args: dict[str, Any] = Field({}, description="further arguments of the net, by name")
    img_height: int = Field(224, ge=1, le=8192, description="input height, pixels")
    img_width: int = Field(224, ge=1, le=8192, description="input width, pixels")
    num_channels: Literal[1, 3] = Field(3, description="1 (grey) or 3 (RGB)")
    num_classes: int = Field(ge=2, le=1_000_000, description="outputs")

    # Data
    train_data_root_dir: str = Field(description="folder that the training list's paths start from")
    val_data_root_dir: str = Field(description="folder that the validation list's paths start from")
    train_data_file: str = Field("", description="txt list for training; empty: one folder a class under the root dir")
    val_data_file: str = Field("", description="txt list for validation; empty: one folder a class under the root dir")
    file_label_separator: str = Field("----", min_length=1, description="what stands between path and label")
    class_names_file: str = Field(
        "", description="one class name a line; empty: classes.txt beside the list, else the numbers"
    )
    allow_outside_root: bool = Field(False, description="let list paths leave the root dir")
    bad_images: Literal["error", "skip"] = Field("error", description="stop at an image that cannot be read, or skip")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="largest share of images that may be skipped")
    max_pixels: int = Field(
        64_000_000, ge=1, le=178_956_970, description="an image with more pixels is refused before decoding"
    )
    resize: Literal["squash", "letterbox", "crop"] = Field(
        "squash", description="stretch to the input size, pad to it, or cover it and cut the middle out"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field("bilinear", description="of the resize")
    mean: list[float] = Field([], description="per channel, of values 0..1; empty: ImageNet's")
    std: list[float] = Field([], description="per channel, of values 0..1; empty: ImageNet's")
    dataloader_workers: int = Field(2, ge=0, le=256, description="loader processes (0: load in the main process)")
    data_cache: Literal["none", "ram", "disk"] = Field(
        "none",
        description="keep the images decoded and fitted: in memory for this run, or in a file for later ones too",
    )
    data_cache_dir: str = Field("logs/cache", min_length=1, description='folder of the files of data_cache "disk"')
    fitted_scale: float = Field(
        1.0,
        ge=1,
        le=4,
        description="sides, in input sizes, of the fitted images that views are made from (data_cache, augment_on)",
    )
    fast_decode: Literal["off", "training", "all"] = Field(
        "training",
        description="decode JPEGs of at least twice the wanted size at a reduced one; all: in validation too",
    )
    async_loading: bool = Field(True, description="copy batches to the GPU asynchronously from pinned memory")
    shuffle: bool = Field(True, description="shuffle the training data every epoch")
    balanced_sampling: bool = Field(False, description="draw every class equally often")

    # Augmentation
    data_aug: bool = Field(True, description="augment the training data")
    random_crop_scale: list[float] = Field(
        [0.35, 1.0], min_length=2, max_length=2, description="smallest and largest share of the area a crop keeps"
    )
    random_crop_ratio: list[float] = Field(
        [0.8, 1.25], min_length=2, max_length=2, description="smallest and largest stretch of a crop"
    )
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability")
    horizontal_flip_alternates: bool = Field(
        False, description="mirror every image in each second epoch, half of them in the even ones, not by chance"
    )
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability")
    rotation_degrees: float = Field(0.0, ge=0, le=180, description="largest rotation either way")
    translate: float = Field(0.0, ge=0, lt=1, description="largest shift as a share of the side")
    color_jitter: list[float] = Field(
        [0.2, 0.2, 0.2, 0.0], min_length=4, max_length=4, description="brightness, contrast, saturation, hue (to 0.5)"
    )
    color_jitter_probability: float = Field(1.0, ge=0, le=1, description="of color_jitter")
    random_grayscale: float = Field(0.0, ge=0, le=1, description="probability")
    gaussian_blur: float = Field(0.0, ge=0, le=1, description="probability")
    random_erasing: float = Field(0.0, ge=0, le=1, description="probability")
    auto_augment: Literal["", "randaugment", "trivialaugment"] = Field("", description="a published policy on top")
    mixup_alpha: float = Field(0.0, ge=0, description="mixup's beta parameter; 0: off")
    cutmix_alpha: float = Field(0.0, ge=0, description="cutmix's beta parameter; 0: off; with mixup: one at random")
    augment_on: Literal["cpu", "device"] = Field(
        "cpu", description="each image in the loaders, or a whole batch of fitted images on the device"
    )

    # Optimisation
    num_epochs: int = Field(90, ge=1, le=1_000_000, description="epochs")
    batch_size: int = Field(32, ge=1, le=1_000_000, description="of each process in training")
    val_batch_size: int = Field(0, ge=0, le=1_000_000, description="of each process in validation; 0: twice batch_size")
    accumulation_steps: int = Field(1, ge=1, le=1_000_000, description="batches that make one optimizer step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    learning_rate: float = Field(0.01, gt=0, description="rate at its highest")
    learning_rate_batch: int = Field(
        0,
        ge=0,
        description="images a step that the rate is for; it is scaled to the real number; 0: not scaled",
    )
    learning_rate_schedule: Literal["step", "cosine", "linear", "constant"] = Field(
        "step", description="step: the classic decay; linear: with warmup_epochs the triangular rate"
    )
    learning_rate_decay: float = Field(0.1, gt=0, le=1, description="factor of the step schedule")
    learning_rate_decay_epoch: int = Field(30, ge=1, description="epochs between two decays of the step schedule")
    min_learning_rate: float = Field(0.0, ge=0, description="where the cosine and the linear schedule end")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up from 0 at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(True, description="of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="L2 (SGD) or decoupled (AdamW)")
    decay_norm_and_bias: bool = Field(True, description="weight decay on norms and biases too")
    clip_grad_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: off")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weights: list[float] | Literal["", "balanced"] = Field(
        "", description="a weight a class, or balanced: inverse to its count"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="average of the weights that is validated and kept; 0: off")
    early_stopping_epochs: int = Field(0, ge=0, description="stop after so many epochs without a better top-1; 0: off")
    freeze: list[str] = Field([], description="parameters not trained, by name or pattern, e.g. layer1*")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    pim_stages_weight: float = Field(0.5, ge=0, description="PIM: of the stages' mean logits in the loss")
    pim_selected_weight: float = Field(0.0, ge=0, description="PIM: of the selected positions in the loss")
    pim_dropped_weight: float = Field(5.0, ge=0, description="PIM: of the dropped positions in the loss")
    pim_combiner_weight: float = Field(1.0, ge=0, description="PIM: of the combiner in the loss")
    simsiam_knn_neighbours: int = Field(200, ge=1, description="SimSiam: k of the kNN accuracy")
    simsiam_on_collapse: Literal["warn", "stop"] = Field(
        "warn", description="SimSiam: what to do when all images get the same embedding"
    )
    evaluate_before_train: bool = Field(False, description="validate before the first epoch")
    validation_interval: int = Field(1, ge=1, description="epochs from one validation to the next; the last has one")

    test_time_views: Literal[1, 2, 6] = Field(
        1,
        description="views whose mean gives a second, separate top-1: 2, plain and mirrored; 6, also a pixel aside",
    )

    # Start weights
    train_mode: Literal["fromscratch", "finetune", "update"] = Field(
        "fromscratch", description="random; pretrained with a new head; or the net's own weights, to go on"
    )
    pretrained_path: str = Field("", description="folder of pretrained_file")
    pretrained_file: str = Field("", description='weights file, or "torchvision" for the published weights')
    pretrained_model_num_classes: int = Field(1000, ge=1, description="outputs of the pretrained head")

    next_stage: dict[str, Any] = Field(
        {}, description="a second training with these keys replaced, started from the best checkpoint of this one"
    )

    # Machine
    gpu_id: str = Field("0", description='"0", several: "0,1,3", or "cpu"')
    num_processes: int = Field(0, ge=0, le=1024, description="processes on this machine; 0: one for each GPU of gpu_id")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware multiplies it natively"
    )
    channels_last: bool = Field(True, description="memory layout NHWC, which convolutions prefer")
    compile: Literal[False, True, "reduce-overhead", "max-autotune"] = Field(
        False, description="torch.compile the net: true, or in one of its modes (reduce-overhead: CUDA graphs)"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, order and augmentation")

    # Output
    save_path: str = Field("logs/weights", min_length=1, description="folder of checkpoints and reports")
    save_name: str = Field("net.pth", min_length=1, description="file name of the best checkpoint")
    save_interval_steps: int = Field(0, ge=0, description="save every n steps too; 0: every epoch only")
    keep_checkpoints: int = Field(
        2, ge=1, le=1000, description="newest checkpoints kept; --resume takes the one before where the last is damaged"
    )
    is_tensorboard: bool = Field(True, description="write TensorBoard logs")
    log_path: str = Field("logs", min_length=1, description="folder of the TensorBoard logs")
    log_interval: int = Field(10, ge=1, description="steps between two looks at the loss")

    def net_args(self) -> dict[str, Any]:
        """Give the net's own arguments: `model_args`, with `model_type` where it is set."""
        return {**self.model_args, **({"model_type": self.model_type} if self.model_type else {})}

    def learns_without_labels(self) -> bool:
        """Say whether the net learns from images alone."""
        return (self.model_module_name, self.model_net_name) == ("simsiam_module", "SimSiam")

    def gpu_ids(self) -> list[int]:
        """Give the GPUs of `gpu_id` as integers; empty for "cpu"."""
        return [] if self.gpu_id in ("", "cpu") else [int(part) for part in self.gpu_id.split(",")]

    def best_checkpoint(self) -> Path:
        """Give the path of the best checkpoint."""
        name = self.save_name if Path(self.save_name).suffix else f"{self.save_name}.pth"
        return Path(self.save_path) / name

    def last_checkpoint(self) -> Path:
        """Give the path of the newest checkpoint, which `--resume` goes on from."""
        best = self.best_checkpoint()
        return best.with_name(f"{best.stem}_last{best.suffix}")

    def next_config(self) -> Config | None:
        """Give the config of the training that follows; None where there is none.

        Unless `next_stage` says otherwise its results go into the folder "next_stage" below this one's, and it is a
        "finetune" that starts from this one's best checkpoint. Raises pydantic's ValidationError.
        """
        if not self.next_stage:
            return None
        best = self.best_checkpoint()
        defaults: dict[str, Any] = {"save_path": str(Path(self.save_path) / "next_stage")}
        if self.next_stage.get("train_mode", "finetune") == "finetune":
            defaults |= {"train_mode": "finetune", "pretrained_path": str(best.parent), "pretrained_file": best.name}
        return Config.model_validate({**self.model_dump(), **defaults, **self.next_stage, "next_stage": {}})

    def start_weights(self) -> Path:
        """Give the file that `finetune` and `update` start from (`update` without one: the best checkpoint)."""
        return Path(self.pretrained_path) / self.pretrained_file if self.pretrained_file else self.best_checkpoint()


def process_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    checks: Sequence[Callable[[Config], list[str]]] = (),
) -> Config:
    """Read a JSON config, apply `key=value` overrides, and check all of it.

    `checks` are further rules of the caller's (is there such a net?), asked together with the ones here.
    Relative paths are relative to the current folder. Raises ConfigError with every mistake found.
    """
    values, problems = _read_json(Path(path))
    origin = {key: str(path) for key in values}
    problems += _apply_overrides(values, overrides, origin)
    problems = [*problems, *_unknown_keys(values, origin)]
    known = {key: value for key, value in values.items() if key in Config.model_fields}
    rejected: set[str] = set()
    try:
        config = Config.model_validate(known)
    except ValidationError as error:
        problems += [_sentence(dict(item), origin, str(path)) for item in error.errors()]
        rejected = {str(item["loc"][0]) for item in error.errors()}
        config = Config.model_validate(
            {k: v for k, v in {**PLACEHOLDERS, **known}.items() if k not in rejected}
            | {k: v for k, v in PLACEHOLDERS.items() if k in rejected}
        )
    further = _all_problems(config, check_files, checks) + _next_problems(config, check_files, checks)
    # What a rejected key's stand-in would be blamed for is left out.
    problems += [f"{path}: {problem}" for problem in further if not any(key in problem for key in rejected)]
    if problems:
        raise ConfigError(problems)
    return config


def describe_config(config: Config, path: str | Path, overrides: Sequence[str] = (), stage: int = 0) -> str:
    """Lay out every effective value and where it came from, a key a line; for stage 2 those of the `next_stage`."""
    replaced = config.next_stage if stage == 2 else {}
    config = config.next_config() or config if stage == 2 else config
    values, _ = _read_json(Path(path))
    in_file = set(values)
    overridden = {item.partition("=")[0].partition(".")[0] for item in overrides}
    lines = []
    for key, value in config.model_dump().items():
        source = "override" if key in overridden else str(path) if key in in_file else "default"
        source = "next_stage" if key in replaced else source
        lines.append(f"{key:<29} {json.dumps(value, ensure_ascii=False):<34} {source}")
    return "\n".join(lines)


def config_schema() -> dict[str, Any]:
    """Give the JSON schema of a config file."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A training recipe"
    schema["properties"] = {"$schema": {"type": "string"}, **schema["properties"]}
    return schema


def config_table() -> str:
    """Give docs/config.md: every key with its default and meaning."""
    rows = ["# The keys of a config", "", "Written by `python -m configs.schema`.", ""]
    rows += ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in Config.model_fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.default, ensure_ascii=False)}`"
        choices = _choices(field.annotation)
        rows.append(f"| `{key}` | {default} | {field.description}{f' ({choices})' if choices else ''} |")
    return "\n".join(rows) + "\n"


def write_schema() -> None:
    """Write the JSON schema that editors read, and the table that people do."""
    SCHEMA_FILE.write_text(json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    TABLE_FILE.write_text(config_table(), encoding="utf-8")


def _all_problems(
    config: Config, check_files: bool, checks: Sequence[Callable[[Config], list[str]]], to_come: Path | None = None
) -> list[str]:
    problems = _contradictions(config)
    if check_files:
        problems += _missing_files(config, to_come)
    for check in checks:
        problems += check(config)
    return problems


def _next_problems(config: Config, check_files: bool, checks: Sequence[Callable[[Config], list[str]]]) -> list[str]:
    """Check the training that follows as one of its own, but for the weights that this one is still to write."""
    if "next_stage" in config.next_stage:
        return ["next_stage: a third training cannot follow"]
    if unknown := _unknown_keys(config.next_stage, dict.fromkeys(config.next_stage, "next_stage")):
        return unknown
    try:
        following = config.next_config()
    except ValidationError as error:
        return [_sentence(dict(item), {}, "next_stage") for item in error.errors()]
    if following is None:
        return []
    problems = _all_problems(following, check_files, checks, to_come=config.best_checkpoint())
    has_nul = "\0" in following.save_path + config.save_path  # which is told above, and no path can be resolved with
    if not has_nul and Path(following.save_path).resolve() == Path(config.save_path).resolve():
        problems.append(f'save_path must be another folder than the first stage\'s, got "{following.save_path}"')
    return [f"next_stage: {problem}" for problem in problems]


def _read_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    problems: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        problems.extend(f'{path}: key "{key}" stands twice' for key in sorted({k for k in keys if keys.count(k) > 1}))
        return dict(pairs)

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise ConfigError([f"{path}: cannot read the config: {reason} (current folder: {Path.cwd()})"]) from error
    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        advice = " (a comma before } or ] is one too many)" if "property name" in error.msg else ""
        raise ConfigError([f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}{advice}"]) from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError([f"{path}: {error}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: nested too deeply for a config"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f'{path}: a config is a JSON object {{"key": value, ...}}, got {_short(values)}'])
    values.pop("$schema", None)
    return values, problems


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str], origin: dict[str, str]) -> list[str]:
    problems = []
    for item in overrides:
        key, equals, text = item.partition("=")
        key, _, inner = key.strip().partition(".")
        if not equals:
            problems.append(f"--set {item}: write key=value")
            continue
        value = _override_value(inner if key == "next_stage" and inner else key, text)
        if inner and key not in ("model_args", "next_stage"):
            problems.append(f"--set {item}: only model_args and next_stage have inner keys")
            continue
        before = values.get(key, {})
        values[key] = {**(before if isinstance(before, dict) else {}), inner: value} if inner else value
        origin[key] = f"--set {item}"
    return problems


def _override_value(key: str, text: str) -> Any:
    field = Config.model_fields.get(key)
    if field is not None and field.annotation is str and not text.startswith('"'):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not JSON, or a number of thousands of digits
        return text


def _unknown_keys(values: dict[str, Any], origin: dict[str, str]) -> list[str]:
    problems = []
    for key in values:
        if key in Config.model_fields:
            continue
        hint = did_you_mean(key, Config.model_fields)
        problems.append(f'{origin.get(key, "")}: unknown key "{key}"{hint}')
    return problems


def _sentence(error: dict[str, Any], origin: dict[str, str], path: str) -> str:
    """Put pydantic's error into the house's words: what, where, the value got, the values allowed."""
    key = str(error["loc"][0])
    where = origin.get(key, path)
    name = key + "".join(f"[{part}]" for part in error["loc"][1:] if isinstance(part, int))
    context = error.get("ctx", {})
    got = f", got {_short(error['input'])}"
    kind = error["type"]
    if kind == "missing":
        return f'{where}: key "{key}" is missing ({Config.model_fields[key].description})'
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("above", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("below", "lt"),
    }
    if kind in bounds:
        word, limit = bounds[kind]
        return f"{where}: {name} must be {word} {context[limit]:g}{got}"
    if kind == "literal_error":
        return f"{where}: {name} must be {context['expected']}{got}"
    if kind == "finite_number":
        return f"{where}: {name} must be a finite number{got}"
    types = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text in quotes"}
    types |= {"list": "a list", "dict": "an object {...}"}
    word = types.get(kind.removesuffix("_type").removesuffix("_parsing"), "")
    if word:
        return f"{where}: {name} must be {word}{got}"
    if kind in ("too_short", "too_long", "string_too_short"):
        needed = context.get("min_length", context.get("max_length"))
        return f"{where}: {name} must have {needed} {'character' if 'string' in kind else 'entries'}{got}"
    return f"{where}: {name}: {error['msg']}{got}"


def _contradictions(config: Config) -> list[str]:
    """Check the rules that need more than one key."""
    problems = []
    for key in ("mean", "std"):
        values = getattr(config, key)
        if values and len(values) != config.num_channels:
            problems.append(f"{key} must have num_channels ({config.num_channels}) entries, got {len(values)}")
    if any(value < LEAST_STD for value in config.std):
        problems.append(f"std must be at least {LEAST_STD:g}, got {config.std}")
    for key, lowest in (("random_crop_scale", 0.0), ("random_crop_ratio", 0.0)):
        low, high = getattr(config, key)
        if not lowest < low <= high:
            problems.append(f"{key} must be [low, high] with 0 < low <= high, got [{low:g}, {high:g}]")
    low, high = config.random_crop_ratio
    if low < 0.01 or high > 100:
        problems.append(f"random_crop_ratio must be within 0.01 and 100, got [{low:g}, {high:g}]")
    if config.random_crop_scale[1] > 1:
        problems.append(f"random_crop_scale must be at most 1, got {config.random_crop_scale[1]:g}")
    if min(config.color_jitter) < 0 or max(config.color_jitter) > 10 or config.color_jitter[3] > 0.5:
        problems.append(f"color_jitter must be within 0 and 10, its hue at most 0.5, got {config.color_jitter}")
    if isinstance(config.class_weights, list):
        if len(config.class_weights) != config.num_classes:
            count = len(config.class_weights)
            problems.append(f"class_weights must have num_classes ({config.num_classes}) entries, got {count}")
        if any(value < 0 for value in config.class_weights) or not any(config.class_weights):
            problems.append(f"class_weights must be at least 0 and not all 0, got {_short(config.class_weights)}")
    if config.augment_on == "device":
        problems += [
            f'{key} is for one image at a time; set augment_on to "cpu", or leave it out'
            for key in ON_CPU_ONLY
            if getattr(config, key)
        ]
        if config.interpolation != "bilinear":
            problems.append(f'augment_on "device" crops bilinearly, not by "{config.interpolation}"')
    if config.horizontal_flip_alternates and config.learns_without_labels():
        problems.append("horizontal_flip_alternates would mirror both of SimSiam's views alike; use horizontal_flip")
    if config.test_time_views > 1 and (config.learns_without_labels() or config.model_module_name == "pim_module"):
        name = config.model_net_name
        problems.append(f"test_time_views is for nets that are validated by their logits alone, not for {name}")
    if config.balanced_sampling and config.class_weights:
        problems.append("balanced_sampling and class_weights both make up for rare classes; use one")
    if config.gpu_id not in ("", "cpu") and not all(part.strip().isdecimal() for part in config.gpu_id.split(",")):
        problems.append(f'gpu_id must be "0", several as "0,1", or "cpu", got "{config.gpu_id}"')
    elif len(set(config.gpu_ids())) != len(config.gpu_ids()):
        problems.append(f'gpu_id names a GPU twice, got "{config.gpu_id}"')
    if config.model_type and config.model_args.get("model_type", config.model_type) != config.model_type:
        inner = config.model_args["model_type"]
        problems.append(f'model_type is "{config.model_type}" but model_args.model_type is "{inner}"; keep one')
    if config.train_mode == "finetune" and not config.pretrained_file:
        problems.append('train_mode "finetune" needs pretrained_file: a weights file, or "torchvision"')
    if config.train_mode == "update" and config.pretrained_file == "torchvision":
        problems.append('train_mode "update" goes on with the net\'s own weights; use "finetune" for published ones')
    if Path(config.save_name).name != config.save_name or config.save_name in (".", ".."):
        problems.append(f'save_name is a file name without folders, got "{config.save_name}"; put them in save_path')
    elif config.save_name.startswith(("report.json", "report.html")):
        problems.append(f'save_name cannot be the name of a report, got "{config.save_name}"')
    nul = [key for key, value in config if isinstance(value, str) and "\0" in value]
    problems += [f"{key} holds a NUL character" for key in nul]
    if config.warmup_epochs > config.num_epochs:
        given = f"{config.warmup_epochs:g} > {config.num_epochs}"
        problems.append(f"warmup_epochs must not exceed num_epochs, got {given}")
    if config.min_learning_rate > config.learning_rate:
        given = f"{config.min_learning_rate:g} > {config.learning_rate:g}"
        problems.append(f"min_learning_rate must not exceed learning_rate, got {given}")
    return problems


def _missing_files(config: Config, to_come: Path | None) -> list[str]:
    """Name the files and folders that are not there; the file `to_come` is written before it is wanted."""
    problems = []
    for key in ("train_data_root_dir", "val_data_root_dir"):
        if not os.path.isdir(getattr(config, key)):  # noqa: PTH112  (a Path raises where a name is too long)
            problems.append(f'{key} "{getattr(config, key)}" is not a folder')
    for key in ("train_data_file", "val_data_file", "class_names_file"):
        if getattr(config, key) and not os.path.isfile(getattr(config, key)):  # noqa: PTH113
            problems.append(f'{key} "{getattr(config, key)}" is not a file')
    starts_from_a_file = config.train_mode == "update" or (
        config.train_mode == "finetune" and config.pretrained_file not in ("", "torchvision")
    )
    if starts_from_a_file and config.start_weights() != to_come and not os.path.isfile(config.start_weights()):  # noqa: PTH113
        problems.append(f'train_mode "{config.train_mode}" starts from "{config.start_weights()}", which is not a file')
    if problems:
        problems[-1] += f" (relative paths start from {Path.cwd()})"
    return problems


def _choices(annotation: Any) -> str:
    """List what a Literal allows."""
    options = get_args(annotation) if get_origin(annotation) is Literal else ()
    return ", ".join(f"`{json.dumps(option)}`" for option in options)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    write_schema()
