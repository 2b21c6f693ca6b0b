"""How late things were: a histogram of durations with a fixed size and a known error.

Buckets are an eighth of a power of two wide (as in HDR histograms), so that a percentile is at most 12.5 % above the
true one whatever its size, and a month of pulses takes as much memory as one. The maximum is kept exactly.
"""

from __future__ import annotations

import math

_SUB = 8  # buckets per power of two
_BUCKETS = _SUB * 62  # up to 2**64 ns


class Histogram:
    """Durations in nanoseconds, from 0 up; negative ones (early) count as 0."""

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self._buckets = [0] * _BUCKETS

    def add(self, duration_ns: int) -> None:
        """One more duration."""
        duration_ns = max(0, duration_ns)
        self.count += 1
        self.max_ns = max(self.max_ns, duration_ns)
        self._buckets[min(_bucket(duration_ns), _BUCKETS - 1)] += 1

    def percentile_ns(self, percent: float) -> int:
        """The duration that `percent` of all do not exceed, at most 12.5 % too large; 0 where there is none."""
        left = max(1, math.ceil(self.count * percent / 100.0))
        if not self.count:
            return 0
        for number, inside in enumerate(self._buckets):
            left -= inside
            if left <= 0:
                return min(self.max_ns, _upper(number))
        return self.max_ns

    def gauges(self, name: str) -> dict[str, float]:
        """p50, p99, p99.9 and maximum in milliseconds, as health shows them."""
        if not self.count:
            return {}
        shown = {"p50": 50.0, "p99": 99.0, "p999": 99.9}
        found = {f"{name}_ms_{key}": self.percentile_ns(percent) / 1e6 for key, percent in shown.items()}
        return {**found, f"{name}_ms_max": self.max_ns / 1e6}


def _bucket(value: int) -> int:
    if value < _SUB:
        return value
    power = value.bit_length() - 4  # value >> power is 8 .. 15
    return _SUB * power + (value >> power)


def _upper(bucket: int) -> int:
    """The largest value in a bucket."""
    if bucket < 2 * _SUB:
        return bucket
    power = bucket // _SUB - 1
    return ((bucket - _SUB * power + 1) << power) - 1
