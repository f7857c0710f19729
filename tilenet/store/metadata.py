"""The ``zarr.json`` documents of a store, made from the layout and checked by yaozarrs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilenet.errors import OutputError, OutputNotFound
from tilenet.store.layout import ArrayLayout, Layout

FORMAT = 1
ZSTD_LEVEL = 3
ROOT = "zarr.json"
OWN = ".tilenet"


def root_document(layout: Layout, info: Mapping[str, Any], *, complete: bool) -> bytes:
    """Return OUT/zarr.json: the label image's metadata, and how it was made."""
    own = {**info, "format": FORMAT, "layout": layout.to_json(), "complete": complete}
    return _group({"ome": _label_image(layout), "tilenet": own})


def fixed_documents(layout: Layout) -> dict[str, bytes]:
    """Return every other ``zarr.json`` by its path; they follow from the layout alone."""
    documents = {f"{path}/zarr.json": array_document(array) for path, array in layout.arrays.items()}
    if layout.classes:
        documents["probabilities/zarr.json"] = _group({"ome": _probability_image(layout)})
    return documents


def array_document(array: ArrayLayout) -> bytes:
    """Return an array's ``zarr.json``: sharded, zstd with a checksum, background 0.

    Without its checksum, zstd gives a flipped byte back as if it were right.
    """
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(content),
        shape=array.shape,
        shards=array.block,
        chunks=array.chunk,
        dtype=array.dtype,
        fill_value=0,
        compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True)],
        dimension_names=list(array.axes),
        zarr_format=3,
    )
    document: bytes = content["zarr.json"].to_bytes()
    return document


def read_root(path: Path) -> tuple[Layout, dict[str, Any], bool]:
    """Return layout, info and completeness of a store.

    Raises
    ------
    OutputNotFound
        If there is nothing.
    OutputError
        If tilenet did not write it, or it cannot be read.
    """
    if not path.exists():
        raise OutputNotFound(f"{path}: no such mask. Check the path, or make it with tilenet segment")
    foreign = OutputError(f"{path}: is not a mask that tilenet wrote. Choose another path")
    try:
        own = dict(json.loads((path / ROOT).read_bytes())["attributes"]["tilenet"])
        written, layout, complete = own.pop("format"), own.pop("layout"), own.pop("complete")
        if not (path / OWN).is_dir():
            raise foreign
        if written != FORMAT:
            raise OutputError(
                f"{path}: has format {written}, this tilenet knows {FORMAT}. Use the tilenet that wrote it"
            )
        return Layout.from_json(layout), own, complete is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OutputError):
            raise
        raise foreign from error


def _group(attributes: dict[str, Any]) -> bytes:
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(document, indent=2, allow_nan=False).encode()


def _label_image(layout: Layout) -> dict[str, Any]:
    from yaozarrs import v05

    values = sorted(layout.labels)
    names = [{"label-value": v, "name": layout.labels[v][0]} for v in values]
    colors = [{"label-value": v, "rgba": list(layout.labels[v][1] or ())} for v in values]
    # Viewers hide the labels that a list of colours leaves out.
    listed = bool(colors) and all(color["rgba"] for color in colors)
    label: dict[str, Any] = {"version": "0.5"}
    label |= {"properties": names} if names else {}
    label |= {"colors": colors} if listed else {}
    paths = [str(i) for i in range(len(layout.levels))]
    image = {"version": "0.5", "multiscales": [_multiscale(layout, layout.axes, paths)], "image-label": label}
    v05.LabelImage.model_validate(image)
    return image


def _probability_image(layout: Layout) -> dict[str, Any]:
    from yaozarrs import v05

    axes = "".join(layout.with_class(tuple(layout.axes), "c"))
    image = {"version": "0.5", "multiscales": [_multiscale(layout, axes, ["0"])]}
    v05.Image.model_validate(image)
    return image


def _multiscale(layout: Layout, axes: str, paths: list[str]) -> dict[str, Any]:
    sizes = dict(zip(layout.axes, layout.pixel_size, strict=True))
    starts = dict(zip(layout.axes, layout.origin, strict=False))
    # Pixel 0 of every level is taken from pixel 0 of the finest: they begin at one place.
    translation = [float(sizes.get(axis) or 1) * starts.get(axis, 0) for axis in axes]
    placed = [{"type": "translation", "translation": translation}] if layout.origin else []
    datasets = []
    for level, path in enumerate(paths):
        scale = [float(sizes.get(axis) or 1) * (2**level if axis in "yx" else 1) for axis in axes]
        datasets.append({"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}, *placed]})
    described = {"name": layout.name, "axes": [_axis(axis, sizes.get(axis)) for axis in axes], "datasets": datasets}
    return described | ({"type": "nearest"} if len(paths) > 1 else {})


def _axis(name: str, pixel_size: float | None) -> dict[str, str]:
    if name in "tc":
        return {"name": name, "type": {"t": "time", "c": "channel"}[name]}
    return {"name": name, "type": "space"} | ({"unit": "micrometer"} if pixel_size else {})
