"""What became of the images of a batch: `Result`, and the files that list them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tilenet.errors import EnvironmentFault


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
    seconds: float = 0.0
    error: str = ""


def write_summary(folder: Path, results: Sequence[Result]) -> None:
    """Write ``summary.csv`` and ``summary.json`` into a folder.

    Raises
    ------
    EnvironmentFault
        If they cannot be written.
    """
    rows = [asdict(result) | {"seconds": round(result.seconds, 3)} for result in results]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [f.name for f in fields(Result)])
    writer.writeheader()
    writer.writerows(rows)
    for name, text in (("summary.csv", table.getvalue()), ("summary.json", json.dumps(rows, indent=1) + "\n")):
        try:
            (folder / f"{name}.part").write_text(text, encoding="utf-8", newline="")
            (folder / f"{name}.part").replace(folder / name)
        except OSError as error:
            raise EnvironmentFault(f"{folder / name}: cannot be written ({error.strerror}). Free some space") from error
