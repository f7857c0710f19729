"""A mask as GeoJSON: a polygon per region or object, in pixels of the slide, as QuPath imports them.

What QuPath reads, from its source (qupath.lib.io: QuPathTypeAdapters, ROITypeAdapters, GsonTools): a
FeatureCollection; of each Feature ``id`` (a UUID), ``geometry`` with a ``plane`` of its own beside the
coordinates unless that is the first, ``properties`` with ``objectType``, ``name`` and ``classification``.
Coordinates are corners of pixels at full resolution, x right and y down from the slide's first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tilenet
from tilenet.card import colors_of
from tilenet.corners import Ring
from tilenet.errors import SettingsError
from tilenet.placement import Grid
from tilenet.shapes import Progress, Shape, has_objects, has_volumes, large_ones, least_pixels, open_for, shapes_of
from tilenet.store import Mask
from tilenet.store.files import AGAIN
from tilenet.store.place import put_whole
from tilenet.tiff_mask import TiffMask

KINDS = ("detection", "annotation")
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
    objects, volumes : bool
        Whether they are objects, not regions of a class; and whether these reach over planes, with a feature in each.
    left_out : int
        How many are smaller than `min_area`.
    """

    path: Path
    features: Counter[str] = field(default_factory=Counter)
    vertices: int = 0
    objects: bool = False
    volumes: bool = False
    left_out: int = 0


def write_geojson(
    mask: str | Path,
    out: str | Path,
    *,
    image: str | Path | None = None,
    min_area: str | float | None = None,
    kind: str = "detection",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outlined:
    """Write the regions of a complete mask, or its objects, as a GeoJSON FeatureCollection.

    A region is what has one value and is connected by edges of pixels; an object is what has one
    number, in one plane: one of a volume has a feature in each of its planes. Polygons follow the
    edges of pixels, so that filled again they are the mask. It is read strip by strip; in memory
    are a strip, and the outlines that are not closed.

    Parameters
    ----------
    mask : path
        A mask that tilenet wrote to the end, OME-Zarr or OME-TIFF.
    out : path
        The file, ``.geojson`` by custom.
    image : path, optional
        What was segmented, if it is no longer where it was, and no other image; needed only for a
        mask of a coarser level or another pixel size.
    min_area : str or float, optional
        Leave smaller ones out, without their holes: pixels of the mask, or text such as ``"20um2"``. Not of volumes.
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
    with open_for(out, mask, image, replace=overwrite, is_ours=_is_ours, kind="a GeoJSON") as (opened, grid):
        found = Outlined(out, objects=has_objects(opened), volumes=has_volumes(opened))
        shapes = large_ones(shapes_of(opened, progress), least_pixels(opened, min_area), found)
        with put_whole(out, again=AGAIN) as path, path.open("wb") as file:
            for part in _Features(opened, grid, kind, found).collection(shapes):
                file.write(part)
    return found


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


class _Features:
    """The text of a collection, and what is counted on the way."""

    def __init__(self, mask: Mask | TiffMask, grid: Grid, kind: str, found: Outlined) -> None:
        self._mask, self._grid, self._kind, self._found = mask, grid, kind, found
        self._objects = found.objects
        self._colors = {value: color[:3] for value, color in colors_of(mask.info["card"]).items()}

    def collection(self, shapes: Iterable[Shape]) -> Iterator[bytes]:
        """Yield the file."""
        yield HEAD + b'"' + tilenet.__version__.encode() + b'","features":['
        before = "\n"
        for shape in shapes:
            yield f"{before}{self._feature(shape)}".encode()
            before = ",\n"
        yield b"\n]}\n"

    def _plane(self, plane: tuple[int, ...]) -> str:
        """Return what a geometry says of the plane it lies in: nothing of the only one."""
        where = dict.fromkeys("zt", 0) | dict(zip(self._mask.axes, plane, strict=False))
        if max(self._mask.shape[:-2], default=1) == 1 and not any(where.values()):
            return ""
        return f',"plane":{{"c":-1,"z":{where["z"]},"t":{where["t"]}}}'

    def _feature(self, shape: Shape) -> str:
        polygons = [f"[{','.join(map(self._ring, region.rings))}]" for region in shape.parts]
        several = len(polygons) > 1
        self._found.features[shape.name] += 1
        self._found.vertices += sum(len(ring) for region in shape.parts for ring in region.rings)
        kind = "MultiPolygon" if several else "Polygon"
        coordinates = f"[{','.join(polygons)}]" if several else polygons[0]
        return (
            f'{{"type":"Feature","id":"{shape.id}",'
            f'"geometry":{{"type":"{kind}","coordinates":{coordinates}{self._plane(shape.plane)}}},'
            f'"properties":{self._properties(shape.value, shape.name)}}}'
        )

    def _ring(self, ring: Ring) -> str:
        return json.dumps(self._grid.place(ring).tolist(), separators=(",", ":"))

    def _properties(self, value: int, name: str) -> str:
        color = self._colors[min(self._colors) if self._objects else value]
        said: dict[str, Any] = {"objectType": self._kind, "classification": {"name": name, "color": list(color)}}
        return json.dumps(said | ({"name": str(value)} if self._objects else {}), separators=(",", ":"))
