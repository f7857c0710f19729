"""The results of a batch while it runs: noted image by image, told as they come, and written at its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from time import perf_counter

from tilenet.address import shown
from tilenet.batches.image_list import BatchItem
from tilenet.batches.summary import Result, file_of, remark_sizes, write_summary
from tilenet.errors import TilenetError, one_line
from tilenet.export.totals import Measured
from tilenet.export.totals_table import write_counts
from tilenet.store import Share, Store

LOG = logging.getLogger("tilenet")


class Results:
    """What came of the images so far; several threads may note it."""

    def __init__(self, names: Sequence[str], tell: Callable[[Result], None]) -> None:
        self._names, self._tell = names, tell
        self._found: dict[str, Result] = {}
        self._measured: dict[str, Measured] = {}
        self._started: dict[str, float] = {}
        self._one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return len(self._found)

    def begin(self, item: BatchItem) -> None:
        """Note that work on an image begins."""
        self._started[item.name] = perf_counter()

    def count(self, item: BatchItem, measured: Measured | None) -> None:
        """Note what the table of an image says, if it has one."""
        if measured is not None:
            self._measured[item.name] = measured

    def note(self, item: BatchItem, status: str, *, store: Store | None, error: Exception | None = None) -> None:
        """Note and tell what came of an image: its status, its complete mask if there is one, or why it failed."""
        skipped = store.info.get("tissue", {}).get("skipped") if store else None
        found = self._measured.get(item.name)
        with self._one_at_a_time:
            result = Result(
                item.name,
                shown(item.image),
                status,
                prod(store.layout.shape) if store else 0,
                level=store.info["record"]["level"] if store else None,
                um_per_px=store.layout.pixel_size[-1] if store else None,
                tissue=None if skipped is None else round(1 - skipped, 6),
                counts=dict(found.counts) if found else None,
                positive=dict(found.positive) if found and found.positive else None,
                judged=dict(found.judged) if found and found.positive else None,
                seconds=perf_counter() - self._started[item.name],
                error=in_words(error) if error else "",
            )
            self._found[item.name] = result
            self._tell(result)

    def write(self, folder: Path, share: Share | None, *, counts: bool) -> list[Result]:
        """Write the summary, and perhaps the counts, into the folder of a batch or of a share of it; return results."""
        results = [self._found[name] for name in self._names if name in self._found]
        remark_sizes(results)
        write_summary(folder, results, share)
        if counts:
            self._write_counts(folder / file_of("counts", share))
        return results

    def _write_counts(self, path: Path) -> None:
        """Write the table of all images; one that is there stays if there are images, and none could be counted."""
        measured = {name: self._measured[name] for name in self._names if name in self._measured}
        if measured or not self._names or not path.exists():
            write_counts(path, measured)
        else:
            LOG.warning("%s: stays as it was, as nothing could be counted", path)


def in_words(error: Exception) -> str:
    """Return why an image failed."""
    return str(error) if isinstance(error, TilenetError) else one_line(error)
