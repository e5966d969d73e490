"""The audit of pseudo-labels: some accepted predictions are put to a person, who does not see them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from fractions import Fraction

AUDIT_SHARE = Fraction(2, 100)  # of the accepted predictions
CONFIDENCE = 0.95  # with which more mistakes than promised drop the pseudo-labels


def draw_audit(accepted: Iterable[str], seed: int, number: int) -> list[str]:
    """Return the accepted images to put to a person in round `number`: AUDIT_SHARE of them, rounded up."""
    names = sorted(accepted)
    count = math.ceil(AUDIT_SHARE * len(names))
    return sorted(random.Random(f"audit {seed} {number}").sample(names, count))


def mixed(picked: Sequence[str], audit: Sequence[str], seed: int, number: int) -> list[str]:
    """Return the picked images in their order, with those of the audit at random places between them."""
    generator = random.Random(f"places {seed} {number}")
    places = sorted(generator.sample(range(len(picked) + len(audit)), len(audit)))
    shuffled = generator.sample(list(audit), len(audit))
    found, audited = iter(picked), dict(zip(places, shuffled, strict=True))
    return [audited[place] if place in audited else next(found) for place in range(len(picked) + len(audit))]


def probability_of_wrong(wrong: int, count: int, share: float) -> float:
    """Return P(`wrong` or more of `count`) where each is wrong with probability `share`: exact, binomial."""
    if wrong <= 0:
        return 1.0
    logarithms = [
        math.lgamma(count + 1)
        - math.lgamma(i + 1)
        - math.lgamma(count - i + 1)
        + i * math.log(share)
        + (count - i) * math.log1p(-share)
        for i in range(wrong, count + 1)
    ]
    return min(math.fsum(map(math.exp, logarithms)), 1.0)


def breaks_promise(wrong: int, count: int, share: float) -> bool:
    """Return whether `wrong` of `count` is more than a risk of at most `share` explains, with CONFIDENCE."""
    return probability_of_wrong(wrong, count, share) <= 1 - CONFIDENCE
