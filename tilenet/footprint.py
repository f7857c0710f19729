"""What a network does to a length, per axis: the arithmetic that makes tiled results exact.

A network maps an input of legal length ``n`` to an output of length ``n - 2 * lost``. Its
first `spoiled[0]` and last `spoiled[1]` pixels are affected by the end of the tile (by zero
padding, or by the clamping of bilinear upsampling) and must be thrown away::

    input   |<- lost ->|<------------- output ------------->|<- lost ->|
                       |<- spoiled ->|<- exact ->|<- spoiled ->|

There is a second condition: two tiles agree where they overlap only if their *uncropped*
outputs start on one grid of `step` pixels, the pooling stride. :meth:`AxisFootprint.span`
satisfies both conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

from tilenet.errors import SettingsError
from tilenet.extent import Extent, IllegalLength
from tilenet.geometry import round_down, round_up


@dataclass(frozen=True, slots=True)
class AxisFootprint:
    """What a network does to a length along one axis; all numbers are pixels of its input or output.

    Attributes
    ----------
    step : int
        Pooling stride: the pitch of the grid on which all tiles must lie.
    lost : int
        Number of input pixels that the output lacks at each end.
    spoiled : tuple of int
        Number of output pixels at the front and at the back that are not exact.
    smallest : int
        The shortest legal input length; the other legal lengths follow at every `step`.

    Raises
    ------
    SettingsError
        If a number is not whole, or too small.
    """

    step: int = 1
    lost: int = 0
    spoiled: tuple[int, int] = (0, 0)
    smallest: int = 1

    def __post_init__(self) -> None:
        try:
            step, lost, smallest = map(index, (self.step, self.lost, self.smallest))
            front, back = map(index, self.spoiled)
            sound = min(step, smallest) >= 1 and min(lost, front, back) >= 0
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise SettingsError(
                f"{self}: give whole numbers, step and smallest of 1 at least, lost and both of spoiled of 0 at least"
            )
        plain = {"step": step, "lost": lost, "spoiled": (front, back), "smallest": smallest}
        for name, value in plain.items():  # NumPy's integers, and a list, would not come back from the run record
            object.__setattr__(self, name, value)

    @property
    def margin(self) -> int:
        """How many input pixels on each side an output pixel may depend on."""
        return self.lost + max(self.spoiled)

    def is_legal(self, length: int) -> bool:
        """Return whether the network takes an input of the given length."""
        return length >= self.smallest and (length - self.smallest) % self.step == 0

    def legal_at_least(self, length: int) -> int:
        """Return the shortest legal input length that is no shorter than `length`."""
        return self.smallest + round_up(max(0, length - self.smallest), self.step)

    def output_length(self, length: int) -> int:
        """Return the output length for an input length, which must be legal."""
        if not self.is_legal(length):
            above = self.legal_at_least(length)
            near = ", ".join(str(n) for n in (above - self.step, above) if n >= self.smallest)
            raise SettingsError(
                f"an input of {length} is not legal; nearest: {near} (every {self.step} from {self.smallest})"
            )
        return length - 2 * self.lost

    def span(self, start: int, stop: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return which range to read, and which range of the output to keep, in order to write ``start:stop``.

        The uncropped output starts on the global grid, early enough that its spoiled pixels lie
        before `start`. The range to read starts `lost` pixels before the output.
        """
        origin = round_down(start, self.step) - round_up(self.spoiled[0], self.step)
        length = self.legal_at_least(stop - origin + self.spoiled[1] + 2 * self.lost)
        read = (origin - self.lost, origin - self.lost + length)
        return read, (start - origin, stop - origin)

    @classmethod
    def of_walk(cls, walk: Callable[[int], Extent]) -> AxisFootprint:
        """Derive the footprint from a function that walks an input length through the layers.

        `ValueError` if no length is legal, or if `lost` or `spoiled` would depend on the length.
        """
        smallest = next((n for n in range(1, 100_000) if _is_legal(walk, n)), None)
        if smallest is None:
            raise ValueError("no input length is legal for this network")
        step = walk(smallest).step
        # Far longer than any network reaches (a U-Net: 7 steps), so that the effects of the two ends do not meet.
        long, longer = walk(smallest + 64 * step), walk(smallest + 65 * step)
        ends = (long.exact[0], long.length - long.exact[1])
        if (longer.exact[0], longer.length - longer.exact[1]) != ends or longer.length != long.length + step:
            raise ValueError("what this network loses depends on the length of its input")
        return cls(step=step, lost=long.origin, spoiled=ends, smallest=smallest)


