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
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import tilenet
from tilenet.arguments import known_options
from tilenet.card import colors_of
from tilenet.errors import SettingsError
from tilenet.export.areas import cut_size, least_of, pixel_sizes, um_of
from tilenet.export.corners import Ring
from tilenet.export.intensities import Intensities
from tilenet.export.measuring import MeasuredShape, Measuring
from tilenet.export.shapes import Progress, Shape, check_export_place, has_volumes, open_placed
from tilenet.export.totals import Outlined
from tilenet.store import AnyMask
from tilenet.store.destination import put_whole

Kind = Literal["detection", "annotation"]
KINDS = get_args(Kind)
# QuPath's own classes (PathClassTools in its source), and its colours for them.
POSITIVE, NEGATIVE = "Positive", "Negative"
QUPATH = {POSITIVE: [250, 62, 62], NEGATIVE: [112, 112, 225]}
# The beginning of tilenet's files, and of no others. RFC 7946 allows additional members, and QuPath ignores them.
HEAD = b'{"type":"FeatureCollection","tilenet":'
LOG = logging.getLogger("tilenet")


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
        has the intensities of the whole object, and `shapes` is refused: only a table can have those.
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
    bright = Intensities(channels=intensities, stains=stains, positive=positive)
    polygons = Polygons(Path(out).absolute(), kind, min_area)
    with open_placed(mask, image, pixel_size=pixel_size) as (opened, grid):
        file = PolygonsFile(polygons, opened, image, replace=overwrite)
        if shapes:
            file.refuse_shapes()
        measuring = Measuring.begin(opened, grid, image, bright, shapes=shapes)
        with file.following(measuring, measuring.shapes(progress)) as written:
            deque(written, maxlen=0)
    return file.found


@dataclass(frozen=True)
class Polygons:
    """Which polygons to write, and where; the options are those of `write_geojson`."""

    out: Path
    kind: Kind = "detection"
    min_area: str | float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingsError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")


class PolygonsFile:
    """A file of polygons, which is written while shapes are measured, perhaps for a table as well.

    Raises
    ------
    OutputExists, OutputError, EnvironmentFault, SettingsError
        If the file must not be written there, or if shapes have no such area.
    """

    def __init__(self, polygons: Polygons, mask: AnyMask, image: Any, *, replace: bool) -> None:
        out, area = polygons.out, polygons.min_area
        self._mask, self._kind, self._volumes = mask, polygons.kind, has_volumes(mask)
        self.found = Outlined(out, objects=mask.has_objects, volumes=self._volumes)
        check_export_place(out, mask, image, replace=replace, is_ours=_is_ours, kind="a GeoJSON")
        if area is not None and self._volumes:
            raise SettingsError(
                f"{self._outlines}, which have no volume. Leave smaller objects out of the table alone (--csv)"
            )
        self._least = least_of(mask, area)

    @property
    def _outlines(self) -> str:
        return f"{self._mask.path}: its polygons are outlines in planes"

    def refuse_shapes(self) -> None:
        """Raise if the polygons have no forms, and there is no table to have them."""
        if self._volumes:
            raise SettingsError(f"{self._outlines}, and shapes are of whole objects. Add --csv: the table has them")

    def remark_shapes(self) -> None:
        """Say so if the polygons have no forms, which the table has."""
        if self._volumes:
            LOG.warning("%s, and shapes are of whole objects: only the table has them", self._outlines)

    @contextmanager
    def following(self, measuring: Measuring, shapes: Iterable[MeasuredShape]) -> Iterator[Iterator[MeasuredShape]]:
        """Yield the same shapes; those that are large enough are written as they go by, and the file is then whole."""
        with put_whole(self.found.path) as path, path.open("wb") as file:
            features = _Features(measuring, self._kind, self.found)
            file.write(HEAD + b'"' + tilenet.__version__.encode() + b'","features":[')
            yield self._written(shapes, features, file)
            file.write(b"\n]}\n")

    def _written(self, shapes: Iterable[MeasuredShape], features: _Features, file: BinaryIO) -> Iterator[MeasuredShape]:
        size, before = pixel_sizes(self._mask)[0], "\n"
        for shape in shapes:
            if self._least.pixels and self._is_small(shape, size):
                self.found.left_out += 1
            else:
                file.write(f"{before}{features.text(shape)}".encode())
                before = ",\n"
            yield shape

    def _is_small(self, shape: MeasuredShape, size: float | None) -> bool:
        """Return whether the area of a shape, without holes, is too small, given that of a pixel."""
        pixels, inside, _ = shape.extent
        return self._least.excludes(pixels, cut_size(pixels, size, um_of(inside, size)))


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


