"""The images of a batch, with their names and options, from paths, patterns and lists."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilenet.address import file_of, is_address, last_name, shown
from tilenet.batches.list_file import parsed_options, read_rows, text_of
from tilenet.drawn_regions import Drawn, read_regions
from tilenet.errors import SettingsError, refuse_special_file
from tilenet.export.intensities import Intensities
from tilenet.jobs.options import Options, parse_tissue
from tilenet.models.saved import packaged_models
from tilenet.pictures.files import OVERVIEW, is_picture_of_ours
from tilenet.readers.formats import DICOM_SUFFIX
from tilenet.readers.planes import LITTER
from tilenet.readers.zarr_metadata import has_documents
from tilenet.store import is_ours
from tilenet.store.metadata import MAKING
from tilenet.tissue.regions import names_regions

LOG = logging.getLogger("tilenet")
# Endings that are removed as well as the last one: slide.ome.tif is the slide "slide".
INNER = (".ome",)
# Endings of lists.
LISTS = (".csv", ".txt")
# Endings, which no image has, of what a batch writes into its folder beside masks and overviews.
RESULTS = (".csv", ".geojson", ".json", MAKING)


@dataclass(frozen=True)
class BatchItem:
    """One image of a batch."""

    # Name of its mask, without ending.
    name: str
    # Path or address.
    image: str
    model: Any
    # The options of the batch, replaced by its own where a list gives some.
    options: Options
    # Regions of the image to count in, from a file that a list names.
    within: tuple[Drawn, ...] = ()
    # Which objects are positive, as for `write_table`.
    positive: str | None = None


def read_image_list(
    images: Sequence[str | Path],
    *,
    model: Any,
    options: Options,
    positive: str | None = None,
    out: str | Path | None = None,
) -> list[BatchItem]:
    """Return an item for each image that paths, patterns and lists (ending in ``.txt`` or ``.csv``) name.

    What an earlier run of the batch wrote into its folder `out` is none of its images, nor is any overview.

    A list may give other models, options and rules for its images. A model in a list is a file relative to the list, if
    there is such a file. `SettingsError` if there are no images, if names collide, if several images would have the
    same drawn regions as tissue, or if a list has an invalid entry.
    """
    plain = BatchItem("", "", model, options, positive=positive)
    items = _without_written([item for image in images for item in _items_of(str(image), plain)], out)
    if not items:
        raise SettingsError("a batch needs an image at least. Give paths, patterns or lists")
    _refuse_shared_regions(items, options.tissue)
    first: dict[str, BatchItem] = {}
    for item in items:
        _check_name(item.name, shown(item.image), "Give a .csv list with a column name")
        # In a case-insensitive folder, one mask would silently replace the other.
        if (other := first.setdefault(item.name.casefold(), item)) is not item:
            if other.image == item.image and other.name == item.name:
                raise SettingsError(
                    f"{shown(item.image)}: is named twice. Name it once, or give a .csv list with a column name"
                )
            raise SettingsError(
                f"{shown(other.image)} and {shown(item.image)}: both would be {item.name}.zarr. "
                f"Give a .csv list with a column name"
            )
    return items


def _without_written(items: Sequence[BatchItem], out: str | Path | None) -> list[BatchItem]:
    """Leave out what an earlier run of the batch wrote, which patterns may match when the batch is run again."""
    kept, written = list[BatchItem](), list[str]()
    for item in items:
        if _is_written(item.image, out):
            written.append(item.image)
        else:
            kept.append(item)
    if written:
        others = f" (the first of {len(written)} such)" if len(written) > 1 else ""
        LOG.warning("%s: is taken for a result of tilenet%s, and is no image of the batch", written[0], others)
    return kept


def _is_written(image: str, out: str | Path | None) -> bool:
    """Return whether an image is an overview that tilenet drew, the folder of the batch, or a result in that."""
    path = Path(os.path.abspath(image))  # noqa: PTH100 - follows no links
    if path.name.endswith(OVERVIEW) and is_picture_of_ours(path):
        return True
    if out is None or is_address(image):
        return False
    folder = Path(os.path.abspath(out))  # noqa: PTH100
    if path == folder:
        # Also while it is empty: each share has to find the same images, whatever others have written.
        return not (has_documents(path) or any(path.glob(f"*{DICOM_SUFFIX}")))
    if path.parent == folder and path.suffix.lower() in RESULTS:
        return True
    return any(is_ours(parent) for parent in (path, *path.parents) if folder in parent.parents)


def _refuse_shared_regions(items: Sequence[BatchItem], tissue: Any) -> None:
    """Refuse regions that were drawn on one image as the tissue of several."""
    if names_regions(tissue) and (n := sum(item.options.tissue is tissue for item in items)) > 1:
        raise SettingsError(
            f"{tissue}: holds the regions of one image, and would be the tissue of {n}. Name those of each in a "
            f".csv list, in a column tissue"
        )


def _items_of(image: str, plain: BatchItem) -> Iterator[BatchItem]:
    path = Path(image)
    if not image:
        raise SettingsError("one of the images is an empty path. Give a path, a pattern or a list")
    if is_address(image):
        yield _item(image, plain)
        return
    if path.suffix.lower() in LISTS:
        refuse_special_file(path)
    if path.suffix.lower() in LISTS and not path.exists() and not glob.has_magic(image):
        raise SettingsError(f"{image}: no such list. Check its path")
    elif path.suffix.lower() == ".csv" and path.is_file():
        yield from _not_none(path, (_item_of_row(path, *row, plain) for row in read_rows(path)))
    elif path.suffix.lower() == ".txt" and path.is_file():
        lines = (line.strip() for line in text_of(path).splitlines())
        yield from _not_none(
            path, (_item(_relative_to(path, line), plain) for line in lines if line and not line.startswith("#"))
        )
    elif not path.exists() and glob.has_magic(image):
        # A name may have brackets, which in a pattern stand for one of several letters.
        found = _matches(image) or _matches_inside(path) or _matches(image.replace("[", "[[]"))
        if not found:
            raise SettingsError(f"{image}: no image matches. Check the pattern")
        yield from (_item(match, plain) for match in found)
    else:
        yield _item(image, plain)


def _matches(pattern: str) -> list[str]:
    found = glob.iglob(pattern, recursive=True)  # noqa: PTH207 - patterns may be absolute
    return sorted(path for path in found if Path(path).name.lower() not in LITTER)


def _matches_inside(pattern: Path) -> list[str]:
    """Return the datasets that a pattern of files names, such as ``stacks/*.h5/raw``."""
    for parent in pattern.parents:
        if files := [file for file in _matches(str(parent)) if Path(file).is_file()]:
            return [str(file / pattern.relative_to(parent)) for file in map(Path, files)]
    return []


def _not_none(path: Path, items: Iterator[BatchItem]) -> Iterator[BatchItem]:
    first = next(items, None)
    if first is None:
        raise SettingsError(f"{path}: names no image. Write one a line, or leave the list out")
    yield first
    yield from items


def _relative_to(list_: Path, path: str) -> str:
    """Return the path of an image or mask that a list names relative to itself; an address stays as it is."""
    return path if is_address(path) else str(list_.parent / path)


def _model(list_: Path, model: str) -> str:
    """Return a model that a list names: the path of a file relative to the list, or, without such a file, the text."""
    file = list_.parent / model
    return str(file) if model not in packaged_models() and file.is_file() else model


def _item(image: str, plain: BatchItem) -> BatchItem:
    # Of the datasets in files, the names of the files differ. `abspath` follows no links.
    name = Path(last_name(image if is_address(image) else os.path.abspath(file_of(image)))).stem  # noqa: PTH100
    for ending in INNER:
        name = name.removesuffix(ending)
    return replace(plain, name=name, image=image)


def _item_of_row(path: Path, where: str, said: dict[str, str], plain: BatchItem) -> BatchItem:
    """Return the item that a row of a list names, given what the row says."""
    item = _item(_relative_to(path, said.pop("image")), plain)
    name = said.pop("name", item.name)
    model = _model(path, said.pop("model")) if "model" in said else plain.model
    _check_name(name, where, "Choose another name")
    if parse_tissue(said.get("tissue", "auto")) is not True:
        said["tissue"] = _relative_to(path, said["tissue"])
    within = tuple(read_regions(_relative_to(path, said.pop("within")))) if "within" in said else ()
    positive = said.pop("positive", plain.positive)
    try:
        Intensities(positive=positive)
        options = replace(plain.options, **parsed_options(said))
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    return replace(item, name=name, model=model, within=within, positive=positive, options=options)


def _check_name(name: str, where: str, remedy: str) -> None:
    if not name or Path(name).name != name or name.startswith("."):
        raise SettingsError(f"{where}: {name!r} is not a valid, visible file name. {remedy}")
