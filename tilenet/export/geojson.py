"""A mask as GeoJSON: a polygon per region or object, in pixels of the image, as QuPath imports them.

QuPath's source (qupath.lib.io: QuPathTypeAdapters, ROITypeAdapters, GsonTools) shows what it reads: a
FeatureCollection of Features, each with ``id`` (a UUID), ``geometry`` and ``properties``. The geometry has
a ``plane`` beside its coordinates, unless it lies in the first plane; the properties have ``objectType``,
``name``, ``classification`` and ``measurements``. Coordinates are corners of pixels at full resolution, x to the
right and y down from the image's first corner.

Measurements are an object, a number by name. QuPath reads it from 0.4 on, as it does ``objectType``; older versions
read a list of names and values alone, and ignore an object. A number that is not finite has no place in JSON, and
QuPath 0.4 refuses a file that has one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import tilenet
from tilenet.arguments import known_options
from tilenet.card import colors_of
from tilenet.errors import SettingsError
from tilenet.export.areas import MinimumSize, cut_size, extent, least_of, pixel_sizes, um_of
from tilenet.export.corners import Ring
from tilenet.export.descriptors import ShapeDescriptors
from tilenet.export.intensities import Intensities, Measurements
from tilenet.export.placement import MaskPlacement
from tilenet.export.shapes import Progress, Shape, has_volumes, open_for, shapes_of
from tilenet.store import AnyMask
from tilenet.store.destination import put_whole

Kind = Literal["detection", "annotation"]
KINDS = get_args(Kind)
# QuPath's own classes (PathClassTools in its source), and its colours for them.
POSITIVE, NEGATIVE = "Positive", "Negative"
QUPATH = {POSITIVE: [250, 62, 62], NEGATIVE: [112, 112, 225]}
# The beginning of tilenet's files, and of no others. RFC 7946 allows additional members, and QuPath ignores them.
HEAD = b'{"type":"FeatureCollection","tilenet":'


@dataclass
class Outlined:
    """The result of `write_geojson`.

    Attributes
    ----------
    path : Path
        The file.
    features : dict
        Number of features by classification.
    vertices : int
        Corners of all polygons.
    objects, volumes : bool
        Whether features are objects rather than regions of a class; and whether objects extend over planes, with a
        feature in each plane.
    left_out : int
        Number of shapes smaller than `min_area`.
    """

    path: Path
    features: Counter[str] = field(default_factory=Counter)
    vertices: int = 0
    objects: bool = False
    volumes: bool = False
    left_out: int = 0


@known_options()
def write_geojson(
    mask: str | PathLike[str],
    out: str | PathLike[str],
    *,
    image: Any = None,
    pixel_size: float | str | Sequence[float] | None = None,
    min_area: str | float | None = None,
    kind: Kind = "detection",
    shapes: bool = False,
    intensities: bool = False,
    stains: bool = False,
    positive: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outlined:
    """Write the regions of a complete mask, or its objects, as a GeoJSON FeatureCollection.

    A region is a set of pixels of one value that are connected by their edges. An object is all pixels of
    one number in one plane, so an object of a volume has a feature in each of its planes. Polygons follow
    the edges of pixels: filling them gives back the mask. The mask is read strip by strip; memory holds
    one strip, and the outlines that are not closed yet.

    Parameters
    ----------
    mask : path or Mask
        A complete mask that tilenet wrote, OME-Zarr or OME-TIFF.
    out : path
        The file, ending in ``.geojson`` (or ``.json``).
    image : path, array or Image, optional
        The image that was segmented, if it has moved or was an array; another image is refused. Needed
        only for a mask at a coarser level or another pixel size.
    pixel_size : float, str or sequence of float, optional
        Micrometres per pixel of the image at full resolution, as for `tilenet.open_image`, where the mask has none.
    min_area : str or float, optional
        Leave out shapes whose area, without holes, is smaller: pixels of the mask, or text such as ``"20um2"``.
        Not for volumes.
    kind : {"detection", "annotation"}
        What the features become in QuPath, which copes with many detections but few annotations.
    shapes, intensities, stains : bool
        Give each polygon the measurements that `tilenet.write_table` adds by these, and its area, by the names of the
        columns. What is empty or not finite there is left out. Outlines of an object of a volume have no area, each
        has the intensities of the whole object, and `shapes` is refused.
    positive : str, optional
        A rule as for `tilenet.write_table`, such as ``"dab>0.2"``: the classes of objects become Positive and Negative,
        by which QuPath counts them. The means are added to the measurements.
    overwrite : bool
        Replace a file that `write_geojson` wrote.
    progress : callable, optional
        Called with the number of rows done and the total number of rows.

    Returns
    -------
    Outlined

    Raises
    ------
    OutputNotFound, OutputIncomplete, BlocksFailed, OutputExists, OutputMismatch, EnvironmentFault
        If the mask is missing, incomplete or damaged; if another file is in the way; if the image
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
    out, bright = Path(out).absolute(), Intensities(channels=intensities, stains=stains, positive=positive)
    how: dict[str, Any] = {"pixel_size": pixel_size, "replace": overwrite, "is_ours": _is_ours, "kind": "a GeoJSON"}
    with open_for(out, mask, image, **how) as (opened, grid):
        found = Outlined(out, objects=opened.has_objects, volumes=has_volumes(opened))
        least = _least(opened, min_area, shapes=shapes)
        if bright:
            bright.check(opened, image)
        opened.refuse_damage()
        measured = bright.measure(opened, image) if bright else None
        measurements = _ShapeMeasurements(opened, grid, measured, shapes=shapes)
        outlined = _large(shapes_of(opened, progress), least, found, opened, grid)
        with put_whole(out) as path, path.open("wb") as file:
            for part in _Features(opened, grid, kind, found, measurements).collection(outlined):
                file.write(part)
    return found


