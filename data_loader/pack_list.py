"""The samples of a pack: each record's image by its name, and its target by its features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_loader.packs import find_pack, open_shard, packed_name
from data_loader.problems import Problems
from data_loader.samples import NO_LABEL, Sample, SampleList
from data_loader.targets import Target, TargetError

FILE = "image_file"


def read_pack(pattern: str, target: Target, *, needs_target: bool = True) -> SampleList:
    """Return the samples of the shards that a pattern finds, in the order of the shards and their records.

    A record without a target is a mistake where one is needed, else it has NO_LABEL. Raises ListError with every
    problem; a damaged record is found when it is read.
    """
    pack = find_pack(pattern)
    problems = Problems()
    samples: list[Sample] = []
    for path, heads in zip(pack.shards, pack.heads, strict=True):
        shard = open_shard(heads)
        for index in range(len(shard)):
            features = shard.features(index, (FILE, *target.record_keys))
            found = _sample(path, index, features, target, pack.category, needs_target=needs_target)
            if isinstance(found, str):
                problems.add(len(samples) + 1, f"{Path(path).name}#{index}: {found}")
            else:
                samples.append(found)
    if needs_target and not problems.count:
        problems.extend(target.find_problems([sample.target for sample in samples], range(1, len(samples) + 1)))
    problems.raise_any(pattern)
    return SampleList(tuple(samples), target.names_for(pack.category), ".", pattern)


def _sample(
    path: str, index: int, features: Mapping[str, Any], target: Target, category: tuple[str, ...], *, needs_target: bool
) -> Sample | str:
    """Return the sample of a shard's record, or what is wrong with it."""
    file = features[FILE][0].decode("utf-8", "replace") if features.get(FILE) else ""
    name = packed_name(path, index, file)
    try:
        return Sample(name, target.from_record(features, category, name))
    except TargetError as error:
        return str(error) if needs_target else Sample(name, NO_LABEL)
