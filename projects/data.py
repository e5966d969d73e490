"""Data of a project by their address: packs, which must be there and are counted."""

from __future__ import annotations

from common.paths import PACK_ENDING
from data_loader.packs import find_pack, open_shard
from projects.errors import ProjectError
from projects.models import Data


def find_data(tag: str, address: str, num: int | None) -> Data:
    """Return the data at an address, a shard without its ending or a pattern; `num` is counted where it is None.

    Raises ProjectError, and ListError for what is no pack.
    """
    if not tag or "," in tag:
        raise ProjectError(f'--tags must be one name without a comma, got "{tag}"')
    pack = find_pack(pattern_of(address))
    num = sum(len(open_shard(path)) for path in pack.shards) if num is None else num
    return Data(tag=tag, num=num, address=address)


def pattern_of(address: str) -> str:
    """Return the pattern that finds the shards of an address: one shard stands for its pack."""
    pattern = address.removesuffix(PACK_ENDING)
    prefix = pattern.rpartition("-of-")[0].rpartition("-")[0]
    return (f"{prefix}-*" if "*" not in pattern and prefix else pattern) + PACK_ENDING
