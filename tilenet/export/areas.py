"""Sizes of shapes: how much of each lies in the image, and which are smaller than a user wants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from tilenet.errors import SettingsError
from tilenet.export.corners import Ring, area_and_centroid
from tilenet.export.edges import Edges
from tilenet.export.opened import has_volumes
from tilenet.export.placement import DECIMALS, MaskPlacement
from tilenet.export.shapes import Shape
from tilenet.store import AnyMask


class Extent(NamedTuple):
    """How much a shape covers."""

    # Its pixels, and how many of them lie in the image.
    pixels: int
    inside: float
    # y and x, of what lies in the image.
    centroid: tuple[float, float]


def extents(shapes: Sequence[Shape], edges: Edges, grid: MaskPlacement) -> list[Extent]:
    """Return the extent of each shape, given the edges of all."""
    areas, centroids = edges.areas_and_centroids()
    at_once = edges.are_small & (True if grid.end is None else (edges.boxes[:, 1] <= grid.end).all(axis=1))
    measured = zip(shapes, areas.tolist(), centroids.tolist(), at_once.tolist(), strict=True)
    return [
        Extent(round(area), round(area), (y, x)) if whole else extent(shape.rings, grid)
        for shape, area, (y, x), whole in measured
    ]


def extent(rings: Sequence[Ring], grid: MaskPlacement) -> Extent:
    """Return the extent of one shape.

    What reaches beyond the image is cut at its border, as `MaskPlacement.place` cuts polygons.
    """
    area, centre = area_and_centroid(rings)
    pixels = round(area)
    if grid.end is None or (np.concatenate(rings) <= grid.end).all():
        return Extent(pixels, pixels, centre)
    inside, cut = area_and_centroid([np.minimum(ring, grid.end) for ring in rings])
    return Extent(pixels, inside, cut if inside else centre)


def um_of(pixels: float, size: float | None) -> float | str:
    """Return the size in um2 or um3 of pixels of a size, as tables have it; empty if that is unknown."""
    return "" if size is None else round(pixels * size, DECIMALS)


def cut_size(pixels: int, size: float | None, um: float | str) -> float | None:
    """Return the size in um2 or um3 of a shape that the border of the image cuts, as tables have it; else None.

    Given are its pixels, the size of one, and what the table says; these are None and empty if the pixel size is
    unknown.
    """
    return None if size is None or um == "" or (cut := float(um)) >= round(pixels * size, DECIMALS) else cut


@dataclass(frozen=True)
class MinimumSize:
    """The size of the smallest shapes to keep: in pixels of the mask, and in um2 or um3 if it was given so."""

    pixels: float = 0.0
    um: float | None = None

    def excludes(self, pixels: int, cut: float | None) -> bool:
        """Return whether a shape is smaller, given its pixels, and its `cut_size`."""
        return pixels < self.pixels if self.um is None or cut is None else cut < self.um


def pixel_sizes(mask: AnyMask) -> tuple[float | None, float | None]:
    """Return the area of a pixel of a mask in um2 and, if it has volumes, that of a voxel in um3; None if unknown."""
    y, x = mask.pixel_size[-2:]
    pixel = None if y is None or x is None else y * x
    z = mask.pixel_size[-3] if has_volumes(mask) else None
    return pixel, None if pixel is None or z is None else pixel * z


def parse_area(area: str | float) -> tuple[float, str]:
    """Return the number and unit of an area or volume: ``"um2"``, ``"um3"``, or else pixels of the mask.

    >>> parse_area("20 um2"), parse_area("20 µm³"), parse_area("80px"), parse_area(80)
    ((20.0, 'um2'), (20.0, 'um3'), (80.0, 'px'), (80.0, ''))
    """
    # NFKC turns a raised 2 into a 2, and both signs for micro into the Greek letter.
    text = normalize("NFKC", str(area)).strip().lower().replace("\N{GREEK SMALL LETTER MU}", "u")
    said = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(px|um\^?[23]|)", text)
    if not said:
        raise SettingsError(
            f"min area {area!r}: give pixels of the mask, such as 80px, or an area, such as 20um2 (of volumes 20um3)"
        )
    if isinstance(area, str) and not said[2]:
        raise SettingsError(f"min area {area!r} has no unit. Give {area}px, pixels of the mask, or {area}um2")
    return float(said[1]), said[2].replace("^", "")


def least_of(mask: AnyMask, area: str | float | None) -> MinimumSize:
    """Return the least area or volume, given as a number of pixels of the mask or as text such as ``"20um2"``.

    `SettingsError` if that is no area, or if areas have no meaning in this mask.
    """
    if area is None:
        return MinimumSize()
    number, unit = parse_area(area)
    pixels = pixels_of_area(area, mask.path, mask.pixel_size, volumes=has_volumes(mask))
    return MinimumSize(pixels, number if unit.startswith("um") else None)


def pixels_of_area(area: str | float, name: str | Path, pixel_size: Sequence[float | None], *, volumes: bool) -> float:
    """Convert an area to pixels of their size, or a volume to voxels; raises as `least_of`, naming `name`."""
    number, unit = parse_area(area)
    power, what = (3, "volumes") if volumes else (2, "areas")
    if unit in ("um2", "um3") and unit != f"um{power}":
        raise SettingsError(f"{name}: its objects have {what}. Give um{power}, such as 20um{power}")
    if not unit.startswith("um"):
        return number
    known = [size for size in pixel_size[-power:] if size]
    if len(known) < power:
        raise SettingsError(
            f"{name}: the size of its pixels is unknown. Give the {what[:-1]} in them, such as 80px, or give their "
            f"size (--pixel-size)"
        )
    return number / prod(known)
