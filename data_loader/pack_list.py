"""The samples of a pack: each record's image by its name, and its target by its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_loader.packs import Shard, find_pack, open_shard, packed_name
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
    for path in pack.shards:
        shard = open_shard(path)
        for index in range(len(shard)):
            found = _sample(shard, index, target, pack.category, needs_target)
            if isinstance(found, str):
                problems.add(len(samples) + 1, f"{Path(path).name}#{index}: {found}")
            else:
                samples.append(found)
    if needs_target and not problems.count:
        problems.extend(target.find_problems([sample.target for sample in samples], range(1, len(samples) + 1)))
    problems.raise_any(pattern)
    return SampleList(tuple(samples), target.names_for(pack.category), ".", pattern)


def _sample(shard: Shard, index: int, target: Target, category: tuple[str, ...], needs_target: bool) -> Sample | str:
    """Return the sample of a record, or what is wrong with it."""
    features: dict[str, Any] = shard.features(index, (FILE, *target.record_keys))
    file = features[FILE][0].decode("utf-8", "replace") if features.get(FILE) else ""
    name = packed_name(shard.path, index, file)
    try:
        return Sample(name, target.from_record(features, category, name))
    except TargetError as error:
        return str(error) if needs_target else Sample(name, NO_LABEL)
