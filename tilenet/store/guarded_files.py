"""A zarr store over the files of a complete mask: a missing or replaced file is an error, not background."""

from __future__ import annotations

from asyncio import to_thread
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from tilenet.readers.zarr_store import EachPartAlone
from tilenet.store.journal import Journal
from tilenet.store.layout import DOCUMENTS, PROBABILITIES, Layout
from tilenet.store.metadata import OWN

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


# Identifies one state of a mask: the name, modification time (ns) and size of its root document.
Stamp = tuple[str, int, int]


class Replaced(OSError):
    """Another mask has replaced the open one, or the open one is gone."""


def stamp_of(mask: Path) -> Stamp | None:
    """Return the stamp by which a mask differs from one that replaced it: every run writes the root document, last."""
    for root, _ in DOCUMENTS.values():
        try:
            status = (mask / root).stat()
        except OSError:
            continue
        return root, status.st_mtime_ns, status.st_size
    return None


class GuardedFiles(EachPartAlone, LocalStore):
    """A zarr store over the folder of one array of a mask, which had the `stamp` (`stamp_of`) when it was opened."""

    def __init__(self, root: Path, *, mask: Path, array: str, layout: Layout, stamp: Stamp | None) -> None:
        super().__init__(root, read_only=True)
        self.mask, self.array, self.layout, self.stamp = mask, array, layout, stamp

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "journal"}

    @cached_property
    def journal(self) -> Journal:
        """The journal of the mask, read on first access."""
        journal = Journal(self.layout)
        journal.load(self.mask / OWN)
        return journal

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file's content, None for background; `OSError` if it is lost, `Replaced` if the mask changed."""
        found = await super().get(key, prototype, byte_range)
        return await to_thread(self._checked, key, found)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read without zarr's event loop, which it may be told to do since zarr 3.2; see `get`."""
        return self._checked(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))

    def _checked(self, key: str, found: Buffer | None) -> Buffer | None:
        if (now := stamp_of(self.mask)) != self.stamp:
            then = "was written anew since it was opened. Open it again"
            raise Replaced(f"{self.mask}: {then if now else 'is missing by now. Open it where it is'}")
        if found is None and self._was_written(key):
            raise OSError(f"{self.root / key} is missing")
        return found

    def _was_written(self, key: str) -> bool:
        numbers = key.removeprefix("c/").split("/")
        if not all(map(str.isdecimal, numbers)):
            return False
        index = self.layout.block_of_file(self.array, tuple(map(int, numbers)))
        if index is None:
            return False
        level = 0 if self.array == PROBABILITIES else int(self.array)
        name = "/".join((self.layout.folder(self.array), *numbers))
        written = self.journal.files(level, index) or ()  # none if the journal lacks the block
        return dict(zip(self.layout.files(level, index), written, strict=False)).get(name) is not None
