"""The images of a batch, with their names and options, from paths, patterns and lists."""

from __future__ import annotations

import csv
import glob
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilenet.address import file_of, is_address, last_name, shown
from tilenet.card import parse_scaling
from tilenet.drawn_regions import Drawn, read_regions
from tilenet.errors import SettingsError, refuse_special_file
from tilenet.export.intensities import Intensities
from tilenet.jobs.options import Options, parse_channels, parse_sides, parse_tissue
from tilenet.models.saved import packaged_models
from tilenet.pictures.files import OVERVIEW, is_picture_of_ours
from tilenet.readers.calibrated import parse_pixel_size
from tilenet.sheets import SEPARATORS, as_settings_errors, cells, name_columns, rows_of
from tilenet.store import is_ours
from tilenet.tissue.regions import names_regions

LOG = logging.getLogger("tilenet")
# Endings that are removed as well as the last one: slide.ome.tif is the slide "slide".
INNER = (".ome",)
# Endings of lists.
LISTS = (".csv", ".txt")
# Columns of a list that are options, and the functions that parse their text.
COLUMNS: Mapping[str, Callable[[str], Any]] = {
    "level": int,
    "mpp": float,
    "axes": str,
    "pixel_size": parse_pixel_size,
    "channels": parse_channels,
    "tile": parse_sides,
    "batch": int,
    "threads": int,
    "scaling": parse_scaling,
    "threshold": float,
    "least_depth": float,
    "link": float,
    "output": str,
    "missing": str,
    "tissue": parse_tissue,
}


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
        LOG.warning("%s: was written by tilenet%s, and is no image of the batch", written[0], others)
    return kept


def _is_written(image: str, out: str | Path | None) -> bool:
    """Return whether an image is an overview that tilenet drew, or the folder of the batch, or in a mask in that."""
    path = Path(os.path.abspath(image))  # noqa: PTH100 - follows no links
    if path.name.endswith(OVERVIEW) and is_picture_of_ours(path):
        return True
    if out is None or is_address(image):
        return False
    folder = Path(os.path.abspath(out))  # noqa: PTH100
    inside = [parent for parent in (path, *path.parents) if folder in parent.parents]
    return path == folder or any(map(is_ours, inside))


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
        yield from _not_none(path, _read_csv(path, plain))
    elif path.suffix.lower() == ".txt" and path.is_file():
        lines = (line.strip() for line in _text(path).splitlines())
        yield from _not_none(
            path, (_item(_relative_to(path, line), plain) for line in lines if line and not line.startswith("#"))
        )
    elif not path.exists() and glob.has_magic(image):
        found = _matches(image) or _matches_inside(path)
        if not found:
            raise SettingsError(f"{image}: no image matches. Check the pattern")
        yield from (_item(match, plain) for match in found)
    else:
        yield _item(image, plain)


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute


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


def _read_csv(path: Path, plain: BatchItem) -> Iterator[BatchItem]:
    rows, mark = _rows(path)
    for where, row in _filled(rows, path):
        if "" in row or not row["image"].strip():
            raise SettingsError(f"{where} has no image, or more values than columns. Put values with {mark} in quotes")
        said = {column: value.strip() for column, value in row.items() if value.strip()}
        _check_decimal_mark(said.get("pixel_size", ""), mark, where)
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
            options = replace(plain.options, **_parsed(said))
        except SettingsError as error:
            raise SettingsError(f"{where}: {error}") from error
        yield replace(item, name=name, model=model, within=within, positive=positive, options=options)


def _filled(rows: csv.DictReader[str], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row of a list is, and the row, except for rows of empty cells, which spreadsheets append.

    A quote that is not closed is refused, because all lines below it would be taken for one value.
    """
    with as_settings_errors(rows, path):
        for row in rows:
            values = cells(row)
            if opened := [value for value in values if "\n" in value]:
                raise SettingsError(f"{path}: the quote before {opened[0].splitlines()[0]!r} is not closed in its line")
            if any(value.strip() for value in values):
                yield f"{path}: line {rows.line_num}", row


def _rows(path: Path) -> tuple[csv.DictReader[str], str]:
    """Return the rows of a list, by the names of its columns in small letters, and what separates their values."""
    rows, mark = rows_of(io.StringIO(_text(path)))
    known = ("image", "name", "model", "within", "positive", *COLUMNS)
    with as_settings_errors(rows, path):
        header = name_columns(rows)
    if "image" not in header:
        raise SettingsError(f"{path}: has no column image. Its first line must name the columns")
    if unknown := [column for column in header if column not in known]:
        raise SettingsError(f"{path}: column {unknown[0]!r} is none of {', '.join(known)}")
    if twice := [column for column in known if header.count(column) > 1]:
        raise SettingsError(f"{path}: has two columns {twice[0]}. Remove one")
    return rows, mark


def _check_decimal_mark(size: str, mark: str, where: str) -> None:
    """Refuse a pixel size of whole numbers and one comma, in a list whose marks leave room for a decimal comma."""
    if mark != SEPARATORS[","] and size.count(",") == 1 and "." not in size:
        raise SettingsError(f"{where}: pixel_size {size!r} may be one number or two. Write points: 1.5, or 1.0,5.0")


def _check_name(name: str, where: str, remedy: str) -> None:
    if not name or Path(name).name != name or name.startswith("."):
        raise SettingsError(f"{where}: {name!r} is not a valid, visible file name. {remedy}")


def _parsed(said: Mapping[str, str]) -> dict[str, Any]:
    options = {}
    for column, text in said.items():
        try:
            options[column] = COLUMNS[column](text)
        except SettingsError:
            raise
        except ValueError as error:
            comma = COLUMNS[column] is float and re.fullmatch(r"\d*,\d+", text)
            remedy = f"Write {text.replace(',', '.')}, with a point" if comma else "See tilenet segment --help"
            raise SettingsError(f"{column} cannot be {text!r}. {remedy}") from error
    return options


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not text in UTF-8. Save it so (in Excel: CSV UTF-8)") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}). Check the file") from error
