"""A mask as GeoJSON: a polygon per region or object, in pixels of the slide, as QuPath imports them.

What QuPath reads, from its source (qupath.lib.io: QuPathTypeAdapters, ROITypeAdapters, GsonTools): a
FeatureCollection; of each Feature ``id`` (a UUID), ``geometry`` with a ``plane`` of its own beside the
coordinates unless that is the first, ``properties`` with ``objectType``, ``name`` and ``classification``.
Coordinates are corners of pixels at full resolution, x right and y down from the slide's first.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import numpy as np
from numpy.typing import NDArray

import tilenet
from tilenet.card import colors_of
from tilenet.corners import Ring
from tilenet.errors import BlocksFailed, SettingsError
from tilenet.outlines import Region, regions
from tilenet.placement import Grid, find_grid
from tilenet.spared import check_file_place, refuse_inside
from tilenet.store import Mask
from tilenet.store.files import AGAIN
from tilenet.store.place import put_whole
from tilenet.tiff_export import intact
from tilenet.tiff_mask import TILE, TiffMask, open_mask

KINDS = ("detection", "annotation")
# Pixels that are read at once, and that are outlined at once.
BAND, STRIP = 2**27, 2**24
# How our files begin and no others: RFC 7946 allows further members, and QuPath passes over them.
HEAD = b'{"type":"FeatureCollection","tilenet":'


@dataclass
class Outlined:
    """What was written.

    Attributes
    ----------
    path : Path
        The file.
    features : dict
        Number of them by their classification.
    vertices : int
        Corners of all polygons.
    """

    path: Path
    features: Counter[str] = field(default_factory=Counter)
    vertices: int = 0


def write_geojson(
    mask: str | Path,
    out: str | Path,
    *,
    image: str | Path | None = None,
    kind: str = "detection",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Outlined:
    """Write the regions of a complete mask, or its objects, as a GeoJSON FeatureCollection.

    A region is what has one value and is connected by edges of pixels; an object is what has one
    number, in one plane. Polygons follow the edges of pixels, so that filled again they are the
    mask. It is read strip by strip; in memory are a strip, and the outlines that are not closed.

    Parameters
    ----------
    mask : path
        A mask that tilenet wrote to the end, OME-Zarr or OME-TIFF.
    out : path
        The file, ``.geojson`` by custom.
    image : path, optional
        What was segmented, if it is no longer where it was, and no other image; needed only for a
        mask of a coarser level or another pixel size.
    kind : {"detection", "annotation"}
        What the features are in QuPath, which takes many detections and few annotations.
    overwrite : bool
        Replace a file that `write_geojson` wrote.
    progress : callable, optional
        Called with the rows done and the rows in all.

    Returns
    -------
    Outlined

    Raises
    ------
    OutputNotFound, OutputIncomplete, BlocksFailed, OutputExists, OutputMismatch, EnvironmentFault
        If the mask is not there, not complete or damaged; if something is in the way; if the image
        is not that of the mask; if the disk is full.

    Examples
    --------
    >>> import tempfile, numpy as np, tilenet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mask = tilenet.segment(np.zeros((70, 90), np.uint8), folder + "/mask.zarr")
    ...     tilenet.write_geojson(folder + "/mask.zarr", folder + "/mask.geojson").vertices
    0
    """
    if kind not in KINDS:
        raise SettingsError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    out = Path(out).absolute()
    opened = open_mask(mask)
    refuse_inside(out, image=opened.info["image"]["path"])
    check_file_place(out, replace=overwrite, is_ours=_is_ours, kind="a GeoJSON", image=image, mask=mask)
    grid = find_grid(opened, image)
    _refuse_damage(opened)
    found = Outlined(out)
    with put_whole(out, again=AGAIN) as path, path.open("wb") as file:
        for part in _Features(opened, grid, kind, found).collection(progress):
            file.write(part)
    return found


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


def _refuse_damage(mask: Mask | TiffMask) -> None:
    if isinstance(mask, Mask):
        intact(mask.path)
    elif damage := mask.check():
        raise BlocksFailed(f"{mask.path}: {damage[0]}. Make it again")


class _Features:
    """The text of a collection, and what is counted on the way."""

    def __init__(self, mask: Mask | TiffMask, grid: Grid, kind: str, found: Outlined) -> None:
        self._mask, self._grid, self._kind, self._found = mask, grid, kind, found
        card: Mapping[str, Any] = mask.info["card"]
        self._objects = mask.info["record"]["output"] == "objects"
        self._names = {int(value): str(name) for value, name in card["labels"].items() if value.isdecimal()}
        self._colors = {value: color[:3] for value, color in colors_of(card).items()}
        self._seed = uuid5(NAMESPACE_OID, json.dumps(mask.info, sort_keys=True))

    def collection(self, progress: Callable[[int, int], None] | None) -> Iterator[bytes]:
        """Yield the file."""
        planes = list(product(*map(range, self._mask.shape[:-2])))
        height = self._mask.shape[-2]
        yield HEAD + b'"' + tilenet.__version__.encode() + b'","features":['
        before = "\n"
        for number, plane in enumerate(planes):
            ids, place = uuid5(self._seed, str(plane)), self._plane(plane)

            def advance(row: int, done: int = number * height) -> None:
                if progress:
                    progress(done + row, len(planes) * height)

            traced = regions(_strips(self._mask, plane, advance))
            last_rows = _last_rows(_strips(self._mask, plane)) if self._objects else None
            for value, parts in _by_value(traced, last_rows):
                yield f"{before}{self._feature(value, parts, ids, place)}".encode()
                before = ",\n"
        yield b"\n]}\n"

    def _plane(self, index: tuple[int, ...]) -> str:
        """Return what a geometry says of the plane it lies in: nothing of the only one."""
        where = dict.fromkeys("zt", 0)
        where |= {a: i + first for a, i, first in zip(self._mask.axes, index, self._mask.origin, strict=False)}
        if max(self._mask.shape[:-2], default=1) == 1 and not any(where.values()):
            return ""
        return f',"plane":{{"c":-1,"z":{where["z"]},"t":{where["t"]}}}'

    def _feature(self, value: int, parts: Sequence[Region], ids: UUID, plane: str) -> str:
        polygons = [f"[{','.join(map(self._ring, region.rings))}]" for region in parts]
        several = len(polygons) > 1
        name = self._class_of(value)
        self._found.features[name] += 1
        self._found.vertices += sum(len(ring) for region in parts for ring in region.rings)
        y, x = parts[0].rings[0][0].tolist()
        shape = "MultiPolygon" if several else "Polygon"
        coordinates = f"[{','.join(polygons)}]" if several else polygons[0]
        return (
            f'{{"type":"Feature","id":"{uuid5(ids, f"{value} {y} {x}")}",'
            f'"geometry":{{"type":"{shape}","coordinates":{coordinates}{plane}}},'
            f'"properties":{self._properties(value, name)}}}'
        )

    def _ring(self, ring: Ring) -> str:
        return json.dumps(self._grid.place(ring).tolist(), separators=(",", ":"))

    def _class_of(self, value: int) -> str:
        """Return the classification of a mask value; numbered objects are of the one class that there is."""
        if self._objects:
            return next(iter(self._names.values())) if len(self._names) == 1 else "object"
        return self._names.get(value, f"class {value}")

    def _properties(self, value: int, name: str) -> str:
        color = self._colors[min(self._colors) if self._objects else value]
        said: dict[str, Any] = {"objectType": self._kind, "classification": {"name": name, "color": list(color)}}
        return json.dumps(said | ({"name": str(value)} if self._objects else {}), separators=(",", ":"))


def _strips(
    mask: Mask | TiffMask, plane: tuple[int, ...], advance: Callable[[int], None] = lambda row: None
) -> Iterator[NDArray[Any]]:
    """Yield a plane from top to bottom, whole rows of chunks at once where they are not too large."""
    level: Any = mask.levels[0]
    height, width = mask.shape[-2:]
    band = max(1, min(getattr(level, "chunks", (TILE, TILE))[-2], BAND // width))
    rows = max(1, STRIP // width)
    for top in range(0, height, band):
        pixels = np.asarray(level[(*plane, slice(top, min(top + band, height)))])
        for first in range(0, len(pixels), rows):
            yield pixels[first : first + rows]
        advance(top + len(pixels))


def _last_rows(strips: Iterable[NDArray[Any]]) -> dict[int, int]:
    """Return the row behind the last of each value."""
    found: dict[int, int] = {}
    top = 0
    for strip in strips:
        values, place = np.unique(strip[::-1], return_index=True)
        found |= dict(zip(values.tolist(), (top + len(strip) - place // strip.shape[1]).tolist(), strict=True))
        top += len(strip)
    return found


def _by_value(traced: Iterable[Region], last_rows: Mapping[int, int] | None) -> Iterator[tuple[int, Sequence[Region]]]:
    """Yield regions one by one or, given the last row of each value, all of a value together when the last is there."""
    if last_rows is None:
        yield from ((region.value, (region,)) for region in traced)
        return
    parts: dict[int, list[Region]] = {}
    ends: list[tuple[int, int]] = []
    for region in traced:
        while ends and ends[0][0] < region.bottom:
            whole = heapq.heappop(ends)[1]
            yield whole, parts.pop(whole)
        if region.value not in parts:
            parts[region.value] = []
            heapq.heappush(ends, (last_rows[region.value], region.value))
        parts[region.value].append(region)
    while ends:
        whole = heapq.heappop(ends)[1]
        yield whole, parts.pop(whole)
