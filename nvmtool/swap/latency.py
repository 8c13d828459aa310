"""How long things took: counts per duration, each to within 2 %, in memory that does not grow."""

from __future__ import annotations

# Durations of up to 2^_FINE_BITS ns are told apart one by one, longer ones by their first _FINE_BITS bits.
_FINE_BITS = 6
_MAX_BITS = 48


class Latencies:
    """A histogram of durations in nanoseconds, up to three days."""

    def __init__(self) -> None:
        """Begin with none."""
        self._counts = [0] * ((_MAX_BITS - _FINE_BITS + 2) << _FINE_BITS)
        self.count = 0

    def add(self, nanoseconds: int) -> None:
        """Count one duration."""
        bits = nanoseconds.bit_length()
        if bits > _MAX_BITS:
            nanoseconds, bits = (1 << _MAX_BITS) - 1, _MAX_BITS
        shift = bits - _FINE_BITS - 1 if bits > _FINE_BITS else 0
        # The leading bit counts as one step of the exponent: no index is used twice.
        self._counts[(shift << _FINE_BITS) + (nanoseconds >> shift)] += 1
        self.count += 1

    def percentile_us(self, per_mille: int) -> float:
        """Return what so many of a thousand durations did not exceed, in microseconds; 0 where there are none."""
        left = -(-self.count * per_mille // 1000)
        for index, count in enumerate(self._counts):
            left -= count
            if count and left <= 0:
                return _upper_bound(index) / 1000
        return 0.0


def _upper_bound(index: int) -> int:
    """Return the longest duration that is counted at an index."""
    shift = max((index >> _FINE_BITS) - 1, 0)
    return (((index - (shift << _FINE_BITS)) + 1) << shift) - 1
