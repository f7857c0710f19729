"""The outcome of a batch: a `Result` for each image, and the files that list the results and the counts."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tilenet.export.measured import Measured
from tilenet.resolution import TOLERANCE
from tilenet.store import Share
from tilenet.store.place import put_whole

# Names of a batch's own tables, which the table of an image cannot have.
OWN_TABLES = re.compile(r"(summary|counts)(-\d+-of-\d+)?")
COUNTS = (
    *("slide", "region", "class", "kind", "count", "left_out"),
    *("covered_px", "covered_share", "covered_um2", "covered_um3"),
    *("mm2", "mm3", "tissue_mm2", "in_tissue", "per_mm2", "per_mm3", "per_mm2_of_tissue"),
)
DECIMALS = 3
# Pixel sizes are alike up to this factor, as `tilenet.resolution` has it.
ALIKE = float(TOLERANCE)
# Remarks for the user; the command line prints them.
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

    Raises
    ------
    EnvironmentFault
        If they cannot be written.
    """
    rows = [asdict(result) | {"seconds": round(result.seconds, DECIMALS)} for result in results]
    said = [row | {"counts": _text(row["counts"])} for row in rows]
    _put(folder / file_of("summary", share), _table([f.name for f in fields(Result)], said))
    _put(folder / file_of("summary", share, "json"), json.dumps(rows, indent=1) + "\n")


def write_counts(folder: Path, measured: Mapping[str, Measured], share: Share | None = None) -> None:
    """Write ``counts.csv``: the number of objects or regions of each class in each mask of a batch, or of a share.

    If nothing was counted, a file that is there stays.

    Its columns are ``slide``, ``region`` (that the user drew; empty for the whole mask), ``class``, ``kind`` (object or
    region of a class), ``count``, ``left_out`` (how many of all classes are smaller than the minimum area), the
    total size of those counted (``covered_px`` of the mask, ``covered_share`` of it, ``covered_um2``, or
    ``covered_um3`` for objects of volumes), the size of the mask or region (``mm2`` or ``mm3``) and, if there is a
    tissue map, of its tissue (``tissue_mm2``) and how many lie in it (``in_tissue``), and the counts per unit of these
    sizes (``per_mm2``, ``per_mm3``, ``per_mm2_of_tissue``). Columns in units of length are empty if the pixel size is
    unknown.

    Raises
    ------
    EnvironmentFault
        If it cannot be written.
    """
    path = folder / file_of("counts", share)
    if not measured and path.exists():
        LOG.warning("%s: stays as it was, as nothing could be counted", path)
        return
    _put(path, _table(COUNTS, [line for slide, found in measured.items() for line in _count_lines(slide, found)]))


def _count_lines(slide: str, found: Measured) -> Iterable[dict[str, Any]]:
    kind = "object" if found.objects else "region"
    for name, count in sorted(found.counts.items()):
        pixels = found.area_px[name]
        size, power = (found.voxel_um3, 3) if found.volumes else (found.pixel_um2, 2)
        line: dict[str, Any] = {"slide": slide, "class": name, "kind": kind, "count": count, "left_out": found.left_out}
        line |= {"covered_px": pixels, "covered_share": round(pixels / found.mask_px, 6)}
        if found.tissue_share is not None:
            line["in_tissue"] = found.in_tissue[name]
        if size is not None:
            line[f"covered_um{power}"] = round(pixels * size, DECIMALS)
            line[f"mm{power}"] = round(found.mask_px * size / 1000**power, 2 * DECIMALS)
            if found.tissue_share is not None and power == 2:
                line["tissue_mm2"] = round(found.mask_px * size / 1e6 * found.tissue_share, 2 * DECIMALS)
        for rate in ("per_mm2", "per_mm3", "per_mm2_of_tissue"):
            if (value := getattr(found, rate).get(name)) is not None:
                line[rate] = round(value, DECIMALS)
        yield line
    yield from _region_lines(slide, found, kind)


def _region_lines(slide: str, found: Measured, kind: str) -> Iterable[dict[str, Any]]:
    for region in found.regions:
        for name, count in sorted(region.counts.items()):
            line: dict[str, Any] = {"slide": slide, "region": region.name, "class": name, "kind": kind, "count": count}
            if region.mm2 is not None:
                line["mm2"] = round(region.mm2, 2 * DECIMALS)
            if region.mm2:
                line["per_mm2"] = round(region.per_mm2[name], DECIMALS)
            yield line


def _text(counts: Mapping[str, int] | None) -> str:
    return "; ".join(f"{count} {name}" for name, count in sorted((counts or {}).items()))


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def _put(path: Path, text: str) -> None:
    with put_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
