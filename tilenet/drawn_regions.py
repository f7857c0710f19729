"""Regions that a user drew on an image, such as annotations of QuPath.

Only areas count, and a file that holds anything else is refused, so that nothing is left out unseen.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon

from tilenet.errors import SettingsError, counted, first_line, refuse_special_file

# In a table, between the names of the regions of one shape.
BETWEEN = "; "
# What a region must not be: QuPath exports its annotations and its cells by the same command.
FOUND = ("cell", "detection", "PathCellObject", "PathDetectionObject")
LOG = logging.getLogger("tilenet")
# x and y (n, 2) in pixels of the image at full resolution.
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A region that a user drew: its name, its area in pixels of the image at full resolution, its file, its colour.

    Only classes of a mask have a colour, by which they are told apart where they share a border.
    """

    name: str
    area: MultiPolygon
    path: Path
    color: tuple[int, ...] | None = None


def covered(
    drawn: Sequence[Drawn], frame: tuple[float, float, float, float], what: str = "what was segmented"
) -> list[Any]:
    """Return the part of each region in the frame (left, top, right, bottom) of `what`; tell of those that leave it."""
    inside = [shapely.intersection(region.area, shapely.box(*frame)) for region in drawn]
    if not any(part.area for part in inside):
        left, top, right, bottom = frame
        raise SettingsError(
            f"{drawn[0].path}: all of its regions lie outside of {what}, x {left:g} to {right:g} and y "
            f"{top:g} to {bottom:g}. Give the regions of this image, in pixels at full resolution"
        )
    for region, part in zip(drawn, inside, strict=True):
        if region.area.area and (outside := 1 - part.area / region.area.area) > 1e-9:
            LOG.warning("%s: %.3g %% of %s lies outside of %s", region.path, 100 * outside, region.name, what)
    return inside


def outlines(drawn: Sequence[Drawn], frame: tuple[float, float, float, float]) -> Iterator[list[Points]]:
    """Yield the outlines of each region where they lie in a frame (left, top, right, bottom) or on it."""
    left, top, right, bottom = frame
    for region in drawn:
        # A pixel more: what lies on the border of a rectangle is not in it for `clip_by_rect`.
        near = shapely.clip_by_rect(region.area.boundary, left - 1, top - 1, right + 1, bottom + 1)
        yield [points for part in shapely.get_parts(near) if len(points := shapely.get_coordinates(part)) > 1]


def read_regions(path: str | Path, *, named: bool = True) -> list[Drawn]:
    """Read a GeoJSON file of polygons: a FeatureCollection, a list of features, or one, as QuPath exports them.

    A region has its name, or else that of its class; if it has neither, it is called by its place in the file.
    Names that occur several times are numbered. With `named`, warnings tell of names that are not as they were given.
    Of the detections that `write_geojson` wrote of classes, all of one class are one region; it is empty if a class of
    the mask has none.
    """
    path = Path(path)
    names, areas, nameless, missing = [], [], [], []
    features, ours, classes = _features(path)
    if ours and all(map(_is_of_class, features)):
        return _classes(path, features, classes, named=named)
    for number, feature in enumerate(features, 1):
        name = _name(feature)
        where = f"{path}: feature {number}" + (f" ({name})" if name else "")
        if _properties(feature).get("isMissing") is True:
            missing.append(name or f"feature {number}")
            continue
        _refuse_found(feature, where, ours=ours)
        areas.append(_valid(_area(feature.get("geometry"), where), where))
        names.append((_writable(name, where) if named else name) or f"region {number}")
        nameless += [] if name else names[-1:]
    if missing:
        cores, are = counted(len(missing), "core"), "is" if len(missing) == 1 else "are"
        LOG.warning("%s: %s marked as missing %s left out: %s", path, cores, are, first_three(missing))
    if not names:
        raise SettingsError(f"{path}: all of its cores are marked as missing. Give other regions")
    if nameless and named:
        LOG.warning(
            "%s: %d of %s without name and class, called by %s place in the file: %s",
            *(path, len(nameless), counted(len(names), "region")),
            *("its" if len(names) == 1 else "their", first_three(nameless)),
        )
    return [Drawn(name, area, path) for name, area in zip(_distinct(names), areas, strict=True)]


