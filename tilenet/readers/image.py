"""The interface of all images, whatever their file format; reads beyond the borders are mirrored here, once for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import SettingsError
from tilenet.geometry import Box
from tilenet.readers.coordinates import CoordinateTransform
from tilenet.readers.mirroring import fold
from tilenet.resolution import downsample_factor

Pixels = NDArray[Any]
AXES = "tczyx"
# Size of the cache of decoded pieces of a file; see `tilenet.readers.cache`.
CACHE_BYTES = 128 * 2**20
# Number of threads that read an image at once.
READERS = 4
RGB = ("red", "green", "blue")
# Channels of a picture for printing (CMYK).
INKS = ("cyan", "magenta", "yellow", "black")


@dataclass(frozen=True)
class Level:
    """One resolution of an image."""

    # Pixels along the image's axes, in their order.
    shape: tuple[int, ...]
    # Micrometres along the image's axes without ``c``; None for an axis of unknown pixel size.
    pixel_size: tuple[float | None, ...]


class Image(ABC):
    """One level of an image, readable box by box from several threads at once.

    Boxes are in array order over `box_axes`, the axes without ``c``. Arrays returned by a read have
    the channels in front: shape (C, *box.shape), in the image's own dtype.

    Attributes
    ----------
    name : str
        Path of the image, or the name of an array in messages.
    axes : str
        Letters of ``tczyx``, one per array axis, in file order (``"yxc"`` for RGB).
    dtype : numpy.dtype
        Type of the pixels.
    levels : tuple of Level
        All resolutions, finest first.
    level : int
        The level that this image reads.
    channel_names : tuple of str
        One per channel; empty strings where unknown.
    n_missing : int
        Number of tiles, over all levels, that the file lacks and that are read as 0.
    working_bytes : int
        Temporary memory that a read takes, in each thread, whatever the box; 0 if a read takes only a small multiple
        of the array that it returns.
    keeps_pieces : bool
        Whether this image itself caches decoded pieces of its file for later reads; see `kept_bytes`, which is also
        right of an image derived from another.
    reader : str
        Which of tilenet's readers reads the image, and through which library.
    stated_axes : str
        The axes that the file states; empty if it states none.
    given_pixel_size : tuple of float
        Micrometres along y and x, or z, y and x, at level 0, that the caller gave in place of the file's; empty if
        the caller gave none.
    drops_alpha : bool
        Whether reads leave out an alpha channel; of PNG and BMP, only if some pixels are transparent.
    """

    name: str
    axes: str
    dtype: np.dtype[Any]
    levels: tuple[Level, ...]
    level: int = 0
    channel_names: tuple[str, ...]
    n_missing: int = 0
    working_bytes: int = 0
    keeps_pieces: bool = False
    reader: str = ""
    stated_axes: str = ""
    given_pixel_size: tuple[float, ...] = ()
    drops_alpha: bool = False
    # What opens the image again, in another process too; None for arrays and views, which are pickled as they are.
    reopen: Callable[..., Image] | None = None

    def at_level(self, level: int) -> Image:
        """Return the same image at another resolution (`SettingsError` if there is none)."""
        if not 0 <= level < len(self.levels):
            raise SettingsError(
                f"{self.name}: has levels 0 to {len(self.levels) - 1}, not {level}. Choose another with level (--level)"
            )
        if level == self.level:
            return self
        # Not `copy.copy`, which would open the file again (`__reduce_ex__`). The copy shares file and cache; only the
        # box of this level, which is cached, is left out.
        other = object.__new__(type(self))
        other.__dict__ |= {k: v for k, v in self.__dict__.items() if k != "_inside"} | {"level": level}
        return other

    @abstractmethod
    def read_inside(self, box: Box) -> Pixels:
        """Return the pixels of a box that lies inside the image: (C, *box.shape)."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return fields, ready for JSON, that differ if the image is changed or replaced."""

    def close(self) -> None:  # noqa: B027  (most images hold nothing open)
        """Close the files; reading afterwards is an error."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        raise TypeError(
            f"{self.name}: is read by boxes. Read all of it: image.read(tilenet.Box.of_shape(image.box_shape))"
        )

    def __repr__(self) -> str:
        sides = ", ".join(f"{axis} {n}" for axis, n in zip(self.axes, self.shape, strict=True))
        level = f"level {self.level} of {len(self.levels)}"
        return f"<{type(self).__name__} {self.name}: {sides}, {self.dtype}, {level}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol) if self.reopen is None else (partial(self.reopen, level=self.level), ())

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def source(self) -> Any:
        """What it was opened from: a path, an address or an array."""
        return self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along `axes` at this level."""
        return self.levels[self.level].shape

    @property
    def box_axes(self) -> str:
        """The axes without ``c``: the axes of boxes and of the mask."""
        return self.axes.replace("c", "")

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Pixels along `box_axes`."""
        return tuple(n for n, a in zip(self.shape, self.axes, strict=True) if a != "c")

    @property
    def pixel_size(self) -> tuple[float | None, ...]:
        """Micrometres along `box_axes` at this level; None where unknown."""
        return self.levels[self.level].pixel_size

    @property
    def stated_pixel_size(self) -> tuple[float | None, ...]:
        """Micrometres along `box_axes` at level 0 that the file states; None where it states none."""
        return self.levels[0].pixel_size

    @property
    def shift(self) -> tuple[float, ...]:
        """How far the centre of pixel 0 lies behind that of level 0, in pixels of this image along `box_axes`.

        Each pixel of a coarser level covers whole pixels of level 0, from the corner of the image on.
        """
        lengths = zip(self.axes, self.levels[0].shape, self.shape, strict=True)
        return tuple(float(1 - 1 / downsample_factor(finest, n)) / 2 for axis, finest, n in lengths if axis != "c")

    @property
    def frame(self) -> CoordinateTransform | None:
        """Where the pixels lie along `box_axes`, in the file's own units; None if it states at most a pixel size."""
        return None

    @property
    def channels_last(self) -> bool:
        """Whether the channels of a pixel are adjacent in memory in arrays that are read, as they are in the file."""
        return self.axes.endswith("c")

    def empty(self, box: Box) -> Pixels:
        """Return an unfilled array (C, *box.shape), with channels last in memory if they are last in the file."""
        if self.channels_last:
            return np.moveaxis(np.empty((*box.shape, self.n_channels), self.dtype), -1, 0)
        return np.empty((self.n_channels, *box.shape), self.dtype)

    @property
    def kept_bytes(self) -> int:
        """Most bytes of decoded pieces that are cached for later reads."""
        return min(CACHE_BYTES, prod(self.shape) * self.dtype.itemsize) if self.keeps_pieces else 0

    @property
    def n_channels(self) -> int:
        """Number of channels; 1 if there is no ``c`` axis."""
        return self.shape[self.axes.index("c")] if "c" in self.axes else 1

    def plane_shape(self, level: int | None = None) -> tuple[int, int]:
        """Return the pixels along y and x at a level, by default the one that is read."""
        shape = self.levels[self.level if level is None else level].shape
        return shape[self.axes.index("y")], shape[self.axes.index("x")]

    @property
    def is_color(self) -> bool:
        """Whether the channels are the red, green and blue of a colour picture.

        They must have these names and 8 bits, because cameras on fluorescence microscopes store
        three stains of 16 bits as RGB too.
        """
        return self.dtype == np.uint8 and tuple(name.lower() for name in self.channel_names) == RGB

    @cached_property
    def _inside(self) -> Box:
        return Box.of_shape(self.box_shape)

    def read(self, box: Box) -> Pixels:
        """Return the pixels of any box, mirrored outside the image.

        Parameters
        ----------
        box : Box
            Over `box_axes`, at this level; it may leave the image on any side.

        Returns
        -------
        numpy.ndarray
            (C, *box.shape), in the image's dtype; in memory, the channels are first or last as in the file.
            Only the pieces of the file that the box needs are decoded.

        Raises
        ------
        ImageError
            If the file is damaged there.
        EnvironmentFault
            If the machine fails, such as with too many open files, or a lost server.
        SettingsError
            If it is no box of whole numbers over `box_axes`, or if it stops before it starts.
        """
        self._check(box)
        if not box.size:
            return self.empty(box)
        if box in self._inside:
            return self.read_inside(box)
        folds = [fold(a, b, n) for a, b, n in zip(box.start, box.stop, self.box_shape, strict=True)]
        pixels = self.read_inside(Box(tuple(f.start for f in folds), tuple(f.stop for f in folds)))
        for axis, f in enumerate(folds, start=1):
            pixels = f.unfolded(pixels, axis)
        return pixels

    def _check(self, box: Box) -> None:
        """Raise `SettingsError` for what is no box that can be read."""
        if not isinstance(box, Box):
            raise SettingsError(f"{self.name}: cannot be read at {box!r}. Give a box: tilenet.Box((0, 0), (200, 300))")
        if box.ndim != len(self.box_axes):
            n = len(self.box_axes)
            raise SettingsError(f"{self.name}: has the axes {self.box_axes}. Give a box of {n} ranges, not {box.ndim}")
        if not all(hasattr(place, "__index__") for place in (*box.start, *box.stop)):
            raise SettingsError(f"{self.name}: cannot be read at {box}. Give a box of whole numbers")
        if any(stop < start for start, stop in zip(box.start, box.stop, strict=True)):
            raise SettingsError(f"{self.name}: cannot be read at {box}, which stops before it starts. Swap start, stop")

    @property
    def separates_channels(self) -> bool:
        """Whether the file stores channels apart, so that `read_channels` reads only those asked for."""
        return False

    def read_channels(self, box: Box, channels: tuple[int, int]) -> Pixels:
        """Return the pixels of a half-open range of channels, in a box inside the image."""
        raise NotImplementedError

    def with_channels(self, channels: Sequence[int]) -> Image:
        """Return a view of some channels, in the order given."""
        from tilenet.readers.views import ChannelView  # which is an image, too

        return ChannelView(self, tuple(channels))


def closing(image: Image, source: Any) -> AbstractContextManager[Image]:
    """Return a context manager that closes the image, unless the caller passed it in already open."""
    return nullcontext(image) if isinstance(source, Image) else image
