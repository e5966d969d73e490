"""What a net and its task ask of a config beyond the config's own rules; needs no torch."""

from __future__ import annotations

from configs.schema import Config
from nets.net_interface import check_model_args, check_names
from nets.support.errors import NetError

NEED_LABELS = ("label_smoothing", "class_weights", "balanced_sampling", "mixup_alpha", "cutmix_alpha")


def net_problems(config: Config) -> list[str]:
    """Give a sentence for each thing that the config's net does not take; for `process_config`'s checks."""
    try:
        check_names(config.model_module_name, config.model_net_name)
        check_model_args(config.model_module_name, config.model_net_name, config.net_args())
    except NetError as error:
        return str(error).splitlines()
    problems = []
    if config.learns_without_labels():
        given = [key for key in NEED_LABELS if getattr(config, key)]
        hint = "leave it out, or put it into next_stage"
        problems = [f"{key} needs labels, which SimSiam does not learn from; {hint}" for key in given]
        if not config.data_aug:
            problems.append("data_aug cannot be off: SimSiam learns from two different views of an image")
    if config.compile and (config.learns_without_labels() or config.model_module_name == "pim_module"):
        name = config.model_net_name
        problems.append(f"compile is for nets that are trained by their logits alone, not for {name}")
    return problems
