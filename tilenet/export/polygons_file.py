"""A file of polygons, which is written while shapes are measured, perhaps for a table as well."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import methodcaller
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import tilenet
from tilenet.errors import SettingsError
from tilenet.export.areas import cut_size, least_of, pixel_sizes, um_of
from tilenet.export.features import Features
from tilenet.export.intensities import Intensities
from tilenet.export.measuring import MeasuredShape, Measuring
from tilenet.export.opened import check_export_place, has_volumes, open_placed
from tilenet.export.shapes import class_names
from tilenet.export.totals import Outlined
from tilenet.store import AnyMask, Progress
from tilenet.store.destination import put_whole

Kind = Literal["detection", "annotation"]
KINDS = get_args(Kind)
# The beginning of tilenet's files, and of no others. RFC 7946 allows additional members, and QuPath ignores them.
HEAD = b'{"type":"FeatureCollection","tilenet":'
FEATURES, END = b',"features":[', b"\n]}\n"
LOG = logging.getLogger("tilenet")


@dataclass(frozen=True)
class Polygons:
    """Which polygons to write, and where; the first three are as for `tilenet.write_geojson`."""

    out: Path
    kind: Kind = "detection"
    min_area: str | float | None = None
    # Whether there is also a table, which has those shapes of volumes that their polygons lack.
    beside_table: bool = False
    # What `rule_of` will return of the file: a `rule_text`.
    rule: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingsError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")


def write_polygons(
    mask: str | PathLike[str],
    polygons: Polygons,
    *,
    image: Any = None,
    pixel_size: Any = None,
    intensities: Intensities,
    shapes: bool,
    overwrite: bool,
    progress: Progress | None = None,
) -> Outlined:
    """Write polygons without a table; the arguments are those of `tilenet.write_geojson`."""
    with open_placed(mask, image, pixel_size=pixel_size) as (opened, grid):
        file = PolygonsFile(polygons, opened, image, replace=overwrite, shapes=shapes)
        measuring = Measuring.begin(opened, grid, image, intensities, shapes=shapes)
        with file.following(measuring, measuring.shapes(progress)) as written:
            deque(written, maxlen=0)
    return file.found


class PolygonsFile:
    """The file itself; refused if it must not be written there, or if its polygons have no such areas or shapes."""

    def __init__(self, polygons: Polygons, mask: AnyMask, image: Any, *, replace: bool, shapes: bool) -> None:
        self._mask, self._polygons = mask, polygons
        self.found = Outlined(polygons.out, objects=mask.has_objects, volumes=has_volumes(mask))
        check_export_place(polygons.out, mask, image, replace=replace, is_ours=is_polygons, kind="a GeoJSON")
        if self.found.volumes:
            self._check_outlines(shapes=shapes)
        self._least = least_of(mask, polygons.min_area)

    def _check_outlines(self, *, shapes: bool) -> None:
        """Refuse what outlines of volumes in planes cannot have, or say that only the table has it."""
        outlines = f"{self._mask.path}: its polygons are outlines in planes"
        if self._polygons.min_area is not None:
            raise SettingsError(
                f"{outlines}, which have no volume. Leave smaller objects out of the table alone (--csv)"
            )
        if shapes and not self._polygons.beside_table:
            raise SettingsError(f"{outlines}, and shapes are of whole objects. Add --csv: the table has them")
        if shapes:
            LOG.warning("%s, and shapes are of whole objects: only the table has them", outlines)

    @contextmanager
    def following(self, measuring: Measuring, shapes: Iterable[MeasuredShape]) -> Iterator[Iterator[MeasuredShape]]:
        """Yield the same shapes; those that are large enough are written as they go by, and the file is then whole."""
        with put_whole(self.found.path) as path, path.open("wb") as file:
            features = Features(measuring, self._polygons.kind, self.found)
            said = {"rule": self._polygons.rule, "classes": self._classes()}
            file.write(HEAD + b'"' + tilenet.__version__.encode() + b'"' + _text_of(said) + FEATURES)
            yield self._written(shapes, features, file)
            file.write(END)

    def _classes(self) -> list[str]:
        """Return the classes that are regions to count in, also if no polygon of them is written."""
        names = list(class_names(self._mask).values())
        return names if names[1:] and self._polygons.kind == KINDS[0] and not self._mask.has_objects else []

    def _written(self, shapes: Iterable[MeasuredShape], features: Features, file: BinaryIO) -> Iterator[MeasuredShape]:
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


def _text_of(said: dict[str, Any]) -> bytes:
    return "".join(f',"{name}":{json.dumps(value)}' for name, value in said.items() if value).encode()


def is_polygons(path: Path) -> bool:
    """Return whether a file is one of polygons that tilenet wrote."""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


def rule_text(*, kind: Kind = "detection", **options: Any) -> str:
    """Return as text which options decide what is in a file of polygons; empty if none was given.

    A batch knows by it polygons that were written with other options, by itself or by `write_geojson`.
    """
    given = {name: value for name, value in options.items() if value} | ({} if kind == KINDS[0] else {"kind": kind})
    # Numbers of NumPy's are written as Python's.
    return json.dumps(given, sort_keys=True, default=methodcaller("item")) if given else ""


def rule_of(path: Path) -> str:
    """Return the `rule` with which polygons were written; nothing if they were without one."""
    with path.open("rb") as file:
        head = file.readline().rstrip().removesuffix(FEATURES)
    return str(json.loads(head + b"}").get("rule", ""))
