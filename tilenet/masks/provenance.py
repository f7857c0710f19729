"""Check whether an image is the one that a mask was made from: a moved file counts, a different image does not."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tilenet.address import file_of, is_address, shown
from tilenet.errors import ImageError, OutputMismatch, SettingsError, TilenetError
from tilenet.masks.label_target import LABELS
from tilenet.readers import open_image
from tilenet.readers.guards import Missing
from tilenet.readers.image import Image, closing
from tilenet.resolution import Resolution, recorded
from tilenet.store import AnyMask

DIGITS = 12


def open_as_segmented(source: Any, mask: AnyMask) -> Image:
    """Open the presumed image of a mask, at the level, with the axes and with the pixel size that were segmented.

    `OutputMismatch` if the image has no such axes or level, and so is a different image; `ImageError` if the source
    cannot be opened as an image at all, whatever its level and axes.
    """
    record = mask.info["record"]
    level, axes = record.get("level") or 0, record.get("axes")
    missing: Missing = record.get("missing") or "error"
    named = None if isinstance(source, Image) else axes  # an open copy may have its channels elsewhere
    try:
        return open_image(source, level=level, axes=named, pixel_size=record.get("pixel_size"), missing=missing)
    except (ImageError, SettingsError) as error:
        if str(error) == _fault(source, missing):
            raise
        name = shown(os.fspath(source)) if isinstance(source, str | os.PathLike) else "this"
        raise OutputMismatch(
            f"{name}: is not the image of {mask.path}: it has no level {level} of axes {axes}. "
            f"Give the image that was segmented"
        ) from error


def image_of(mask: AnyMask, image: Any, why: str) -> AbstractContextManager[Image]:
    """Open the image that was named, or else the one that a mask was made from; `why` it is needed ends no sentence."""
    source = source_of(mask) if image is None else image
    try:
        return closing(open_as_segmented(source, mask), source)
    except ImageError as error:
        if image is not None:
            raise
        raise OutputMismatch(f"{mask.path}: {why} ({error}). {how_to_name_image(mask)}") from error


def source_of(mask: AnyMask) -> str | Path:
    """Return where the image of a mask is: where it was, or, of labels that moved with it, the image they lie in."""
    path: str = mask.info["image"]["path"]
    place = Path(mask.path).absolute().parent
    if place.name != LABELS or is_address(path) or file_of(path).exists():
        return path
    try:
        check_image(place.parent, mask)
    except TilenetError:  # labels of a file elsewhere
        return path
    return place.parent


def resolution_of(mask: AnyMask) -> Resolution:
    """Return the level that a mask was made from, and by which factor it was resampled."""
    record = mask.info["record"]
    return recorded(record["level"], record["factor"], record["mpp"])


def difference(image: Image, mask: AnyMask) -> str:
    """Return how an image differs from the one that a mask was made from, or an empty string if it does not."""
    made_from, here = mask.info["image"], json.loads(json.dumps(image.identity()))
    for name in sorted({*made_from, *here} - {"path"}, key=lambda name: (name != "kind", name)):
        old, new = made_from.get(name), here.get(name)
        if old != new:
            return f"{name}: {_short(old)} there, {_short(new)} here"
    return ""


def refuse_another(image: Image, mask: AnyMask) -> None:
    """Raise `OutputMismatch` if an open image is not the one that a mask was made from."""
    if differs := difference(image, mask):
        raise OutputMismatch(
            f"{image.name}: is not the image that {mask.path} was made from ({differs}). "
            f"Give the image that was segmented"
        )


def check_image(source: Any, mask: AnyMask) -> None:
    """Open a source, and raise `OutputMismatch` if it is not the image that a mask was made from."""
    with closing(open_as_segmented(source, mask), source) as image:
        refuse_another(image, mask)


def remark(image: Image, mask: AnyMask) -> str:
    """Return a warning if an image may not be the one that a mask was made from, otherwise an empty string.

    This is no error, because copies in another format are legitimate. A mask made from an array never gives a warning:
    nobody knows which file the array was read from.
    """
    made_from = mask.info["image"]
    differs = "" if _was_array(mask) else difference(image, mask)
    return differs and (
        f"{image.name}: is not the image that {mask.path} was made from, {made_from['path']} ({differs}): "
        f"check that mask and image fit"
    )


def how_to_name_image(mask: AnyMask) -> str:
    """Return how to say where the image of a mask is that was not found, as a sentence of an error."""
    if _was_array(mask):
        return "An array is not kept: give it in Python, by image="
    return "If it has moved, name it by --image (in Python image=)"


def _was_array(mask: AnyMask) -> bool:
    return bool(mask.info["image"].get("kind", "").endswith(" array"))


def _fault(source: Any, missing: Missing) -> str:
    """Return why a source cannot be opened with its own level and axes, or an empty string if it can."""
    try:
        with closing(open_image(source, missing=missing), source):
            return ""
    except TilenetError as error:
        return str(error)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:DIGITS] if len(text) == 64 else text  # enough of a checksum to tell two apart
