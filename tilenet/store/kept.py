"""The files of a complete mask, as zarr reads them: what is missing or replaced by now is an error, no background."""

from __future__ import annotations

from asyncio import to_thread
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from tilenet.store.entries import NO_FILE, UNKNOWN
from tilenet.store.journal import Journal
from tilenet.store.layout import DOCUMENTS, PROBABILITIES, Layout
from tilenet.store.metadata import OWN

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


# Of a state of a mask: its first document, when that was written, and its size.
Stamp = tuple[str, int, int]


class Replaced(OSError):
    """Another mask took the place of an open one, or none is there any more."""


def stamp_of(mask: Path) -> Stamp | None:
    """Return what tells a mask from another that took its place: every run writes this document, as its last."""
    for root, _ in DOCUMENTS.values():
        try:
            status = (mask / root).stat()
        except OSError:
            continue
        return root, status.st_mtime_ns, status.st_size
    return None


class KeptFiles(LocalStore):
    """The folder of one array.

    Parameters
    ----------
    root, read_only
        As for zarr's own.
    mask : Path
        The store whose array it is.
    array : str
        Which of its arrays.
    layout : Layout
        Of all of them.
    stamp : tuple
        Of the mask when it was opened, see `stamp_of`.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        read_only: bool = True,
        mask: Path | None = None,
        array: str = "",
        layout: Layout | None = None,
        stamp: Stamp | None = None,
    ) -> None:
        super().__init__(root, read_only=read_only)
        self.mask, self.array, self.layout, self.stamp = mask, array, layout, stamp

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "journal"}

    @cached_property
    def journal(self) -> Journal:
        """What was written."""
        assert self.layout is not None and self.mask is not None
        journal = Journal(self.layout)
        journal.load(self.mask / OWN)
        return journal

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return what is there; `OSError` if there was more, `Replaced` if it is of another mask by now."""
        found = await super().get(key, prototype, byte_range)
        if self.mask is not None and (now := await to_thread(stamp_of, self.mask)) != self.stamp:
            raise Replaced("was written anew since it was opened. Open it again" if now else "is missing by now")
        if found is None and self._was_written(key):
            raise OSError(f"{self.root / key} is missing")
        return found

    def _was_written(self, key: str) -> bool:
        numbers = key.removeprefix("c/").split("/")
        if self.layout is None or not all(map(str.isdecimal, numbers)):
            return False
        index = self.layout.block_of_file(self.array, tuple(map(int, numbers)))
        if index is None:
            return False
        level = 0 if self.array == PROBABILITIES else int(self.array)
        name = "/".join((self.layout.folder(self.array), *numbers))
        size = self.journal.sizes(level, range(index, index + 1))[0][self.layout.files(level, index).index(name)]
        return size not in (NO_FILE, UNKNOWN)
