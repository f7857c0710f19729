"""Whether the file of an image was written since a run on it began.

Images are recognised by their sizes and metadata, without reading their pixels, so that other pixels in the same places
are not noticed. When its file was last written tells of them. A copy of a file may have any such time: it is compared
only at the path where the run began, and only a warning follows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from tilenet.address import file_of, is_address
from tilenet.errors import ANEW
from tilenet.masks.label_target import LABELS
from tilenet.store import Store

# The event in a store's log that tells when the image was last written.
EVENT = "image"
# Of a folder with more files than this, such as a zarr of small chunks, no time is known: to ask all takes too long.
MOST_FILES = 10_000
LOG = logging.getLogger("tilenet")


def note_image(store: Store, image: str) -> None:
    """Note in the log of a new store when its image was last written."""
    if (written := last_written(image)) is not None:
        store.log(EVENT, path=_path(image), written=written)


def remark_written_since(store: Store, image: str) -> None:
    """Say in a warning if the image of a store that is to be continued was written since the store was begun."""
    then, now = _noted(store, _path(image)), last_written(image)
    if then is not None and now is not None and then != now:
        LOG.warning(
            "%s: was written again since the run on it began (on %s; then it was of %s). If its pixels have changed, "
            "the blocks that are done are of the old ones: %s",
            *(image, _said(now), _said(then), ANEW),
        )


def last_written(image: str) -> int | None:
    """Return when the file of an image, or the newest file of its folder, was written, in nanoseconds.

    None for arrays, for addresses, and for a folder of more than `MOST_FILES` files. Labels in an image do not count,
    because a run may write them; nor do the other files of an MRXS slide or of a DICOM series, which lie beside the one
    that is named.
    """
    path = file_of(image)
    if is_address(image) or not path.exists():
        return None
    with suppress(OSError):
        if not path.is_dir():
            return path.stat().st_mtime_ns
        times = list(islice(_times(path), MOST_FILES + 1))
        return max(times) if 0 < len(times) <= MOST_FILES else None
    return None


def _times(folder: Path) -> Iterator[int]:
    for where, folders, files in os.walk(folder):
        if LABELS in folders and Path(where) == folder:
            folders.remove(LABELS)
        for name in files:
            yield Path(where, name).stat().st_mtime_ns


def _noted(store: Store, path: str) -> int | None:
    """Return the time that was noted for an image at a path; None if there is none."""
    found: Any = None
    for event in store.events():
        if event.get("event") == EVENT and event.get("path") == path:
            found = event.get("written")
    return found if isinstance(found, int) else None


def _path(image: str) -> str:
    return str(Path(image).absolute())


def _said(nanoseconds: int) -> str:
    """Return a time as text for people; in seconds where it has no date of four digits, as after a clock's fault.

    >>> _said(1764499219 * 10**9), _said(3 * 10**20)
    ('2025-11-30 10:40:19 UTC', '300000000000 s after 1970')
    """
    seconds = nanoseconds // 10**9
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError):
        return f"{seconds} s after 1970"
