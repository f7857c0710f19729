"""Files that an export or a picture must not replace: the mask, its image, and any file that tilenet did not write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from tilenet.address import check_local, file_of, is_address, leads_to_itself
from tilenet.errors import OutputExists
from tilenet.readers.image import Image
from tilenet.store.destination import refuse_inside_file, refuse_inside_mask


def check_file_place(
    out: Path, *, replace: bool, is_ours: Callable[[Path], bool], kind: str, image: Any = None, mask: Any = None
) -> None:
    """Raise an error if a file of a `kind` must not be written at a path; writes nothing.

    A file that is there may be replaced only with `replace`, and if it `is_ours`: tilenet wrote it. `image` and `mask`
    must not be replaced, nor written into; they are given as for `paths_of`. `OutputError` or `OutputExists` if the
    path is remote, or not free, or inside any mask; `EnvironmentFault` if its folder is a file.
    """
    check_local(out)
    refuse_protected(out, image=image, mask=mask)
    refuse_inside_mask(out)
    refuse_inside_file(out)
    if out.is_symlink():
        other = "another path" if leads_to_itself(out) else f"{out.resolve()} instead"
        raise OutputExists(f"{out}: is a symbolic link, which is not replaced. Give {other}")
    if not out.exists():
        return
    if not out.is_file() or not is_ours(out):
        raise OutputExists(f"{out}: exists, and is not {kind} that tilenet wrote, so it stays. Choose another path")
    if not replace:
        raise OutputExists(f"{out}: exists already. Replace it (--overwrite), or choose another path")


def refuse_protected(out: Path, **protected: Any) -> None:
    """Raise `OutputExists` if a file would replace, or lie inside, something protected, as for `paths_of`."""
    target = out.resolve()
    for what, source in protected.items():
        for path in paths_of(source):
            if target == path or path in target.parents:
                raise OutputExists(f"{out}: is the {what} {path}, or inside it. Choose another path")


def paths_of(source: Any) -> Iterator[Path]:
    """Yield the local files that an image or a mask is read from, given by path, open, or as a zarr or dask array."""
    opened = source.source if isinstance(source, Image) else source
    store = getattr(opened, "store", None)  # of a zarr array; in local files it has a root or, through fsspec, a path
    if root := getattr(store, "root", None) or getattr(store, "path", None):
        yield Path(root, opened.path).resolve()
    elif hasattr(opened, "dask"):
        layers = (layer for layer in opened.dask.layers.values() if layer.is_materialized())
        for value in (value for layer in layers for value in layer.values()):
            yield from paths_of(value)
    elif isinstance(opened, str | PathLike) and (name := fspath(opened)) and not is_address(name):
        yield file_of(name).resolve()
