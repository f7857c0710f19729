"""Integer boxes and mirrored indices: all the geometry that tilenet needs.

Lengths are in pixels, axes in array order. Everything is an integer, and every division is
explicitly rounded up or down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod


def ceil_div(a: int, b: int) -> int:
    """Return `a / b` rounded up.

    >>> ceil_div(7, 3), ceil_div(6, 3)
    (3, 2)
    """
    return -(-a // b)


def round_down(a: int, step: int) -> int:
    """Return the largest multiple of `step` that is at most `a`."""
    return a // step * step


def round_up(a: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `a`."""
    return ceil_div(a, step) * step


def sides_text(shape: Sequence[int]) -> str:
    """Return ``3 x 4`` for (3, 4)."""
    return " x ".join(map(str, shape))


def mirror(index: int, length: int) -> int:
    """Map an index on the infinitely mirrored axis to the pixel in `range(length)` that it shows.

    The edge pixel is not repeated (NumPy's ``reflect``), and the index is reflected as often as needed.

    >>> [mirror(i, 5) for i in range(-3, 8)]
    [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]
    >>> mirror(-7, 1)
    0
    """
    if length == 1:
        return 0
    period = 2 * (length - 1)
    index %= period
    return min(index, period - index)


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box ``start <= p < stop`` in array order; it may leave the image.

    Attributes
    ----------
    start, stop : tuple of int
        First pixel, and one past the last pixel, along each axis.

    Examples
    --------
    >>> box = Box((-2, 0), (3, 4))
    >>> box.shape, box.size
    ((5, 4), 20)
    >>> box & Box.of_shape((8, 8))
    Box(start=(0, 0), stop=(3, 4))
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"a box needs as many starts as stops, not {self.start}, {self.stop}")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """Return the box that covers a whole array of the given shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length along each axis, never negative."""
        return tuple(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as slices that index an array; it must not start below zero."""
        if any(a < 0 for a in self.start):
            raise ValueError(f"{self} starts below zero: NumPy would count from the end")
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def __and__(self, other: Box) -> Box:
        """Return the intersection of two boxes (an empty one has a zero in its shape)."""
        start = tuple(map(max, self.start, other.start))
        return Box(start, tuple(max(a, b) for a, b in zip(start, map(min, self.stop, other.stop), strict=True)))

    def __contains__(self, other: Box) -> bool:
        """Return whether `other` lies inside this box."""
        return (self & other) == other

    def shifted(self, offset: Sequence[int]) -> Box:
        """Return the box moved by `offset` pixels."""
        start = tuple(a + d for a, d in zip(self.start, offset, strict=True))
        return Box(start, tuple(b + d for b, d in zip(self.stop, offset, strict=True)))

    def relative_to(self, origin: Sequence[int]) -> Box:
        """Return the box in coordinates counted from the pixel `origin`."""
        return self.shifted([-o for o in origin])

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


def cell_position(index: int, grid: Sequence[int]) -> tuple[int, ...]:
    """Return the position of the cell with an index in a grid of `grid` cells, counted in array order.

    >>> cell_position(5, (2, 3))
    (1, 2)
    """
    position: tuple[int, ...] = ()
    for n in reversed(grid):
        index, place = divmod(index, n)
        position = (place, *position)
    return position


def cell_box(corner: Sequence[int], sides: Sequence[int], stop: Sequence[int]) -> Box:
    """Return the box of the given sides at `corner`, clipped at `stop`.

    >>> cell_box((4, 0), (4, 4), (6, 9))
    Box(start=(4, 0), stop=(6, 4))
    """
    return Box(tuple(corner), tuple(min(a + side, n) for a, side, n in zip(corner, sides, stop, strict=True)))


def cells_touched(box: Box, sides: Sequence[int], stop: Sequence[int]) -> Iterator[Box]:
    """Yield the cells of a grid from 0 to `stop` that a box touches, in array order; the last ones are clipped.

    >>> [str(cell) for cell in cells_touched(Box((3,), (9,)), (4,), (10,))]
    ['[0:4]', '[4:8]', '[8:10]']
    """
    for corner in product(*(range(round_down(a, n), b, n) for a, b, n in zip(box.start, box.stop, sides, strict=True))):
        yield cell_box(corner, sides, stop)


def boxes_of(box: Box, sides: Sequence[int]) -> Iterator[Box]:
    """Yield the boxes of the given sides that fill a box, in array order; the last ones along an axis are clipped.

    >>> [str(part) for part in boxes_of(Box((4, 0), (6, 9)), (4, 5))]
    ['[4:6, 0:5]', '[4:6, 5:9]']
    """
    for corner in product(*map(range, box.start, box.stop, sides)):
        yield cell_box(corner, sides, box.stop)
