"""The order of an epoch by shards."""

from __future__ import annotations

import numpy as np
import pytest

from data_loader.packs import packed_name
from data_loader.shard_order import ShardOrder

SIZES = (3, 5, 2, 4, 1, 6, 3)  # images of each shard


def names() -> list[str]:
    shards = [f"p/P-{number:05}-of-{len(SIZES):05}-tfrecord" for number in range(len(SIZES))]
    return [packed_name(shard, index, "") for shard, size in zip(shards, SIZES, strict=True) for index in range(size)]


def shards_in(order: np.ndarray) -> list[str]:
    """Return the shards of an order, once each, as they come."""
    return list(dict.fromkeys(names()[index].partition("#")[0] for index in order))


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_every_image_comes_once_and_a_window_has_its_shards_alone(window: int) -> None:
    order = ShardOrder(names(), window, seed=3)
    for epoch in range(4):
        drawn = order.order(epoch)
        assert sorted(drawn) == list(range(sum(SIZES)))
        place = 0
        for number in range(-(-len(SIZES) // window)):
            needed = order.needed(epoch, place)
            mine, following = needed[:window], needed[window:]
            images = sum(SIZES[int(shard[4:9])] for shard in mine[: len(SIZES) - number * window])
            assert set(shards_in(drawn[place : place + images])) == set(mine[: len(SIZES) - number * window])
            assert order.needed(epoch, place + images - 1) == needed
            assert number * window + window >= len(SIZES) or set(following).isdisjoint(mine)
            place += images
        assert place == len(drawn)


def test_the_order_follows_from_seed_and_epoch() -> None:
    drawn = ShardOrder(names(), 2, seed=3).order(1)
    assert (ShardOrder(names(), 2, seed=3).order(1) == drawn).all()
    assert not (ShardOrder(names(), 2, seed=4).order(1) == drawn).all()
    assert not (ShardOrder(names(), 2, seed=3).order(2) == drawn).all()
    assert shards_in(drawn) != sorted(shards_in(drawn))


def test_the_last_window_is_followed_by_the_next_epochs_first() -> None:
    order = ShardOrder(names(), 2, seed=3)
    assert order.needed(0, sum(SIZES) - 1)[-2:] == order.needed(1, 0)[:2]


def test_without_shuffling_the_order_is_that_of_the_list() -> None:
    order = ShardOrder(names(), 2, seed=3, shuffle=False)
    assert order.order(5).tolist() == list(range(sum(SIZES)))
    assert [shard[4:9] for shard in order.needed(5, 0)] == ["00000", "00001", "00002", "00003"]


def test_an_image_may_come_anywhere_in_its_window() -> None:
    """Of one window, all orders of three images come about equally often: 6 of them in 6,000 epochs."""
    three = [packed_name(f"p/P-0000{number}-of-00003-tfrecord", 0, "") for number in range(3)]
    order = ShardOrder(three, 3, seed=0)
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(6000):
        key = tuple(order.order(epoch).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6 and min(counts.values()) > 850 and max(counts.values()) < 1150  # 1,000, 5 deviations
