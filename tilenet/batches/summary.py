"""The outcome of a batch: a `Result` for each image, and the files that list the results and the counts."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tilenet.export.totals_table import put_table
from tilenet.resolution import TOLERANCE
from tilenet.store import Share
from tilenet.store.destination import put_whole

# Names of a batch's own tables, which the table of an image cannot have.
OWN_TABLES = re.compile(r"(summary|counts)(-\d+-of-\d+)?")
DECIMALS = 3
# Pixel sizes are alike up to this factor, as `tilenet.resolution` has it.
ALIKE = float(TOLERANCE)
LOG = logging.getLogger("tilenet")


@dataclass(frozen=True)
class Result:
    """The outcome of one image of a batch.

    Attributes
    ----------
    slide : str
        Name of its mask, without ending.
    image : str
        Path or address of the image.
    status : {"done", "skipped", "failed"}
        ``skipped`` means that its mask was complete already.
    pixels : int
        Number of pixels of the mask; 0 if it has no mask. An image that failed may have one, of an earlier call.
    level : int or None
        Resolution level of the image that was read; None if it has no mask.
    um_per_px : float or None
        Micrometres along a pixel of the mask (its width); None where unknown.
    tissue : float or None
        Share of the pixels that was computed because there is tissue; None if blocks without tissue were not skipped.
    counts : dict or None
        Number of objects or regions by class; None if they were not asked for.
    positive : dict or None
        Number of them that are positive; None if that was not asked for.
    judged : dict or None
        Number of them that are positive or negative: an object without a finite pixel is neither.
    seconds : float
        Time from opening the image to its end. Images overlap, so these add up to more than the batch took.
    error : str
        Why it failed, in one line.
    """

    slide: str
    image: str
    status: str
    pixels: int = 0
    level: int | None = None
    um_per_px: float | None = None
    tissue: float | None = None
    counts: dict[str, int] | None = None
    positive: dict[str, int] | None = None
    judged: dict[str, int] | None = None
    seconds: float = 0.0
    error: str = ""


def remark_sizes(results: Sequence[Result]) -> None:
    """Say so if masks have pixels of different sizes: a model finds other things at another size."""
    sizes = sorted(result.um_per_px for result in results if result.um_per_px)
    if sizes and sizes[-1] > ALIKE * sizes[0]:
        LOG.warning(
            "masks have pixels of %.3g to %.3g um, so that their counts cannot be compared. Give all one --mpp",
            *(sizes[0], sizes[-1]),
        )


def file_of(table: str, share: Share | None, ending: str = "csv") -> str:
    """Return the name of one of the files that a batch, or one share of it, writes for all of its images.

    >>> file_of("counts", None), file_of("summary", (3, 8), "json")
    ('counts.csv', 'summary-3-of-8.json')
    """
    part = "-{}-of-{}".format(*share) if share else ""
    return f"{table}{part}.{ending}"


def is_own(name: str) -> bool:
    """Return whether a table of that name would be one that a batch writes for all of its images.

    >>> is_own("Counts"), is_own("counts-3-of-8"), is_own("counts-3")
    (True, True, False)
    """
    return OWN_TABLES.fullmatch(name.casefold()) is not None


def write_summary(folder: Path, results: Sequence[Result], share: Share | None = None) -> None:
    """Write ``summary.csv`` and ``summary.json`` into a folder; those of a share are named after it.

    `EnvironmentFault` if they cannot be written.
    """
    rows = [asdict(result) | {"seconds": round(result.seconds, DECIMALS)} for result in results]
    said = [row | {name: _text(row[name]) for name in ("counts", "positive", "judged")} for row in rows]
    put_table(folder / file_of("summary", share), [f.name for f in fields(Result)], said)
    with put_whole(folder / file_of("summary", share, "json")) as part:
        part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8", newline="")


def _text(counts: Mapping[str, int] | None) -> str:
    return "; ".join(f"{count} {name}" for name, count in sorted((counts or {}).items()))
