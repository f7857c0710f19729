"""The metadata documents of a store (``zarr.json``, ``.zattrs``, ...): made from the layout, checked by yaozarrs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tilenet.errors import EnvironmentFault, OutputError, OutputNotFound
from tilenet.geometry import Box
from tilenet.store import codec
from tilenet.store.file_system import ACCESSED, faults_named
from tilenet.store.layout import DOCUMENTS, TISSUE, ArrayLayout, Layout
from tilenet.store.tissue_map import TISSUE_COLOR, TissueMap

FORMAT = 1
ZSTD_LEVEL = 3
OWN = ".tilenet"
# Ending of the folder beside a mask in which a run with objects keeps what it has found (`tilenet.runs.numbering`).
MAKING = ".making"
OME = {2: "0.4", 3: "0.5"}
GROUP = json.dumps({"zarr_format": 2}).encode()
# What is raised where a store's root document should be, and something else is.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def root_document(layout: Layout, info: Mapping[str, Any], *, complete: bool) -> bytes:
    """Return OUT/zarr.json (or OUT/.zattrs): the metadata of the label image, and how it was made."""
    own = {**info, "format": FORMAT, "layout": layout.to_json(), "complete": complete}
    levels = [str(level) for level in range(len(layout.levels))]
    return _group(layout, _label_image(layout, levels), {"tilenet": own})


def fixed_documents(layout: Layout) -> dict[str, bytes]:
    """Return all other documents by path; they follow from the layout alone."""
    documents = {
        layout.document(path): array_document(array, layout.zarr_format) for path, array in layout.arrays.items()
    }
    groups = [""]
    if layout.classes:
        groups.append("probabilities/")
        documents[f"probabilities/{layout.root}"] = _group(layout, _probability_image(layout), {})
    if layout.tissue_map:
        groups.append("tissue/")
        documents |= _tissue_documents(layout, layout.tissue_map)
    return documents | ({f"{group}.zgroup": GROUP for group in groups} if layout.zarr_format == 2 else {})


def foreign_entries(path: Path, layout: Layout) -> list[str]:
    """Return the names in a store's folder that a store of this layout does not have."""
    known = {OWN, layout.root, *(file.partition("/")[0] for file in fixed_documents(layout))}
    return sorted({entry.name for entry in path.iterdir()} - known)


