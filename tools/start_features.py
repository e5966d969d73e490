"""A config's net with its start weights, for the features that it gives images before any training."""

from __future__ import annotations

from artifacts.metadata import ModelMetadata
from common import malloc
from configs.schema import Config
from data_loader.samples import SampleList
from deploy.backends.torch_backend import CheckpointBackend
from trainers.builder import build_start_net
from trainers.runtime.device import choose_device
from trainers.tasks.table import task_of_config


def start_backend(config: Config, samples: SampleList) -> tuple[CheckpointBackend, ModelMetadata]:
    """Return the net, ready to run, and its metadata for the samples' classes. Raises NetError, CheckpointError."""
    device, _ = choose_device(config.gpu_ids())
    if device.type == "cpu":
        malloc.keep_freed_memory()
    net = build_start_net(config, lambda _: None, samples.class_names).to(device).eval()
    return CheckpointBackend(net, device), task_of_config(config).new_metadata(config, samples)
