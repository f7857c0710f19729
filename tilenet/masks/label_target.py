"""Labels inside an OME-Zarr image: where they are stored, and how they are aligned with the image.

``IMAGE/labels/NAME`` is a mask like any other, in the image's own zarr format. Its pixels are those of
one of the image's levels (resampled, or a part of them). Its scale and translation are given in the
image's own axes and units, so that a viewer can overlay both without knowing how the mask was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tilenet.address import check_local
from tilenet.errors import ImageError, ImageNotFound, OutputError, OutputExists, OutputMismatch
from tilenet.readers import open_image
from tilenet.readers.coordinates import CoordinateTransform, along, frame_of, scaled
from tilenet.readers.zarr_local import LocalFolder
from tilenet.readers.zarr_metadata import Node, multiscales_of, read_node, what_is_inside
from tilenet.resolution import Factor
from tilenet.store.label_list import read_list
from tilenet.store.metadata import OME, is_ours

LABELS, SOURCE = "labels", "../../"


@dataclass(frozen=True)
class LabelTarget:
    """An OME-Zarr image that labels go into."""

    # Of the image's group.
    path: Path
    # 2 (OME-Zarr 0.4) or 3 (OME-Zarr 0.5).
    zarr_format: Literal[2, 3]
    # Axes of the image without ``c``.
    axes: str
    # Shape of each level along `axes`.
    shapes: tuple[tuple[int, ...], ...]
    # For each level, the ``axes``, ``scale`` and ``translation`` in the image's metadata, along `axes`.
    frames: tuple[CoordinateTransform, ...]

    def place(self, name: str) -> Path:
        """Return the path at which labels of the given name are stored.

        `OutputError` if the name is not valid, `OutputExists` if the image has, or lists, labels of that name that
        tilenet did not write.
        """
        if not name.isprintable() or "/" in name or "\\" in name or not name.strip() or name.startswith((".", "__")):
            raise OutputError(f"{self.path}: {name!r} is not a valid name of labels. Give another with --name: nuclei")
        path = self.path / LABELS / name
        there = path.exists() or path.is_symlink()
        if (there or name in read_list(path.parent, self.zarr_format)) and not (there and is_ours(path)):
            raise OutputExists(f"{path}: the image has labels of that name, not by tilenet. Give another with --name")
        return path

    def layout_of(self, axes: str, shape: Sequence[int], *, level: int, factor: Factor) -> dict[str, Any]:
        """Return the entries that the layout of a mask has in addition because it lies inside the image.

        `axes`, `shape` and `level` are those of the stored pixels that are segmented, without ``c``, in the image that
        is read; `factor` is how many of them one pixel of the mask covers along y and x. `OutputMismatch` if no level
        of the image has these axes and this shape.
        """
        same = [k for k, found in enumerate(self.shapes) if axes == self.axes and tuple(shape) == found]
        if not same:
            raise OutputMismatch(
                f"{self.path}: has levels of {self.axes} {', '.join(map(str, self.shapes))}, and {axes} {tuple(shape)} "
                f"is segmented. Labels lie on one of the image's levels: segment the image itself"
            )
        frame = self.frames[level if level in same else same[0]]
        by_axis = dict(zip("yx", map(float, factor), strict=True))
        placed = {"source": SOURCE, "frame": scaled(frame, [by_axis.get(axis, 1.0) for axis in axes])}
        return placed | {"zarr_format": self.zarr_format, "n_levels": len(self.shapes)}


def open_target(path: str | Path) -> LabelTarget:
    """Read the metadata of an OME-Zarr image that labels are to be stored in; nothing is written.

    `ImageNotFound` if there is no such folder, `ImageError` if it is not an image of OME-Zarr 0.4 or 0.5.
    """
    check_local(path)
    group = Path(path).absolute()
    if not group.is_dir():
        raise ImageNotFound(f"{path}: is no folder, and labels go into the folder of an OME-Zarr image. Check the path")
    node = read_node(LocalFolder(group))
    about = multiscales_of(node) if node and not node.is_array else None
    if node is None or about is None:
        what = what_is_inside(node) if node and not node.is_array else "Use --out for a mask of its own"
        raise ImageError(f"{path}: is no OME-Zarr image that labels could go into. {what}")
    zarr_format: Literal[2, 3] = 3 if (group / "zarr.json").is_file() else 2
    ome = node.attributes.get("ome", node.attributes) if zarr_format == 3 else node.attributes
    _check_kind(ome, zarr_format, path)
    with open_image(group) as image:
        axes = image.box_axes
        places = [image.axes.index(axis) for axis in axes]
        shapes = tuple(tuple(level.shape[i] for i in places) for level in image.levels)
    frames = tuple(_frame(ome["multiscales"][0], k, about.letters, axes, node) for k in range(len(shapes)))
    return LabelTarget(group, zarr_format, axes, shapes, frames)


def _check_kind(ome: Mapping[str, Any], zarr_format: Literal[2, 3], path: str | Path) -> None:
    version = str((ome if zarr_format == 3 else ome["multiscales"][0]).get("version"))
    if version != OME[zarr_format]:  # both describe axes and scales in the same way
        raise ImageError(
            f"{path}: says that it is OME-Zarr {version} in zarr format {zarr_format}; labels go into 0.4 (format 2) "
            f"and 0.5 (format 3). Use --out for a mask of its own"
        )
    if "image-label" in ome:
        raise ImageError(f"{path}: holds labels itself. Give the image that they lie in")


def _frame(image: Mapping[str, Any], level: int, letters: Sequence[str], axes: str, node: Node) -> CoordinateTransform:
    try:
        return along(frame_of(image, level), [letters.index(axis) for axis in axes], axes)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ImageError(
            f"{node.folder}: does not say where its level {level} lies in a way that is known ({error}). "
            f"Use --out for a mask of its own"
        ) from error