class _ShapeMeasurements:
    """What a table says of shapes: nothing, or their areas, with their forms and what was measured over objects."""

    def __init__(self, measuring: Measuring) -> None:
        mask, self._measured = measuring.mask, measuring.bright
        self._um2, whole = pixel_sizes(mask)[0], not has_volumes(mask)
        self._has_forms = measuring.forms is not None and whole
        self._has_areas = (self._has_forms or self._measured is not None) and whole
        self._positive = None if self._measured is None else self._measured.positive
        self.colors = {} if self._positive is None else QUPATH

    def class_of(self, shape: Shape) -> str:
        """Return the name of the class of a shape; what is neither positive nor negative keeps its own."""
        return shape.name if self._positive is None else (NEGATIVE, POSITIVE, shape.name)[self._positive[shape.value]]

    def of(self, measured: MeasuredShape) -> dict[str, Any]:
        """Return the finite numbers of a shape by column, without `positive`, which its class says."""
        texts = measured.form if self._has_forms else {}
        if self._measured:
            texts = texts | self._measured.of(measured.shape.value)
        numbers = ((name, float(text)) for name, text in texts.items() if name != "positive")
        return self._areas(measured) | {name: number for name, number in numbers if isfinite(number)}

    def _areas(self, measured: MeasuredShape) -> dict[str, Any]:
        if not self._has_areas:
            return {}
        pixels, inside, _ = measured.extent
        return {"area_px": pixels} | ({} if self._um2 is None else {"area_um2": um_of(inside, self._um2)})


class _Features:
    """Shapes as the text of features, counted with their vertices."""

    def __init__(self, measuring: Measuring, kind: str, found: Outlined) -> None:
        self._mask, self._grid, self._kind, self._found = measuring.mask, measuring.grid, kind, found
        self._measurements = _ShapeMeasurements(measuring)
        self._colors = {value: color[:3] for value, color in colors_of(self._mask.info["card"]).items()}

    def text(self, measured: MeasuredShape) -> str:
        """Return the feature of a shape."""
        shape = measured.shape
        polygons = [f"[{','.join(map(self._ring, region.rings))}]" for region in shape.parts]
        several = len(polygons) > 1
        name = self._measurements.class_of(shape)
        self._found.features[name] += 1
        self._found.vertices += sum(len(ring) for ring in shape.rings)
        kind = "MultiPolygon" if several else "Polygon"
        coordinates = f"[{','.join(polygons)}]" if several else polygons[0]
        return (
            f'{{"type":"Feature","id":"{shape.id}",'
            f'"geometry":{{"type":"{kind}","coordinates":{coordinates}{self._plane(shape)}}},'
            f'"properties":{self._properties(measured, name)}}}'
        )

    def _plane(self, shape: Shape) -> str:
        """Return the ``plane`` member of a geometry; empty if the mask has no other plane than the image's first."""
        if max(self._mask.shape[:-2], default=1) == 1 and not (shape.t or shape.z):
            return ""
        return f',"plane":{{"c":-1,"z":{shape.z},"t":{shape.t}}}'

    def _ring(self, ring: Ring) -> str:
        return json.dumps(self._grid.place(ring).tolist(), separators=(",", ":"))

    def _properties(self, measured: MeasuredShape, name: str) -> str:
        value = measured.shape.value
        own = min(self._colors) if self._found.objects else value
        color = self._measurements.colors.get(name) or self._colors[own]
        said: dict[str, Any] = {"objectType": self._kind, "classification": {"name": name, "color": list(color)}}
        said |= {"name": str(value)} if self._found.objects else {}
        measurements = self._measurements.of(measured)
        said |= {"measurements": measurements} if measurements else {}
        return json.dumps(said, separators=(",", ":"))
