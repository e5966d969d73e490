"""The config: every key, its meaning and default.

Run `python -m configs.schema` to write `configs/config.schema.json`, by which editors complete and check the keys, and
`docs/config.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

DEFAULT_CONFIG = "configs/config.json"
PACKAGE = "package:"  # of a pretrained_file that a Python package holds
OWN_AVERAGE = "ema"  # of distill_from
ON_CPU_ONLY = (
    "rotation_degrees",
    "auto_augment",
    "balanced_crops",
    "mosaic",
    "mosaic_epochs",
    "mixup_boxes",
    "copy_paste",
)  # augmentations that take one image at a time


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
    num_channels: int = Field(3, ge=1, le=64, description="1 (grey), 3 (RGB), or the bands of each image")
    num_classes: int = Field(ge=1, le=1_000_000, description="outputs")

    # Data
    train_data_root_dir: str = Field(description="folder that the training list's paths start from")
    val_data_root_dir: str = Field(description="folder that the validation list's paths start from")
    train_data_file: str = Field(
        "",
        description="txt list for training, or a pattern of packs, packs/P-*-tfrecord or s3://bucket/P-*-tfrecord "
        "(docs/datasets.md), which need no root dir; empty: one folder a class under the root dir",
    )
    val_data_file: str = Field("", description="the same for validation")
    unlabelled_data_root_dir: str = Field("", description="semi: folder of the images without labels")
    unlabelled_data_file: str = Field("", description="semi: txt list or packs of them; empty: all below the root dir")
    file_label_separator: str = Field("----", min_length=1, description="text between path and label")
    class_names_file: str = Field(
        "",
        description="one class name a line; empty: classes.txt beside the list, else numbers; masks, boxes: .json",
    )
    allow_outside_root: bool = Field(False, description="let list paths leave the root dir")
    bad_images: Literal["error", "skip"] = Field("error", description="stop at an image that cannot be read, or skip")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="largest share of images that may be skipped")
    max_pixels: int = Field(
        64_000_000, ge=1, le=178_956_970, description="an image with more pixels is refused before decoding"
    )
    icc_profiles: Literal["convert", "ignore"] = Field(
        "convert", description="bring images with a colour profile to sRGB, or take their values as they are"
    )
    decode_timeout_s: float = Field(
        60.0,
        ge=0.1,
        le=86_400,
        description="for decoding one image; beyond it the image is bad, or the program ends and names it",
    )
    resize: Literal["squash", "letterbox", "crop"] = Field(
        "squash", description="stretch to the input size, pad to it, or cover it and cut the middle out"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field("bilinear", description="of the resize")
    mean: list[float] = Field([], description="per channel, of values 0..1; empty: ImageNet's, of bands as measured")
    std: list[float] = Field([], description="per channel, of values 0..1; empty: ImageNet's, of bands as measured")
    band_range: Literal["", "measured"] | list[list[float]] = Field(
        "",
        description="images of bands: [lowest, highest] value of each, which become 0 and 255; measured: the 0.5 and "
        "99.5 percentiles of the training images; empty: measured, but images of 1 or 3 channels are no bands",
    )
    band_type: Literal["", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"] = Field(
        "", description="images of bands: the type of them all; empty: the first training image's"
    )
    dataloader_workers: int = Field(2, ge=0, le=256, description="loader processes (0: load in the main process)")
    data_cache: Literal["none", "ram", "disk"] = Field(
        "none",
        description="keep the images decoded and fitted: in memory for this run, or in a file for later ones too",
    )
    data_cache_dir: str = Field(
        "logs/cache", min_length=1, description='folder of the files of data_cache "disk", and of packs from addresses'
    )
    streamed_shards: int = Field(
        0,
        ge=0,
        le=100_000,
        description="packs: shuffle within half as many shards at a time, and of the training pack at an address have "
        "no more on the disk, fetched as they are needed; 0: within all, which are fetched before",
    )
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
    quarter_turns: bool = Field(False, description="turn by 0, 90, 180 or 270 degrees, each equally often")
    translate: float = Field(0.0, ge=0, lt=1, description="largest shift as a share of the side")
    balanced_crops: float = Field(
        0.0,
        ge=0,
        le=1,
        description="masks, boxes: share of the crops around a pixel or an object, each class equally often",
    )
    mosaic: float = Field(0.0, ge=0, le=1, description="boxes: share of the views that are made of four images")
    mosaic_epochs: int = Field(0, ge=0, le=1_000_000, description="epochs with mosaic, from the first on; 0: all")
    mixup_boxes: float = Field(0.0, ge=0, le=1, description="boxes: share of the other views that blend two images")
    copy_paste: float = Field(
        0.0, ge=0, le=1, description="masks: share of the views that half the classes of another image are pasted onto"
    )
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
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="rate of a layer as a share of the next layer's; 1: the same"
    )
    clip_grad_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: off")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weights: list[float] | Literal["", "balanced"] = Field(
        "", description="a weight a class, or balanced: inverse to its count"
    )
    mask_loss: Literal["auto", "cross_entropy", "dice", "lovasz", "cross_entropy+dice", "cross_entropy+lovasz"] = Field(
        "auto",
        description="masks: the loss of an image's pixels; auto: cross_entropy, of change cross_entropy+dice; "
        "class_weights are cross entropy's",
    )
    distill_from: list[str] = Field(
        [],
        description="checkpoints of trained nets (teachers) whose outputs are learnt beside the labels; their mean; "
        '"ema": the average of the net\'s own weights',
    )
    distill_method: Literal["logits", "dkd", "review"] = Field(
        "logits",
        description="distillation: softened probabilities; or of classes alone these decoupled, or the feature maps",
    )
    distill_weight: float = Field(1.0, ge=0, description="distillation: of the teachers' term beside the labels'")
    distill_temperature: float = Field(4.0, gt=0, le=100, description="distillation: softens the probabilities")
    distill_warmup_epochs: float = Field(0.0, ge=0, description="distillation: its weight rises from 0 over these")
    semi: Literal["", "fixmatch", "mpl"] = Field(
        "", description="learn from images without labels too, by pseudo-labels: FixMatch, or meta pseudo labels"
    )
    unlabelled_per_labelled: int = Field(7, ge=1, le=256, description="semi: images without label beside each with one")
    fixmatch_weight: float = Field(1.0, ge=0, description="FixMatch: of the pseudo-labelled images in the loss")
    fixmatch_threshold: float = Field(
        0.0, ge=0, le=1, description="FixMatch: least score of a pseudo-label; 0: one for each class, which adapts"
    )
    mpl_temperature: float = Field(0.7, gt=0, le=100, description="MPL: of the teacher's answers that it learns again")
    mpl_unlabelled_weight: float = Field(8.0, ge=0, description="MPL: of these answers in the teacher's loss")
    mpl_warmup_steps: int = Field(5000, ge=0, description="MPL: steps in which that weight rises from 0")
    mpl_threshold: float = Field(0.6, ge=0, le=1, description="MPL: least score of an answer that is learnt again")
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

    val_tiles: float = Field(
        0.0,
        ge=0,
        lt=0.95,
        description="masks: validate images at their own size, in tiles with this least overlap; 0: resized",
    )
    test_time_views: Literal[1, 2, 6] = Field(
        1,
        description="views whose mean gives a second, separate top-1: 2, plain and mirrored; 6, also a pixel aside",
    )

    # Start weights
    train_mode: Literal["fromscratch", "finetune", "update"] = Field(
        "fromscratch", description="random; pretrained with a new head; or the net's own weights, to go on"
    )
    pretrained_path: str = Field("", description="folder of pretrained_file")
    pretrained_file: str = Field(
        "", description='weights file, "package:NAME" for those of an installed package, or "torchvision"'
    )
    fit_head: bool = Field(
        False, description="finetune: fit the new head on the frozen features before the first epoch, in seconds"
    )
    freeze_norm_statistics: bool = Field(
        False, description="keep the means and variances of batch norms as they start (PIM, SimSiam: their backbone's)"
    )
    batch_norm_momentum: Literal["auto", "net"] = Field(
        "auto",
        description="auto: raised where a training is too short for the net's own, which its running statistics need "
        "to follow the weights; net: the net's own",
    )
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

    check_determinism: bool = Field(
        False, description="after the training, train one batch three times and report which gradients differ"
    )

    # Output
    save_path: str = Field("logs/weights", min_length=1, description="folder of checkpoints and reports")
    save_name: str = Field("net.pth", min_length=1, description="file name of the best checkpoint")
    save_interval_steps: int = Field(0, ge=0, description="save every n steps too; 0: every epoch only")
    keep_checkpoints: int = Field(
        2, ge=1, le=1000, description="newest checkpoints kept; --resume takes the one before where the last is damaged"
    )
    is_tensorboard: bool = Field(True, description="write TensorBoard logs")
    log_path: str = Field("logs", min_length=1, description="folder of the TensorBoard logs")
    mlflow_tracking_uri: str = Field(
        "", description="MLflow: sqlite:///mlflow.db, or a server's address; empty: no run is tracked there"
    )
    mlflow_experiment: str = Field("trainer", min_length=1, description="MLflow: the experiment of the run")
    mlflow_model: str = Field("", description="MLflow: register the best net as models:/THIS@alias; empty: do not")
    mlflow_alias: str = Field("candidate", min_length=1, description="MLflow: the alias that the new version gets")
    log_interval: int = Field(10, ge=1, description="steps between two looks at the loss")

    def net_args(self) -> dict[str, Any]:
        """Return the net's own arguments: `model_args`, with `model_type` where it is set."""
        return {**self.model_args, **({"model_type": self.model_type} if self.model_type else {})}

    def learns_without_labels(self) -> bool:
        """Return whether the net is trained on images without labels."""
        return (self.model_module_name, self.model_net_name) == ("simsiam_module", "SimSiam")

    def has_bands(self) -> bool:
        """Return whether images are read as bands, each scaled by its own range."""
        return self.band_range != "" or self.num_channels not in (1, 3)

    def gpu_ids(self) -> list[int]:
        """Return the GPUs of `gpu_id` as integers; empty for "cpu"."""
        return [] if self.gpu_id in ("", "cpu") else [int(part) for part in self.gpu_id.split(",")]

    def best_checkpoint(self) -> Path:
        """Return the path of the best checkpoint."""
        name = self.save_name if Path(self.save_name).suffix else f"{self.save_name}.pth"
        return Path(self.save_path) / name

    def last_checkpoint(self) -> Path:
        """Return the path of the newest checkpoint, from which `--resume` continues."""
        best = self.best_checkpoint()
        return best.with_name(f"{best.stem}_last{best.suffix}")

    @field_validator("*")
    @classmethod
    def _has_no_nul(cls, value: Any) -> Any:
        """Refuse a text that no file can have as its name, before any rule asks the file system for it."""
        if isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("nul_character", "holds a NUL character")
        return value

    def next_config(self) -> Config | None:
        """Return the config of the training that follows; None where there is none.

        Unless `next_stage` sets them otherwise, its results go into the folder "next_stage" below this one's, and it
        is a "finetune" that starts from this one's best checkpoint. Raises pydantic's ValidationError.
        """
        if not self.next_stage:
            return None
        best = self.best_checkpoint()
        defaults: dict[str, Any] = {"save_path": str(Path(self.save_path) / "next_stage")}
        if self.next_stage.get("train_mode", "finetune") == "finetune":
            defaults |= {"train_mode": "finetune", "pretrained_path": str(best.parent), "pretrained_file": best.name}
        return Config.model_validate({**self.model_dump(), **defaults, **self.next_stage, "next_stage": {}})

    def starts_from_file(self) -> bool:
        """Return whether the start weights are a file of the user's, neither random nor published ones."""
        names_published = self.pretrained_file == "torchvision" or self.pretrained_file.startswith(PACKAGE)
        needs_none = self.train_mode == "finetune" and not self.pretrained_file  # refused, for this reason
        return self.train_mode != "fromscratch" and not names_published and not needs_none

    def start_weights(self) -> Path:
        """Return the file that `finetune` and `update` start from (`update` without one: the best checkpoint)."""
        return Path(self.pretrained_path) / self.pretrained_file if self.pretrained_file else self.best_checkpoint()


if __name__ == "__main__":
    import runpy

    runpy.run_module("configs.docs_writer", run_name="__main__")  # which imports this module