def _is_legal(walk: Callable[[int], Extent], length: int) -> bool:
    try:
        walk(length)
    except IllegalLength:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a network does to a length, along each of its axes in array order.

    Attributes
    ----------
    axes : tuple of AxisFootprint
        One per axis of the network, in array order.

    Raises
    ------
    SettingsError
        If one of `axes` is not an `AxisFootprint`.

    Examples
    --------
    A stack of valid 3x3 convolutions, nine deep, without pooling:

    >>> Footprint.valid(2, lost=9).margin
    (9, 9)

    A network that pads with zeros, pools twice, and reaches 20 pixels:

    >>> Footprint.same(2, reach=20, step=4).axes[0].span(0, 64)
    ((-20, 84), (20, 84))

    A footprint is printed as the code that makes it, or with all of its numbers:

    >>> Footprint.same(3, reach=(2, 20, 20), step=(1, 4, 4))
    Footprint.same(3, reach=(2, 20, 20), step=(1, 4, 4))
    >>> Footprint((AxisFootprint(4, 0, (3, 5), 8),))
    Footprint(axes=(AxisFootprint(step=4, lost=0, spoiled=(3, 5), smallest=8),))
    """

    axes: tuple[AxisFootprint, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        if not all(isinstance(axis, AxisFootprint) for axis in self.axes):
            raise SettingsError(
                f"{self}: give one AxisFootprint for each axis, or use Footprint.same or Footprint.valid"
            )

    def __repr__(self) -> str:
        """Return ``Footprint.same(...)`` or ``Footprint.valid(...)`` if that gives an equal one, else all numbers."""
        text = f"Footprint(axes={self.axes!r})"
        if not self.axes or not all(isinstance(a, AxisFootprint) and len(set(a.spoiled)) == 1 for a in self.axes):
            return text
        numbers = {"lost": self.lost, "step": self.step, "smallest": tuple(a.smallest for a in self.axes)}
        ends = tuple(a.spoiled[0] for a in self.axes)
        usual = {"step": (1,) * self.ndim, "smallest": _shortest(self.lost, self.step), "spoiled": (0,) * self.ndim}
        if any(self.lost):
            name, numbers = "valid", numbers | {"spoiled": ends}
        elif numbers["smallest"] == usual["smallest"]:
            name, numbers = "same", {"reach": ends, "step": self.step}
        else:
            return text
        said = [f"{key}={_said(values)}" for key, values in numbers.items() if values != usual.get(key)]
        return f"Footprint.{name}({self.ndim}, {', '.join(said)})"

    @classmethod
    def valid(
        cls,
        ndim: int,
        *,
        lost: int | Sequence[int],
        step: int | Sequence[int] = 1,
        smallest: int | Sequence[int] | None = None,
        spoiled: int | Sequence[int] = 0,
    ) -> Footprint:
        """Return the footprint of an unpadded network that loses `lost` pixels on each side.

        Each argument is one number, or one for each of the `ndim` axes of the network; others raise `SettingsError`.
        `step` is the product of all pooling strides. `smallest` is the shortest input in which no pooling window is
        cut; give it if outputs are not multiples of `step`, as those of the paper's network. `spoiled` is how many
        outputs at each end depend on where the tile ends, as after bilinear upsampling (``step - 1`` in a U-Net).

        >>> Footprint.valid(2, lost=92, step=16, smallest=188).output_shape((572, 572))
        (388, 388)
        """
        step, lost = _per_axis(step, ndim, "step", least=1), _per_axis(lost, ndim, "lost", least=0)
        ends = _per_axis(spoiled, ndim, "spoiled", least=0)
        least = _shortest(lost, step) if smallest is None else _per_axis(smallest, ndim, "smallest", least=1)
        axes = zip(step, lost, ends, least, strict=True)
        return cls(tuple(AxisFootprint(s, n, (end, end), m) for s, n, end, m in axes))

    @classmethod
    def same(cls, ndim: int, *, reach: int | Sequence[int], step: int | Sequence[int] = 1) -> Footprint:
        """Return the footprint of a padded network that sees `reach` pixels on each side.

        Each of `reach` and `step` is one number, or one for each of the `ndim` axes of the network; others raise
        `SettingsError`. `tilenet.measure_footprint` finds both. `step` is the product of all pooling strides. To the
        reach, each convolution adds (kernel - 1) / 2, rounded up, times its dilation, plus its stride - 1; each pooling
        its kernel - 1 or, if that is larger, its stride - 1; each transposed convolution its kernel - 1; each nearest
        or linear interpolation and each pixel shuffle 1, and each bicubic interpolation 2; each times the product of
        the strides before it. A larger reach costs a little time, a smaller one makes seams.

        >>> Footprint.same(3, reach=(2, 20, 20), step=(1, 4, 4)).margin
        (2, 20, 20)
        """
        axes = zip(_per_axis(step, ndim, "step", least=1), _per_axis(reach, ndim, "reach", least=0), strict=True)
        return cls(tuple(AxisFootprint(s, 0, (n, n), smallest=s) for s, n in axes))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def step(self) -> tuple[int, ...]:
        """Pitch of the grid along each axis, in pixels."""
        return tuple(a.step for a in self.axes)

    @property
    def lost(self) -> tuple[int, ...]:
        """How many input pixels the output lacks at each end, per axis."""
        return tuple(a.lost for a in self.axes)

    @property
    def margin(self) -> tuple[int, ...]:
        """How many input pixels on each side an output pixel may depend on, per axis."""
        return tuple(a.margin for a in self.axes)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the output shape for a legal input shape (`SettingsError` otherwise)."""
        return tuple(a.output_length(n) for a, n in zip(self.axes, shape, strict=True))

    def with_outer(self, count: int) -> Footprint:
        """Return this footprint with `count` outer axes in front, over which the network is looped."""
        return Footprint((AxisFootprint(),) * count + self.axes)


def _shortest(lost: tuple[int, ...], step: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shortest inputs whose outputs are multiples of `step`."""
    return tuple(2 * n + s for n, s in zip(lost, step, strict=True))


def _said(values: tuple[int, ...]) -> str:
    """Return one number for all axes if they are equal, else one per axis."""
    return str(values[0] if len(set(values)) == 1 else values)


def _per_axis(value: int | Sequence[int], ndim: int, name: str, *, least: int) -> tuple[int, ...]:
    try:
        values = (index(value),) * ndim if isinstance(value, SupportsIndex) else tuple(map(index, value))
    except TypeError:
        values = ()
    if len(values) != ndim or min(values, default=least - 1) < least:
        raise SettingsError(f"{name} {value!r}: give a whole number, {least} at least, or one for each of {ndim} axes")
    return values