def _least(mask: AnyMask, area: str | float | None, *, shapes: bool) -> MinimumSize:
    """Return the least area of shapes; raise if something was asked for that outlines of a volume do not have."""
    outlines = f"{mask.path}: its polygons are outlines in planes"
    if area is not None and has_volumes(mask):
        raise SettingsError(f"{outlines}, which have no volume. Leave smaller objects out of the table alone (--csv)")
    if shapes and has_volumes(mask):
        raise SettingsError(f"{outlines}, and shapes are of whole objects. Give --shapes for the table alone (--csv)")
    return least_of(mask, area)


def _large(
    shapes: Iterable[Shape], least: MinimumSize, found: Outlined, mask: AnyMask, grid: MaskPlacement
) -> Iterator[Shape]:
    """Yield the shapes whose area, without holes, is at least `least`; count the others."""
    size, _ = pixel_sizes(mask)
    for shape in shapes:
        pixels, inside, _ = extent(shape.rings, grid) if least.pixels else (0, 0, None)
        if least.excludes(pixels, cut_size(pixels, size, um_of(inside, size))):
            found.left_out += 1
        else:
            yield shape


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


class _ShapeMeasurements:
    """What a table says of shapes: nothing, or their areas, with their forms and what was measured over objects."""

    def __init__(self, mask: AnyMask, grid: MaskPlacement, measured: Measurements | None, *, shapes: bool) -> None:
        self._grid, self._um2, self._measured = grid, pixel_sizes(mask)[0], measured
        self._forms = ShapeDescriptors(mask) if shapes else None
        self._has_areas = (shapes or measured is not None) and not has_volumes(mask)
        self._positive = None if measured is None else measured.positive
        self.colors = {} if self._positive is None else QUPATH

    def class_of(self, shape: Shape) -> str:
        """Return the name of the class of a shape; what is neither positive nor negative keeps its own."""
        return shape.name if self._positive is None else (NEGATIVE, POSITIVE, shape.name)[self._positive[shape.value]]

    def of(self, shape: Shape) -> dict[str, Any]:
        """Return the finite numbers of a shape by column, without `positive`, which its class says."""
        texts = self._forms.of(shape) if self._forms else {}
        texts |= self._measured.of(shape.value) if self._measured else {}
        numbers = ((name, float(text)) for name, text in texts.items() if name != "positive")
        return self._areas(shape) | {name: number for name, number in numbers if isfinite(number)}

    def _areas(self, shape: Shape) -> dict[str, Any]:
        if not self._has_areas:
            return {}
        pixels, inside, _ = extent(shape.rings, self._grid)
        return {"area_px": pixels} | ({} if self._um2 is None else {"area_um2": um_of(inside, self._um2)})


class _Features:
    """Write shapes as the text of a FeatureCollection, counting features and vertices."""

    def __init__(
        self, mask: AnyMask, grid: MaskPlacement, kind: str, found: Outlined, measurements: _ShapeMeasurements
    ) -> None:
        self._mask, self._grid, self._kind, self._found, self._measurements = mask, grid, kind, found, measurements
        self._colors = {value: color[:3] for value, color in colors_of(mask.info["card"]).items()}

    def collection(self, shapes: Iterable[Shape]) -> Iterator[bytes]:
        """Yield the content of the file in pieces."""
        yield HEAD + b'"' + tilenet.__version__.encode() + b'","features":['
        before = "\n"
        for shape in shapes:
            yield f"{before}{self._feature(shape)}".encode()
            before = ",\n"
        yield b"\n]}\n"

    def _plane(self, shape: Shape) -> str:
        """Return the ``plane`` member of a geometry; empty if the mask has no other plane than the image's first."""
        if max(self._mask.shape[:-2], default=1) == 1 and not (shape.t or shape.z):
            return ""
        return f',"plane":{{"c":-1,"z":{shape.z},"t":{shape.t}}}'

    def _feature(self, shape: Shape) -> str:
        polygons = [f"[{','.join(map(self._ring, region.rings))}]" for region in shape.parts]
        several = len(polygons) > 1
        name = self._measurements.class_of(shape)
        self._found.features[name] += 1
        self._found.vertices += sum(len(ring) for region in shape.parts for ring in region.rings)
        kind = "MultiPolygon" if several else "Polygon"
        coordinates = f"[{','.join(polygons)}]" if several else polygons[0]
        return (
            f'{{"type":"Feature","id":"{shape.id}",'
            f'"geometry":{{"type":"{kind}","coordinates":{coordinates}{self._plane(shape)}}},'
            f'"properties":{self._properties(shape, name)}}}'
        )

    def _ring(self, ring: Ring) -> str:
        return json.dumps(self._grid.place(ring).tolist(), separators=(",", ":"))

    def _properties(self, shape: Shape, name: str) -> str:
        own = min(self._colors) if self._found.objects else shape.value
        color = self._measurements.colors.get(name) or self._colors[own]
        said: dict[str, Any] = {"objectType": self._kind, "classification": {"name": name, "color": list(color)}}
        said |= {"name": str(shape.value)} if self._found.objects else {}
        measurements = self._measurements.of(shape)
        said |= {"measurements": measurements} if measurements else {}
        return json.dumps(said, separators=(",", ":"))
