"""A test that may be looked at after every observation: has an event become more frequent than a promised share?

The test bets against "the probability is at most r, whatever happened before". Fair bets multiply a capital that starts
at 1, and that reaches 1 / level with probability at most `level`, however long the test goes on (Ville 1939; betting on
a mean: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86(1), section 4).
"""

from __future__ import annotations

LEVEL = 0.05  # of a false alarm, ever
BETS = ((1.5, 0.2), (2.0, 0.6), (3.0, 0.2))  # the share is so many times the promised one; part of the capital
FIRST = 0.6  # of the capital bets from the first observation on; the rest joins later, for a change that comes late
RESTART = 100  # observations, after which another part joins
LARGEST = 1e300  # of the capital, before a float overflows


class RiskTest:
    """Collects evidence that events with a promised probability of at most `share` are more frequent.

    Each bet multiplies its capital by q / share at an event, else by (1 - q) / (1 - share), for a q above `share`: the
    likelihood ratio, whose mean is at most 1 where the promise holds. The capital of several bets, and of those that
    begin later, adds up to one martingale: of what waits, `1 - FIRST` is spread over the later beginnings j by
    1 / (j (j + 1)).
    """

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"the share must be between 0 and 1, got {share}")
        self._factors = [_factors(share, min(times * share, (1 + share) / 2)) for times, _ in BETS]
        self._capital = [0.0] * len(BETS)
        self._waiting = 1.0
        self.count = self.events = 0
        self.is_exceeded = False  # stays, once the evidence was enough

    @property
    def evidence(self) -> float:
        """The capital now: 1 at the start; 1 / LEVEL or more is enough."""
        return min(self._waiting + sum(self._capital), LARGEST)

    def observe(self, event: bool) -> None:
        """Take one observation, in the order in which they came."""
        if self.count % RESTART == 0:
            self._join(self.count // RESTART)
        self._capital = [
            min(capital * factors[event], LARGEST)
            for capital, factors in zip(self._capital, self._factors, strict=True)
        ]
        self.count += 1
        self.events += event
        self.is_exceeded = self.is_exceeded or self.evidence >= 1 / LEVEL

    def _join(self, number: int) -> None:
        """Let the next part of what waits bet."""
        part = FIRST if number == 0 else (1 - FIRST) / (number * (number + 1))
        self._waiting -= part
        self._capital = [capital + part * share for capital, (_, share) in zip(self._capital, BETS, strict=True)]


def _factors(share: float, bet: float) -> tuple[float, float]:
    """Return what a bet multiplies its capital by: without an event, and with one."""
    return (1 - bet) / (1 - share), bet / share