@lru_cache(maxsize=64)  # a pyramid asks for its level's document with each block: that took a quarter of the time
def array_document(array: ArrayLayout, zarr_format: Literal[2, 3] = 3) -> bytes:
    """Return an array's ``zarr.json`` or ``.zarray``: one file per block, zstd with a checksum, background 0.

    Without the checksum, zstd would decode a flipped byte without an error.
    """
    import zarr
    from numcodecs import Zstd
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    how: dict[str, Any] = {"shape": array.shape, "chunks": array.chunk, "dtype": array.dtype, "fill_value": 0}
    if zarr_format == 2:
        how |= {"compressors": Zstd(level=ZSTD_LEVEL, checksum=True)}
        how |= {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    else:
        how |= {"compressors": [ZstdCodec(level=ZSTD_LEVEL, checksum=True)]}
        how |= {"shards": array.block, "dimension_names": list(array.axes)}
    zarr.create_array(MemoryStore(content), zarr_format=zarr_format, **how)
    document: bytes = content[DOCUMENTS[zarr_format][1]].to_bytes()
    return document


def not_ours(path: Path) -> OutputError:
    """Return the error to raise for a path that is not, or no longer, a mask that tilenet wrote."""
    if path.name.endswith(MAKING) and path.is_dir():
        return OutputError(
            f"{path}: belongs to a run with --objects, and is no mask yet. Run it, or its shares, again with --resume"
        )
    return OutputError(
        f"{path}: is not a mask that tilenet wrote. Give one made by tilenet segment, or choose another path"
    )


class Root(NamedTuple):
    """What the root document of a store says: its layout, how it was made, and whether it is complete."""

    layout: Layout
    info: dict[str, Any]
    complete: bool


def read_root(path: Path) -> Root:
    """Return what the root document of a store says; `OutputNotFound` or `OutputError` if there is none to be read."""
    with faults_named(path, what=ACCESSED, resumes=False):
        if not path.exists():
            raise not_there(path)
        try:
            own = dict(_attributes(path)["tilenet"])
            complete = own.pop("complete")
            found = layout_of(path, own)
            if not (path / OWN).is_dir():
                raise OutputError(
                    f"{path}: lacks its folder {OWN}, where the sizes and checksums of its files are. Copy that too, "
                    f"as it is hidden from some programs"
                )
            if not all(type(n) is int and 0 < n < 2**63 for n in (*found.shape, *found.block)):
                raise not_ours(path)
            return Root(found, own, complete is True)
        except OutputError:
            raise
        except (*MISSING, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise not_ours(path) from error


def is_ours(path: Path) -> bool:
    """Return whether a folder is a store that tilenet wrote and that can be read, and not a link to one."""
    try:
        read_root(path)
    except (OutputError, EnvironmentFault):
        return False
    return not path.is_symlink() and not (path / OWN).is_symlink()


def lacking_parts(info: Mapping[str, Any]) -> list[str]:
    """Return which parts of what every mask says of how it was made were changed or removed."""
    return [part for part in ("record", "image", "model", "card", "scaling") if not isinstance(info.get(part), dict)]


def not_there(path: Path) -> OutputNotFound:
    """Return the error to raise for a path at which no mask is, or not yet."""
    image = path.absolute().parent.parent  # of labels; what a run with objects found lies beside it then
    for making in (path.with_name(path.name + MAKING), image.parent / f"{image.name}.{path.name}{MAKING}"):
        if making.is_dir():
            begun = f"{making.name} belongs to a run with --objects"
            return OutputNotFound(f"{path}: does not exist yet: {begun}. Run it, or its shares, again with --resume")
    return OutputNotFound(f"{path}: no such mask. Check the path, or make it with tilenet segment")


def layout_of(path: Path, own: dict[str, Any]) -> Layout:
    """Take format and layout out of what a mask says of itself, and return the layout.

    `OutputError` if another version of tilenet wrote it; `KeyError`, `TypeError`, `ValueError` or `AttributeError` if
    it was not tilenet.
    """
    written, layout = own.pop("format"), own.pop("layout")
    if written != FORMAT:
        raise OutputError(
            f"{path}: has store format {written}, but this version of tilenet reads format {FORMAT}. Use the tilenet "
            f"that wrote it"
        )
    if unknown := set(layout.keys()) - {field.name for field in fields(Layout)}:
        raise OutputError(
            f"{path}: was written by tilenet {own.get('version')}, which stores {min(unknown)!r} of it, unknown to "
            f"this version. Use the tilenet that wrote it"
        )
    return Layout.from_json(layout)


def _attributes(path: Path) -> Any:
    """Return the attributes of a group of either zarr format."""
    v3, v2 = (path / DOCUMENTS[zarr_format][0] for zarr_format in (3, 2))
    return json.loads(v3.read_bytes())["attributes"] if v3.exists() else json.loads(v2.read_bytes())


def _group(layout: Layout, image: dict[str, Any], more: dict[str, Any]) -> bytes:
    """Return the document of a group: in zarr format 2 its attributes alone, in format 3 a document that holds them."""
    if layout.zarr_format == 2:
        return _json({**image, **more})
    return _json({"zarr_format": 3, "node_type": "group", "attributes": {"ome": image, **more}})


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, allow_nan=False).encode()


def _label_image(layout: Layout, paths: list[str]) -> dict[str, Any]:
    values = sorted(layout.labels)
    names = [{"label-value": v, "name": layout.labels[v][0]} for v in values]
    colors = [{"label-value": v, "rgba": list(layout.labels[v][1] or ())} for v in values]
    # Viewers hide labels that a list of colours leaves out, so it is written only if it has all of them.
    listed = bool(colors) and all(color["rgba"] for color in colors)
    label: dict[str, Any] = {"version": OME[layout.zarr_format]}
    label |= {"properties": names} if names else {}
    label |= {"colors": colors} if listed else {}
    label |= {"source": {"image": layout.source}} if layout.source else {}
    return _validated(layout, "LabelImage", _image(layout, layout.axes, paths) | {"image-label": label})


def _probability_image(layout: Layout) -> dict[str, Any]:
    axes = "".join(layout.with_class(tuple(layout.axes), "c"))
    return _validated(layout, "Image", _image(layout, axes, ["0"]))


def _validated(layout: Layout, kind: str, image: dict[str, Any]) -> dict[str, Any]:
    from yaozarrs import v04, v05

    getattr(v05 if layout.zarr_format == 3 else v04, kind).model_validate(image)
    return image


def _tissue_documents(layout: Layout, found: TissueMap) -> dict[str, bytes]:
    """Return the files of the tissue map, a label image of its own for viewers: a group with one array of one shard."""
    shape = found.cells.shape
    document = array_document(ArrayLayout(TISSUE, "yx", shape, shape, shape, "uint8"), layout.zarr_format)
    group = _group(layout, _tissue_image(layout, found), {})
    documents = {f"tissue/{layout.root}": group, layout.document(TISSUE): document}
    data = codec.encode(document, Box.of_shape(shape), found.cells.astype(np.uint8))
    return documents | ({f"{layout.folder(TISSUE)}/0/0": data} if data else {})


def _tissue_image(layout: Layout, found: TissueMap) -> dict[str, Any]:
    """Return the metadata of the tissue map; the translation is the centre of its first cell, many pixels wide."""
    frame, shape = layout.frame or _micrometres(layout), found.cells.shape
    axes, sizes, firsts = (frame[name][-2:] for name in ("axes", "scale", "translation"))
    sides = [n / cells for n, cells in zip(found.covers, shape, strict=True)]
    shifts = [shift + (side - 1) / 2 for shift, side in zip(layout.shift[-2:] or (0.0, 0.0), sides, strict=True)]
    placed = {
        "axes": axes,
        "scale": [side * size for side, size in zip(sides, sizes, strict=True)],
        "translation": [first + shift * size for first, shift, size in zip(firsts, shifts, sizes, strict=True)],
    }
    name, labels = f"{layout.name} tissue", {1: ("tissue", (*TISSUE_COLOR, 255))}
    plane = Layout("yx", shape, shape, (None, None), name, labels, zarr_format=layout.zarr_format, frame=placed)
    return _label_image(plane, ["0"])


def _image(layout: Layout, axes: str, paths: list[str]) -> dict[str, Any]:
    """Return the metadata of a multiscale image, with the version where that version of OME-Zarr has it."""
    described, version = _multiscale(layout, axes, paths), {"version": OME[layout.zarr_format]}
    if layout.zarr_format == 2:
        return {"multiscales": [version | described]}
    return version | {"multiscales": [described]}


def placement(layout: Layout) -> tuple[list[float], list[float]]:
    """Return the size of a mask's pixels along its axes, and where the centre of its first pixel lies.

    In the units of the image, if that is an OME-Zarr image, else in micrometres; axes of unknown pixel size in pixels.
    """
    frame, none = layout.frame or _micrometres(layout), (0.0,) * len(layout.axes)
    along = zip(frame["translation"], frame["scale"], layout.origin or none, layout.shift or none, strict=True)
    return list(frame["scale"]), [first + size * (start + shift) for first, size, start, shift in along]


def _multiscale(layout: Layout, axes: str, paths: list[str]) -> dict[str, Any]:
    described = dict(zip(layout.axes, (layout.frame or _micrometres(layout))["axes"], strict=True))
    described["c"] = {"name": "c", "type": "channel"}
    scale, first = (dict(zip(layout.axes, numbers, strict=True)) for numbers in placement(layout))
    # Pixel 0 of every level is copied from pixel 0 of the finest level, so all levels have the same translation.
    begin = [first.get(axis, 0.0) for axis in axes]
    placed = [{"type": "translation", "translation": begin}] if layout.origin or any(begin) else []
    datasets = []
    for level, path in enumerate(paths):
        sides = [scale.get(axis, 1.0) * (2**level if axis in "yx" else 1) for axis in axes]
        datasets.append({"path": path, "coordinateTransformations": [{"type": "scale", "scale": sides}, *placed]})
    image = {"name": layout.name, "axes": [described[axis] for axis in axes], "datasets": datasets}
    return image | ({"type": "nearest"} if len(paths) > 1 else {})


def _micrometres(layout: Layout) -> dict[str, Any]:
    """Return the frame of a mask that lies in no image: micrometres, where pixel sizes are known."""
    return {
        "axes": [_axis(axis, size) for axis, size in zip(layout.axes, layout.pixel_size, strict=True)],
        "scale": [float(size or 1) for size in layout.pixel_size],
        "translation": [0.0] * len(layout.axes),
    }


def _axis(name: str, pixel_size: float | None) -> dict[str, str]:
    if name == "t":
        return {"name": name, "type": "time"}
    return {"name": name, "type": "space"} | ({"unit": "micrometer"} if pixel_size else {})
