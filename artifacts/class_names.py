"""Class names of a list or a training beside those of a net: a label means a name, not a position."""

from __future__ import annotations

from collections.abc import Sequence

from data_loader.samples import shorten

SHOWN = 6  # names listed of each kind


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether classes have the numbers of their labels for names: nobody has named them."""
    return tuple(names) == tuple(map(str, range(len(names))))


def labels_by_name(names: Sequence[str], net_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return a net's label of each class of a list, None where the classes cannot be the net's.

    Names that the net has decide. Classes that are only numbers, of the net or of the list, keep their labels, and so
    do classes that were renamed where they stand: no name that both have stands at another place.
    """
    if set(names) <= set(net_names):
        return tuple(net_names.index(name) for name in names)
    if len(names) != len(net_names):
        return None
    pairs = list(zip(names, net_names, strict=True))
    shared = set(names) & set(net_names)
    if are_numbers(names) or are_numbers(net_names) or all(mine == net for mine, net in pairs if shared & {mine, net}):
        return tuple(range(len(names)))
    return None


def renamed(names: Sequence[str], net_names: Sequence[str]) -> str:
    """Return 'class 1 is "pear" here, "quince" in the net' for the first class of another name, or ""; for messages.

    Numbers are no names.
    """
    if are_numbers(names) or are_numbers(net_names):
        return ""
    pairs = enumerate(zip(names, net_names, strict=True))
    found = [f'class {label} is "{mine}" here, "{net}" in the net' for label, (mine, net) in pairs if mine != net]
    return "".join(found[:1]) + (f" and {len(found) - 1} more" if found[1:] else "")


def compared(names: Sequence[str], net_names: Sequence[str], other: str = "the net") -> str:
    """Return which classes are the same, new and gone, in one line, for messages; `other` is what has `net_names`."""
    if set(names) == set(net_names):
        return f"the same classes in another order: {listed(names)} here, {listed(net_names)} in {other}"
    kinds = {
        "in both": [name for name in names if name in net_names],
        "new here": [name for name in names if name not in net_names],
        f"only in {other}": [name for name in net_names if name not in names],
    }
    return "; ".join(f"{kind}: {listed(found) or 'none'}" for kind, found in kinds.items())


def listed(names: Sequence[str]) -> str:
    """Return class names in one line, the first of many."""
    more = f", ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f'"{shorten(name)}"' for name in names[:SHOWN]) + more
