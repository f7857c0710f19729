"""Where the pixels of an image lie in a LIF file, as the file's XML describes it.

Source: Leica Image File Formats, version 3.2 (2016), as liffile 2026.2.16 reads files of LAS AF and LAS X.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tilenet.errors import ImageError
from tilenet.readers.coordinates import MICROMETERS
from tilenet.readers.guards import positive_or_none
from tilenet.readers.image import RGB

Xml = ElementTree.Element
# Leica's numbers of the axes.
LETTERS = {1: "x", 2: "y", 3: "z", 4: "t"}
OTHERS = {
    5: "emission wavelengths",
    6: "angles",
    7: "xt slices",
    8: "time slices",
    9: "excitation wavelengths",
    10: "tiles of a mosaic",
    11: "loops",
}
MOSAIC = 10
KINDS = {"0": "uint", "1": "float"}
# The order of an image's axes. `s` are the samples of a colour: channels that lie closer than pixels.
ORDER = "tzcyxs"
# Tags of the first channels of colours that are stored blue first.
BLUE_FIRST = ["3", "2"]


@dataclass(frozen=True)
class Dimension:
    """An axis as it is stored."""

    # One of `ORDER`.
    letter: str
    length: int
    # Bytes from one entry to the next.
    step: int
    # Micrometres from one entry to the next; None if unknown, or if it is no length.
    um: float | None = None


@dataclass(frozen=True)
class Layout:
    """Where the pixels of an image lie."""

    # In `ORDER`, each with at least one entry.
    dims: tuple[Dimension, ...]
    dtype: np.dtype[Any]
    # The first byte of the first pixel, counted from the image's block of memory.
    start: int
    # One per channel; empty if they have none.
    channel_names: tuple[str, ...]
    blue_first: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of the block of memory up to the end of the last pixel."""
        return self.start + sum((d.length - 1) * d.step for d in self.dims) + self.dtype.itemsize

    def refuse_overlap(self) -> None:
        """Raise `ValueError` if pixels share bytes: such a file may claim any number of pixels."""
        end = self.dtype.itemsize
        for dim in sorted((d for d in self.dims if d.length > 1), key=lambda d: d.step):
            if dim.step < end:
                raise ValueError(f"entries of its axis {dim.letter} lie {dim.step} bytes apart, and have {end}")
            end += (dim.length - 1) * dim.step


def images_of(root: Xml, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, Xml]]:
    """Yield the images of a file with their paths in its project; the photons that FLIM counted are no image."""
    for element in (*root.iterfind("./Element"), *root.iterfind("./Children/Element")):
        path = (*inside, element.get("Name", ""))
        if element.find("./Data/Image") is not None and element.find("./Data/SingleMoleculeDetection") is None:
            yield "/".join(path[1:] or path), element
        yield from images_of(element, path)


def layout_of(image: Xml, name: str) -> Layout:
    """Return where the pixels of an image lie; refuse axes that tilenet has no word for."""
    described = image.find("./Data/Image/ImageDescription")
    if described is None:
        raise ValueError("an image without a description")
    if any(int(each.get("BitInc") or 0) for each in described.iter()):
        raise ValueError("pixels that begin within a byte")
    axes = list(_axes(described, name))
    channels = sorted(described.iterfind("./Channels/ChannelDescription"), key=_offset)
    if not channels:
        raise ValueError("an image without channels")
    nearest = min((d.step for d in axes if d.length > 1), default=None)
    apart, samples = _channel_dimensions([_offset(channel) for channel in channels], nearest)
    tags = [channel.get("ChannelTag") for channel in channels[:2]]
    layout = Layout(
        tuple(sorted([*axes, apart, samples], key=lambda d: (ORDER.index(d.letter), -d.step))),
        _dtype(channels, name),
        _offset(channels[0]),
        _channel_names(channels, samples.length),
        blue_first=samples.length == 3 and tags == BLUE_FIRST,
    )
    layout.refuse_overlap()
    return layout


def _axes(described: Xml, name: str) -> Iterator[Dimension]:
    for axis in described.iterfind("./Dimensions/DimensionDescription"):
        number, length = int(axis.attrib["DimID"]), int(axis.attrib["NumberOfElements"])
        if number in LETTERS:
            # From the first entry to the last; negative if a stack was scanned downwards.
            extent = positive_or_none(axis.get("Length", "").lstrip("-"))
            unit = MICROMETERS.get(axis.get("Unit", ""))
            um = extent * unit / (length - 1) if extent and unit and length > 1 else None
            yield Dimension(LETTERS[number], length, int(axis.attrib["BytesInc"]), um)
        elif length > 1:
            way = "Merge them in LAS X, and give the merged image" if number == MOSAIC else "Export one of them"
            what = OTHERS.get(number, f"entries of the unknown axis {number}")
            raise ImageError(f"{name}: has {length} {what}, an axis that tilenet does not support. {way}")


def _offset(channel: Xml) -> int:
    return int(channel.attrib["BytesInc"])


def _channel_dimensions(offsets: list[int], nearest: int | None) -> tuple[Dimension, Dimension]:
    """Return the dimensions of channels that lie apart, and of samples between a pixel and the `nearest` other one."""
    n = sum(nearest is None or offset - offsets[0] < nearest for offset in offsets) or 1
    apart, samples = offsets[::n], offsets[:n]
    c, s = (next((b - a for a, b in pairwise(some)), 0) for some in (apart, samples))
    evenly = [offsets[0] + i * c + k * s for i in range(len(apart)) for k in range(n)]
    if offsets[0] < 0 or offsets != evenly:
        raise ValueError(f"channels that begin at the bytes {offsets}")
    return Dimension("c", len(apart), c), Dimension("s", n, s)


def _dtype(channels: Sequence[Xml], name: str) -> np.dtype[Any]:
    found = {KINDS[channel.get("DataType", "0")] + _stored_bits(channel) for channel in channels}
    if len(found) > 1:
        raise ImageError(f"{name}: has channels of {' and '.join(sorted(found))}. Export those of one type")
    return np.dtype(found.pop()).newbyteorder("<")


def _stored_bits(channel: Xml) -> str:
    bits = int(channel.attrib["Resolution"])  # those that are used, such as 12
    return str(next(n for n in (8, 16, 32, 64) if 0 < bits <= n))


def _channel_names(channels: Sequence[Xml], n_samples: int) -> tuple[str, ...]:
    if n_samples > 1:
        return RGB if len(channels) == n_samples == 3 else ()
    names = tuple(_channel_name(channel) for channel in channels)
    # Three stains may be shown in red, green and blue, and are no picture in colour.
    return () if tuple(map(str.lower, names)) == RGB else names


def _channel_name(channel: Xml) -> str:
    """Return the dye, as newer files have it (``Leica/DAPI``), or else the colour in which the channel is shown."""
    said = {each.findtext("Key"): each.findtext("Value") for each in channel.iterfind("ChannelProperty")}
    return (said.get("DyeName") or "").removeprefix("Leica/") or channel.get("LUTName", "")
