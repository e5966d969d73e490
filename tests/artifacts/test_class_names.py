"""Class names of a list beside those of a net."""

from __future__ import annotations

import pytest

from artifacts.class_names import compared, labels_by_name, renamed


@pytest.mark.parametrize(
    ("names", "net_names", "labels"),
    [
        (("cat", "dog"), ("cat", "dog"), (0, 1)),
        (("dog", "cat"), ("cat", "dog"), (1, 0)),  # the same names in another order
        (("dog",), ("cat", "dog"), (1,)),  # a list of some of the classes
        (("0", "1"), ("cat", "dog"), (0, 1)),  # only numbers
        (("cat", "dog"), ("0", "1"), (0, 1)),
        (("cat", "hound"), ("cat", "dog"), (0, 1)),  # renamed where it stands
        (("猫", "狗"), ("cat", "dog"), (0, 1)),  # translated
        (("pear", "rotten_apple"), ("apple", "pear"), None),  # renamed, and sorted elsewhere
        (("cat", "fox"), ("cat", "dog", "bird"), None),
        (("1", "0"), ("0", "1"), (1, 0)),
    ],
)
def test_a_label_means_a_name(names: tuple[str, ...], net_names: tuple[str, ...], labels: tuple[int, ...]) -> None:
    assert labels_by_name(names, net_names) == labels


def test_differences_are_named() -> None:
    assert compared(("b", "a"), ("a", "b")) == 'the same classes in another order: "b", "a" here, "a", "b" in the net'
    assert compared(("b", "c"), ("a", "b")) == 'in both: "b"; new here: "c"; only in the net: "a"'
    assert renamed(("a", "x", "y"), ("a", "b", "c")) == 'class 1 is "x" here, "b" in the net and 1 more'
    assert renamed(("0", "1"), ("a", "b")) == "" == renamed(("a", "b"), ("a", "b"))
