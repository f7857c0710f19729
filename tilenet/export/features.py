"""Shapes as GeoJSON features, as QuPath imports them: polygons in pixels of the image.

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
from itertools import islice
from math import isfinite
from typing import Any

from numpy.typing import NDArray

from tilenet.card import colors_of
from tilenet.export.areas import pixel_sizes, um_of
from tilenet.export.measuring import MeasuredShape, Measuring
from tilenet.export.opened import has_volumes
from tilenet.export.shapes import Shape
from tilenet.export.totals import Outlined

# QuPath's own classes (PathClassTools in its source), and its colours for them.
POSITIVE, NEGATIVE = "Positive", "Negative"
QUPATH = {POSITIVE: [250, 62, 62], NEGATIVE: [112, 112, 225]}
COMPACT = json.JSONEncoder(separators=(",", ":"))


class _ShapeMeasurements:
    """What a table says of shapes: nothing, or their areas, with their forms and what was measured over objects."""

    def __init__(self, measuring: Measuring) -> None:
        mask, bright = measuring.mask, measuring.bright
        self._um2, whole = pixel_sizes(mask)[0], not has_volumes(mask)
        self._has_forms = measuring.forms is not None and whole
        self._has_areas = (self._has_forms or bright is not None) and whole
        self._positive = None if bright is None else bright.positive
        self.colors = {} if self._positive is None else QUPATH

    def class_of(self, shape: Shape) -> str:
        """Return the name of the class of a shape; what is neither positive nor negative keeps its own."""
        return shape.name if self._positive is None else (NEGATIVE, POSITIVE, shape.name)[self._positive[shape.value]]

    def of(self, measured: MeasuredShape) -> dict[str, Any]:
        """Return the finite numbers of a shape by column, without `positive`, which its class says."""
        texts = (measured.form if self._has_forms else {}) | measured.bright
        numbers = ((name, float(text)) for name, text in texts.items() if name != "positive")
        return self._areas(measured) | {name: number for name, number in numbers if isfinite(number)}

    def _areas(self, measured: MeasuredShape) -> dict[str, Any]:
        if not self._has_areas:
            return {}
        pixels, inside, _ = measured.extent
        return {"area_px": pixels} | ({} if self._um2 is None else {"area_um2": um_of(inside, self._um2)})


class Features:
    """Shapes as the text of features; these are counted, with their vertices, in `found`."""

    def __init__(self, measuring: Measuring, kind: str, found: Outlined) -> None:
        self._mask, self._kind, self._found = measuring.mask, kind, found
        self._measurements = _ShapeMeasurements(measuring)
        self._colors = {value: color[:3] for value, color in colors_of(self._mask.info["card"]).items()}

    def text(self, measured: MeasuredShape) -> str:
        """Return the feature of a shape."""
        shape = measured.shape
        rings = map(_text_of_ring, measured.rings())
        polygons = [f"[{','.join(islice(rings, len(region.rings)))}]" for region in shape.parts]
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

    def _properties(self, measured: MeasuredShape, name: str) -> str:
        value = measured.shape.value
        own = min(self._colors) if self._found.objects else value
        color = self._measurements.colors.get(name) or self._colors[own]
        said: dict[str, Any] = {"objectType": self._kind, "classification": {"name": name, "color": list(color)}}
        said |= {"name": str(value)} if self._found.objects else {}
        measurements = self._measurements.of(measured)
        said |= {"measurements": measurements} if measurements else {}
        return COMPACT.encode(said)


def _text_of_ring(placed: NDArray[Any]) -> str:
    """Return x and y (n, 2) of a ring as GeoJSON has it: closed by repeating the first vertex."""
    corners = placed.tolist()
    return COMPACT.encode([*corners, corners[0]])
