"""A feature map along one axis, and what layers do to it.

Walking an `Extent` through the layers of a network gives its footprint, so that no margin is typed in by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilenet.geometry import ceil_div


class IllegalLength(ValueError):
    """A layer cannot take this length: pooling does not divide it, or nothing is left of it."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A feature map along one axis: where its elements lie, and which of them are exact."""

    length: int
    # Input pixel on which element 0 is centred; after pooling, the first pixel that it covers.
    origin: int = 0
    # Input pixels between two elements.
    stride: int = 1
    # Half-open range of the elements that the ends of the tile do not affect.
    exact: tuple[int, int] = (0, 0)
    # The largest stride so far.
    step: int = 1

    @classmethod
    def whole(cls, length: int) -> Extent:
        """Return the extent of an input of the given length, all of it exact."""
        return cls(length, exact=(0, length))

    def conv(self, kernel: int, padding: int) -> Extent:
        """Convolve with an odd kernel, with `padding` zeros at each end."""
        reach = (kernel - 1) // 2
        lo, hi = self.exact
        return self._next(
            length=self.length + 2 * padding - 2 * reach,
            origin=self.origin + self.stride * (reach - padding),
            exact=(lo + padding, hi + padding - 2 * reach),
        )

    def pool(self, size: int) -> Extent:
        """Pool with a window and a stride of `size`."""
        if self.length % size:
            raise IllegalLength(f"a length of {self.length} cannot be pooled by {size}")
        lo, hi = self.exact
        stride = self.stride * size
        return self._next(
            length=self.length // size,
            stride=stride,
            exact=(ceil_div(lo, size), hi // size),
            step=max(self.step, stride),
        )

    def up_transposed(self, size: int) -> Extent:
        """Apply a transposed convolution whose kernel and stride are both `size`."""
        lo, hi = self.exact
        return self._next(length=self.length * size, stride=self.stride // size, exact=(lo * size, hi * size))

    def up_linear(self, size: int) -> Extent:
        """Resize linearly by `size` (``align_corners=False``), which clamps at both ends.

        Output ``j`` lies at source position ``(2 j + 1 - size) / (2 size)`` and is exact if
        both source elements around it are.
        """
        if size == 1:
            return self
        lo, hi = self.exact
        first = ceil_div(2 * size * lo + size - 1, 2)
        last = (2 * size * (hi - 1) + size - 1) // 2
        return self._next(length=self.length * size, stride=self.stride // size, exact=(first, last + 1))

    def joined(self, skip: Extent) -> Extent:
        """Concatenate with the centre of a skip connection."""
        cut = (skip.length - self.length) // 2
        if cut < 0 or (skip.origin + cut * skip.stride, skip.stride) != (self.origin, self.stride):
            raise IllegalLength(f"a skip of {skip.length} does not line up with {self.length}")
        exact = (max(self.exact[0], skip.exact[0] - cut), min(self.exact[1], skip.exact[1] - cut))
        return self._next(length=self.length, exact=exact)

    def _next(self, **changes: int | tuple[int, int]) -> Extent:
        after = replace(self, **changes)  # type: ignore[arg-type]
        if after.length < 1:
            raise IllegalLength("nothing is left of so short an input")
        return after
