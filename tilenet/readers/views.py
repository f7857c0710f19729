"""Views of an image: all that changes is what a view says itself.

`ChannelView` chooses channels; other views resample (`tilenet.readers.resampled`) or have another pixel size
(`tilenet.readers.calibrated`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import numpy as np

from tilenet.errors import ImageError, SettingsError
from tilenet.geometry import Box
from tilenet.readers.coordinates import CoordinateTransform
from tilenet.readers.image import Image, Level, Pixels


class DerivedImage(Image):
    """An image made from another one, with its files, identity, cache and place."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.name, self.axes, self.dtype, self.level = image.name, image.axes, image.dtype, image.level
        self.reader, self.stated_axes, self.drops_alpha = image.reader, image.stated_axes, image.drops_alpha
        self.channel_names, self.n_missing = image.channel_names, image.n_missing
        self.given_pixel_size = image.given_pixel_size

    @property
    def source(self) -> Any:
        return self._image.source

    @property
    def stated_pixel_size(self) -> tuple[float | None, ...]:
        return self._image.stated_pixel_size

    @property
    def n_channels(self) -> int:
        return self._image.n_channels  # not by the shape: a view of a grey image may repeat its channel

    @property
    def shift(self) -> tuple[float, ...]:
        return self._image.shift

    @property
    def frame(self) -> CoordinateTransform | None:
        return self._image.frame

    @property
    def kept_bytes(self) -> int:
        return self._image.kept_bytes  # all of its channels may be read

    def identity(self) -> dict[str, Any]:
        return self._image.identity()

    def close(self) -> None:
        self._image.close()


class ChannelView(DerivedImage):
    """Some channels of an image, in the order given."""

    def __init__(self, image: Image, channels: tuple[int, ...]) -> None:
        wrong = [c for c in channels if not 0 <= c < image.n_channels]
        if wrong or not channels:
            raise ImageError(
                f"{image.name}: has channels 0 to {image.n_channels - 1}, not {', '.join(map(str, wrong)) or 'none'}. "
                f"Choose others (--channels)"
            )
        super().__init__(image)
        self._channels, self.working_bytes = channels, image.working_bytes
        self.channel_names = tuple(image.channel_names[c] for c in channels)
        self.levels = tuple(
            Level(
                tuple(len(channels) if a == "c" else n for n, a in zip(k.shape, self.axes, strict=True)), k.pixel_size
            )
            for k in image.levels
        )
        chosen = sorted(set(channels))
        first = [c for c in chosen if c - 1 not in chosen]
        last = [c for c in chosen if c + 1 not in chosen]
        self._runs = [(a, b + 1) for a, b in zip(first, last, strict=True)]
        self._places = [chosen.index(c) for c in channels]

    @property
    def n_channels(self) -> int:
        return len(self._channels)  # one may be repeated, for instance to pass a grey image to an RGB network

    def at_level(self, level: int) -> Image:
        return ChannelView(self._image.at_level(level), self._channels)

    def read_inside(self, box: Box) -> Pixels:
        if self.channels_last:
            pixels = self._image.read_inside(box)
            return np.moveaxis(np.take(np.moveaxis(pixels, 0, -1), self._channels, axis=-1), -1, 0)
        if not self._image.separates_channels:
            return self._image.read_inside(box)[list(self._channels)]
        parts = [self._image.read_channels(box, run) for run in self._runs]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[self._places]


def channel_numbers(image: Image, channels: int | str | Sequence[int | str]) -> tuple[int, ...]:
    """Return the numbers of one or several channels of an image, given by number or by name."""
    several = (channels,) if isinstance(channels, str) or not isinstance(channels, Iterable) else channels
    try:
        return tuple(_number(image, each) if isinstance(each, str) else index(each) for each in several)
    except TypeError as error:
        raise SettingsError(f"channels {channels!r}: neither numbers nor names. Give one, or a list") from error


def first_channel(image: Image) -> str:
    """Return how a command line names the first channel: by its number, if its name would not be understood."""
    name = image.channel_names[0]
    clear = name == name.strip() and "," not in name and not name.isdecimal() and image.channel_names.count(name) == 1
    return shlex.quote(name) if name and clear else "0"


def _number(image: Image, channel: str) -> int:
    """Return the number of the channel of a name, in which the case matters only if there are several such names."""
    names = image.channel_names
    found = [k for k, name in enumerate(names) if name and name == channel]
    if not found:
        found = [k for k, name in enumerate(names) if name.casefold() == channel.casefold()]
    if len(found) == 1:
        return found[0]
    numbers = " and ".join(map(str, found))
    named = ", ".join(dict.fromkeys(filter(None, names))) or "no named channels"
    what = f"{len(found)} channels {channel!r} ({numbers})" if found else f"no channel {channel!r} ({named})"
    raise ImageError(f"{image.name}: has {what}. Choose by number, 0 to {image.n_channels - 1}, or another name")
