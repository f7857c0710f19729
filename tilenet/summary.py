"""What became of the images of a batch: `Result`, and the files that list them and what is in them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tilenet.measures import Measured
from tilenet.store.files import AGAIN
from tilenet.store.place import put_whole

# Names that no table of an image of a batch can have.
TABLES = ("summary", "counts")
COUNTS = ("slide", "class", "kind", "count", "pixels", "covered", "um2", "um3", "per_mm2", "per_mm3")
DECIMALS = 3


@dataclass(frozen=True)
class Result:
    """What became of one image of a batch.

    Attributes
    ----------
    slide : str
        The name of its mask, without ending.
    image : str
        Path.
    status : {"done", "skipped", "failed"}
        Skipped: it was complete already.
    pixels : int
        Of the mask; 0 where it did not come to one.
    tissue : float or None
        Part of the pixels that was computed because there is tissue; None where that was not asked.
    counts : dict or None
        Objects, or regions, by class; None where they were not asked for.
    seconds : float
        From opening it to its end. Images overlap, so these add up to more than the whole took.
    error : str
        Why it failed: one line.
    """

    slide: str
    image: str
    status: str
    pixels: int = 0
    tissue: float | None = None
    counts: dict[str, int] | None = None
    seconds: float = 0.0
    error: str = ""


def write_summary(folder: Path, results: Sequence[Result]) -> None:
    """Write ``summary.csv`` and ``summary.json`` into a folder.

    Raises
    ------
    EnvironmentFault
        If they cannot be written.
    """
    rows = [asdict(result) | {"seconds": round(result.seconds, DECIMALS)} for result in results]
    said = [row | {"counts": _text(row["counts"])} for row in rows]
    _put(folder / "summary.csv", _table([f.name for f in fields(Result)], said))
    _put(folder / "summary.json", json.dumps(rows, indent=1) + "\n")


def write_counts(folder: Path, measured: Mapping[str, Measured]) -> None:
    """Write ``counts.csv``: how many objects, or regions, of each class are in each mask of a batch.

    Its columns are ``slide``, ``class``, ``kind`` (object or region), ``count``, ``pixels`` of the mask in all of them,
    the part of it that they cover, their area in um2 or (of objects of volumes) volume in um3, and how many there
    are for each square or cubic millimetre of what was segmented.

    Raises
    ------
    EnvironmentFault
        If it cannot be written.
    """
    lines = [line for slide, found in measured.items() for line in _count_lines(slide, found)]
    _put(folder / "counts.csv", _table(COUNTS, lines))


def _count_lines(slide: str, found: Measured) -> Iterable[dict[str, Any]]:
    for name, count in sorted(found.counts.items()):
        pixels = found.area_px[name]
        sizes = {"um3": found.voxel_um3} if found.volumes else {"um2": found.pixel_um2}
        kind = "object" if found.objects else "region"
        line: dict[str, Any] = {"slide": slide, "class": name, "kind": kind, "count": count}
        line |= {"pixels": pixels, "covered": round(pixels / found.mask_px, 6)}
        line |= {unit: round(pixels * size, DECIMALS) for unit, size in sizes.items() if size is not None}
        rates = {"per_mm2": found.per_mm2.get(name), "per_mm3": found.per_mm3.get(name)}
        yield line | {unit: round(rate, DECIMALS) for unit, rate in rates.items() if rate is not None}


def _text(counts: Mapping[str, int] | None) -> str:
    return "; ".join(f"{count} {name}" for name, count in sorted((counts or {}).items()))


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def _put(path: Path, text: str) -> None:
    with put_whole(path, again=AGAIN) as part:
        part.write_text(text, encoding="utf-8", newline="")
