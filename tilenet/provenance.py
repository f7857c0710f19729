"""Whether an image is the one that a mask was made from: a moved file is, another one is not."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tilenet.address import shown
from tilenet.errors import ImageError, OutputMismatch, SettingsError, TilenetError
from tilenet.readers import open_image
from tilenet.readers.image import Image
from tilenet.store import Mask
from tilenet.tiff_mask import TiffMask

DIGITS = 12


def open_as_segmented(source: Any, mask: Mask | TiffMask) -> Image:
    """Open what may be the image of a mask, at the level and with the axes that were segmented.

    Raises
    ------
    OutputMismatch
        If it has no such axes or level: it is another image.
    ImageError
        If it is no image, whatever its axes.
    """
    record = mask.info["record"]
    level, axes, missing = record.get("level") or 0, record.get("axes"), record.get("missing") or "error"
    try:
        return open_image(source, level=level, axes=axes, missing=missing)
    except (ImageError, SettingsError) as error:
        if str(error) == _fault(source, missing):
            raise
        name = shown(os.fspath(source)) if isinstance(source, str | os.PathLike) else "this"
        raise OutputMismatch(
            f"{name}: is not the image of {mask.path}: it has no level {level} of axes {axes}. "
            f"Give the image that was segmented"
        ) from error


def closing(image: Image, source: Any) -> AbstractContextManager[Image]:
    """Return what closes an image at its end, unless it was opened by the caller, as the source of itself."""
    return nullcontext(image) if isinstance(source, Image) else image


def difference(image: Image, mask: Mask | TiffMask) -> str:
    """Return how an image differs from the one that a mask was made from; nothing where it is the same."""
    recorded, here = mask.info["image"], json.loads(json.dumps(image.identity()))
    for name in sorted({*recorded, *here} - {"path"}, key=lambda name: (name != "kind", name)):
        old, new = recorded.get(name), here.get(name)
        if old != new:
            return f"{name}: {_short(old)} there, {_short(new)} here"
    return ""


def refuse_another(image: Image, mask: Mask | TiffMask) -> None:
    """Raise `OutputMismatch` for another image than the one that a mask was made from."""
    if differs := difference(image, mask):
        raise OutputMismatch(
            f"{image.name}: is not the image that {mask.path} was made from ({differs}). "
            f"Give the image that was segmented"
        )


def check_image(source: Any, mask: Mask | TiffMask) -> None:
    """Raise `OutputMismatch` for what is not the image that a mask was made from."""
    with closing(open_as_segmented(source, mask), source) as image:
        refuse_another(image, mask)


def remark(image: Image, mask: Mask | TiffMask) -> str:
    """Return what people ought to hear where an image may have been taken for another; mostly nothing.

    Copies in another format are legitimate, and what an array was read from, nobody knows.
    """
    made_from = mask.info["image"]
    differs = "" if made_from.get("kind", "").endswith(" array") else difference(image, mask)
    return differs and (
        f"{image.name}: is not the image that {mask.path} was made from, {made_from['path']} ({differs}): "
        f"look whether they fit"
    )


def _fault(source: Any, missing: str) -> str:
    """Return why an image cannot be opened as it is, if it cannot."""
    try:
        with closing(open_image(source, missing=missing), source):
            return ""
    except TilenetError as error:
        return str(error)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:DIGITS] if len(text) == 64 else text  # of a checksum, enough to tell
