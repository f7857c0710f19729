"""Read the description of an image from the metadata documents of a zarr folder, local or remote."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tilenet.errors import ImageError
from tilenet.readers.coordinates import MICROMETERS, CoordinateTransform, frame_of
from tilenet.readers.guards import as_image_errors, positive_or_none
from tilenet.readers.image import AXES

DAMAGED = "The metadata is damaged; get the image again"
LARGEST_DOCUMENT = 16 * 2**20
# An OME-Zarr level lies at most this many folders below its group.
DEEPEST = 4
DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
# Versions of OME-Zarr without a list of axes: before 0.3, the axes were always ``tczyx``.
OLD_AXES = ("0.1", "0.2")


class Folder(ABC):
    """A folder of a zarr hierarchy, local or remote; ``str(folder)`` is its name in messages."""

    @abstractmethod
    def documents(self) -> dict[str, bytes]:
        """Return the metadata documents of the folder (the files of `DOCUMENTS` that exist), by name."""

    @abstractmethod
    def inside(self, path: str) -> Folder:
        """Return a subfolder; the path must not lead out of this folder."""

    def leads_out(self, path: str) -> bool:
        """Return whether a path below the folder leads out of it through a link; below an address are none."""
        return False

    @abstractmethod
    def above(self) -> Iterator[tuple[Folder, str]]:
        """Yield the parent folders, nearest first, each with the path of this folder in it."""

    def nodes_inside(self) -> list[str] | None:
        """Return the names of the arrays and groups in the folder; None if they cannot be listed."""
        return None

    @abstractmethod
    def what_lacks(self) -> str:
        """Return the text of the error if the folder has no metadata documents."""

    @abstractmethod
    def store(self) -> Any:
        """Return a zarr store of the array in the folder, a `zarr_store.CheckedStore`."""

    @property
    def kept_bytes(self) -> int:
        """Most bytes of its files that are cached in memory, as fetched."""
        return 0


@dataclass(frozen=True)
class Node:
    """An array or a group of a zarr hierarchy (v2 or v3)."""

    folder: Folder
    is_array: bool
    # User attributes, in which conventions such as OME-Zarr store their metadata.
    attributes: dict[str, Any]
    # Number of dimensions of an array; 0 for a group.
    ndim: int
    # ``dimension_names`` of a v3 array, or ``_ARRAY_DIMENSIONS`` of xarray; empty if there are none.
    dimension_names: list[Any]
    # Hash of its documents.
    sha256: str


@dataclass(frozen=True)
class Multiscales:
    """The OME-Zarr metadata of an image."""

    # Paths of the levels' arrays inside the group, finest first.
    paths: tuple[str, ...]
    # One lower-case letter per dimension; not always one of ``tczyx``.
    letters: tuple[str, ...]
    # Pixel size of each level along the dimensions, in micrometres.
    sizes: tuple[tuple[float | None, ...], ...]
    # Empty if they have no names.
    channel_names: tuple[str, ...]
    # Frame of each level along the dimensions; None if the metadata does not state it.
    frames: tuple[CoordinateTransform | None, ...]

    def coarser(self, level: int) -> Multiscales:
        """Return the metadata of the levels from `level` on."""
        parts = (self.paths[level:], self.letters, self.sizes[level:], self.channel_names, self.frames[level:])
        return Multiscales(*parts)


def has_documents(path: str | Path) -> bool:
    """Return whether a local folder has zarr metadata documents."""
    return any((Path(path) / name).is_file() for name in DOCUMENTS)


def read_node(folder: Folder) -> Node | None:
    """Return the array or group described by the documents in a folder; None if there are none."""
    with as_image_errors(f"{folder}: its zarr metadata cannot be read", DAMAGED):
        found = folder.documents()
        if not found:
            return None
        digest = hashlib.sha256(b"\0".join(name.encode() + b"\0" + found[name] for name in sorted(found)))
        documents = {name: _object(data, f"{folder}/{name}") for name, data in found.items()}
        v3 = documents.get("zarr.json", {})
        attributes = v3.get("attributes", {}) if v3 else documents.get(".zattrs", {})
        is_array = v3.get("node_type") == "array" if v3 else ".zarray" in documents
        names = v3.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS") or []
        shape = (v3 or documents.get(".zarray", {})).get("shape", ()) if is_array else ()
        return Node(folder, is_array, attributes, len(shape), list(names) if is_array else [], digest.hexdigest())


def multiscales_of(node: Node) -> Multiscales | None:
    """Return the metadata of the first multiscale image of a group; None if there is none."""
    ome = node.attributes.get("ome", node.attributes)
    with as_image_errors(f"{node.folder}: its OME-Zarr metadata cannot be understood", DAMAGED):
        if not ome.get("multiscales"):
            return None
        image = ome["multiscales"][0]
        axes = image.get("axes") or (list(AXES) if str(image.get("version")) in OLD_AXES else [])
        axes = [a if isinstance(a, dict) else {"name": a} for a in axes]
        units = [MICROMETERS.get(a.get("unit") or "") for a in axes]
        paths = tuple(_safe(str(d["path"]), node.folder) for d in image["datasets"])
        if not paths:
            raise ImageError(f"{node.folder}: lists no resolution levels. {DAMAGED}")
        whole = _scale(image, len(axes))
        sizes = [
            tuple(_product(a, b, c) for a, b, c in zip(whole, _scale(d, len(axes)), units, strict=True))
            for d in image["datasets"]
        ]
        channels = (ome.get("omero") or node.attributes.get("omero") or {}).get("channels") or []
        names = tuple(str(c.get("label") or "") for c in channels)
        frames = tuple(_frame(image, k) for k in range(len(paths)))
        return Multiscales(paths, tuple(map(_letter, axes)), tuple(sizes), names, frames)


def what_is_inside(node: Node) -> str:
    """Return a sentence on what to open instead of a group that is not an image."""
    ome = node.attributes.get("ome", node.attributes)
    if "plate" in ome:
        return "It is a plate; give one of its images, such as a well's field: plate.zarr/A/1/0"
    if "well" in ome:
        return f"It is a well; give one of its fields: {node.folder.inside('0')}"
    if isinstance(ome.get("labels"), list) and ome["labels"]:
        return f"It lists labels; give one: {node.folder.inside(str(ome['labels'][0]))}"
    inside = node.folder.nodes_inside()
    if inside is None:
        return f"Give one of what is inside, such as {node.folder.inside('0')}"
    return f"Give one of what is inside: {', '.join(inside[:8])}" if inside else "It is empty"


def _object(data: bytes, name: str) -> dict[str, Any]:
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ImageError(f"{name}: is not a JSON object. {DAMAGED}")
    return document


def _safe(path: str, group: Folder) -> str:
    """Return the path of a level; refuse a path that leads out of the group."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ImageError(f"{group}: has a level at {path!r}, outside of itself. Correct its multiscales metadata")
    if group.leads_out(path):
        raise ImageError(f"{group}: its level {path!r} is a link that leads out of it. Copy the image with its files")
    return path


def _frame(image: dict[str, Any], level: int) -> CoordinateTransform | None:
    """Return the frame of a level; None if the metadata does not state it in a known form."""
    try:
        said = image["datasets"][level].get("coordinateTransformations")
        return frame_of(image, level) if said and isinstance(image["axes"][0], dict) else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _letter(axis: dict[str, Any]) -> str:
    name = str(axis.get("name", "")).lower()
    by_type = {"channel": "c", "time": "t"}
    return name if name in AXES and name else by_type.get(str(axis.get("type")), "?")


def _scale(entry: dict[str, Any], n_axes: int) -> Sequence[float | None]:
    """Return the scale of the whole image (1 if there is none) or of a dataset (None, which is unknown, if none)."""
    for transformation in entry.get("coordinateTransformations") or []:
        if transformation.get("type") == "scale":
            scale = [float(v) for v in transformation["scale"]]
            if len(scale) != n_axes:
                raise ValueError(f"a scale of {len(scale)} numbers for {n_axes} axes")
            return scale
    return [1.0 if "path" not in entry else None] * n_axes


def _product(whole: float | None, level: float | None, unit: float | None) -> float | None:
    if whole is None or level is None or unit is None:
        return None
    return positive_or_none(whole * level * unit)