def first_three(names: Sequence[str]) -> str:
    """Return the first names of many as text.

    >>> first_three(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join([*names[:3], *(["..."] if names[3:] else [])])


def _writable(name: str, where: str) -> str:
    """Return a name without what stands between names in a table; tell if it had to be changed."""
    if BETWEEN not in name:
        return name
    name = name.replace(BETWEEN, ", ")
    LOG.warning('%s has "%s" in its name, which stands between names in a table: called "%s"', where, BETWEEN, name)
    return name


def _classes(path: Path, features: Sequence[dict[str, Any]], classes: Sequence[str], *, named: bool) -> list[Drawn]:
    """Return one region for each class of a mask, of all polygons of that class, which do not overlap."""
    parts: dict[str, list[Any]] = {}
    colors = {_name(feature): _color(feature) for feature in features}
    for number, feature in enumerate(features, 1):
        name = _name(feature)
        where = f"{path}: feature {number} ({name})"
        parts.setdefault(name, []).extend(shapely.get_parts(_valid(_area(feature.get("geometry"), where), where)))
    if len({str(feature["geometry"].get("plane")) for feature in features}) > 1:
        raise SettingsError(
            f"{path}: has polygons of several planes, and regions lie in one. Segment one alone, such as --roi 4:5,:,:"
        )
    parts |= {name: [] for name in classes if name not in parts}
    written = {name: _writable(name, f"{path}: the class {name}") if named else name for name in parts}
    return [Drawn(written[name], MultiPolygon(several), path, colors.get(name)) for name, several in parts.items()]


def _features(path: Path) -> tuple[list[dict[str, Any]], bool, list[str]]:
    """Return the features of a file, whether `tilenet.write_geojson` wrote it, and the classes of its mask."""
    how = "In QuPath, select the annotations, and use File > Export objects as GeoJSON, not compressed"
    refuse_special_file(path)
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: does not exist. Check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is no text, but compressed or a picture. {how}") from error
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else first_line(error)
        raise SettingsError(f"{path}: is not a GeoJSON that can be read ({said}). {how}") from error
    features = held.get("features") if isinstance(held, dict) and held.get("type") == "FeatureCollection" else held
    if isinstance(held, dict) and held.get("type") == "Feature":
        features = [held]  # as QuPath writes a single object
    if not isinstance(features, list):
        raise SettingsError(f"{path}: is neither a FeatureCollection, nor a list of features, nor one. {how}")
    ours = isinstance(held, dict) and "tilenet" in held
    if not features:
        why = " or too small parts" if ours and "min_area" in str(held.get("rule")) else ""
        how = f"Its mask is all background{why}: leave it out" if ours else how
        raise SettingsError(f"{path}: has no regions. {how}")
    for number, feature in enumerate(features, 1):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise SettingsError(f"{path}: entry {number} is not a Feature. {how}")
    classes = held.get("classes") if isinstance(held, dict) and ours else None
    return features, ours, [" ".join(str(name).split()) for name in classes] if isinstance(classes, list) else []


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _name(feature: dict[str, Any]) -> str:
    """Return the name of a feature, or of its class, which QuPath writes in parts if it was derived from another."""
    said = _properties(feature)
    kind = said.get("classification")
    if isinstance(kind, dict):
        parts = kind.get("names")
        kind = kind.get("name") or (": ".join(map(str, parts)) if isinstance(parts, list) else "")
    return " ".join(str(said.get("name") or kind or "").split())


def _color(feature: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the red, green and blue of the class of a feature, if it has them."""
    kind = _properties(feature).get("classification")
    color = kind.get("color") if isinstance(kind, dict) else None
    if not isinstance(color, list) or len(color) != 3:
        return None
    return tuple(color) if all(isinstance(value, int) and 0 <= value <= 255 for value in color) else None


def _is_of_class(feature: dict[str, Any]) -> bool:
    """Return whether a feature that tilenet wrote is a region of a class: an object has its number as its name."""
    said = _properties(feature)
    return said.get("objectType") == "detection" and "name" not in said and bool(_name(feature))


def _refuse_found(feature: dict[str, Any], where: str, *, ours: bool) -> None:
    said = _properties(feature)
    # As QuPath reads them (QuPathTypeAdapters in its source): its version 0.2 wrote what an object is as its id.
    kind = next((said[key] for key in ("objectType", "object_type", "type") if key in said), feature.get("id"))
    if kind in FOUND and ours:
        raise SettingsError(
            f"{where} is an object, not a region. Give polygons of classes, or write these with --as annotation"
        )
    if kind in FOUND:
        raise SettingsError(f"{where} is a {kind}, not a region. In QuPath, select the annotations, and export those")
    if said.get("childObjects") or said.get("children"):
        raise SettingsError(f"{where} has other objects inside. Export the annotations one beside the other")


def _area(geometry: Any, where: str) -> MultiPolygon:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise SettingsError(f"{where} is a {kind or 'feature without geometry'}, which has no area. Export areas alone")
    held = geometry.get("coordinates")
    polygons = [held] if kind == "Polygon" else held
    if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
        raise SettingsError(f"{where} is a {kind} without rings. Draw it again")
    try:
        shapes = [[_ring(ring) for ring in rings] for rings in polygons]
    except ValueError as error:
        raise SettingsError(f"{where} has {error}. Draw it again, or mend the file") from error
    return MultiPolygon([(shell, holes) for shell, *holes in shapes])


def _ring(points: Any) -> Any:
    """Return x and y (n, 2) of the points of a closed ring."""
    try:
        ring = np.array(points, np.float64)
    except (TypeError, ValueError):
        ring = np.full((1, 2), np.nan)
    if ring.ndim != 2 or ring.shape[1] not in (2, 3) or not np.isfinite(ring).all():
        raise ValueError("points that are not pairs of numbers")
    x, y = ring[0].tolist()[:2]
    if (ring[0] != ring[-1]).any():
        raise ValueError(f"an open ring: its {len(ring)} points do not return to the first, ({x:g}, {y:g})")
    if len(ring) < 4:
        raise ValueError(f"a ring of {len(ring)} points at ({x:g}, {y:g}), which encloses nothing")
    return ring[:, :2]


def _valid(area: MultiPolygon, where: str) -> Any:
    """Return an area whose rings do not cross, as QuPath's library mends them; tell of one that had to be mended."""
    if not area.is_valid:
        LOG.warning("%s crosses itself (%s), and is mended; holes stay holes", where, shapely.is_valid_reason(area))
        area = shapely.make_valid(area, method="structure", keep_collapsed=False)
    if not area.area:
        raise SettingsError(f"{where} has no area. Draw it again")
    return area


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with numbers where one occurs several times.

    >>> _distinct(["Tumor", "Stroma", "Tumor", "Tumor 1"])
    ['Tumor (1)', 'Stroma', 'Tumor (2)', 'Tumor 1']
    """
    times, taken, found = Counter(names), set(names), []
    for name in names:
        if times[name] > 1:
            found.append(next(said for k in count(1) if (said := f"{name} ({k})") not in taken))
            taken.add(found[-1])
        else:
            found.append(name)
    return found
