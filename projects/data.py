"""Data of a project by their address: packs, on the disk or in S3, which must be there and are counted."""

from __future__ import annotations

from common.paths import PACK_ENDING
from data_loader.packs import find_pack, open_shard
from data_loader.remote_packs import count_records, is_address
from projects.errors import ProjectError
from projects.models import Data


def find_data(tag: str, address: str, num: int | None) -> Data:
    """Return the data at an address, a shard without its ending or a pattern; `num` is counted where it is None.

    Raises ProjectError, and ListError for what is no pack.
    """
    if not tag or "," in tag:
        raise ProjectError(f'--tags must be one name without a comma, got "{tag}"')
    pattern = pattern_of(address)
    if is_address(pattern):
        counted = count_records(pattern)
    else:
        pack = find_pack(pattern)
        counted = sum(len(open_shard(path)) for path in pack.shards) if num is None else num
    return Data(tag=tag, num=counted if num is None else num, address=address)


def pattern_of(address: str) -> str:
    """Return the pattern that finds the shards of an address: one shard stands for its pack."""
    pattern = address.removesuffix(PACK_ENDING)
    prefix = pattern.rpartition("-of-")[0].rpartition("-")[0]
    return (f"{prefix}-*" if "*" not in pattern and prefix else pattern) + PACK_ENDING
