"""A small archive of the form of CIFAR-10's binary version."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_cifar10(archive: Path, per_batch: int = 10, **changes: bytes) -> np.ndarray:
    """Write five batches and a test batch of twice as many; return its images, uint8 (N, 3, 32, 32).

    The labels are 0 to 9 in turn. `changes` replace the content of a file by its name without ending.
    """
    generator = np.random.default_rng(0)

    def batch(count: int) -> tuple[bytes, np.ndarray]:
        images = generator.integers(0, 60, (count, 3, 32, 32), np.uint8)
        for number, image in enumerate(images):
            image[number % 3, :, 3 * (number % 10) :][:, :5] = 250
        return b"".join(bytes([n % 10]) + image.tobytes() for n, image in enumerate(images)), images

    files = {f"data_batch_{number}": batch(per_batch)[0] for number in range(1, 6)}
    files["test_batch"], test_images = batch(2 * per_batch)
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {"batches.meta": ("\n".join(CIFAR_NAMES) + "\n\n").encode(), **files, **changes}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}" + (".txt" if name == "batches.meta" else ".bin"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return test_images
