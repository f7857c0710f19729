"""Rules such as ``dab>0.2``, which say what objects are positive, by means that a table has, too."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import SettingsError

STAINS = ("haematoxylin", "eosin", "dab")
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
# What a table says of an object: that it is negative, positive, or neither, as no pixel of it has a finite value.
VERDICTS = ("0", "1", "")


def parse_positive(positive: str) -> tuple[str, float]:
    """Return the name and the number of a rule.

    >>> parse_positive("dab > 0.2")
    ('dab', 0.2)
    """
    said = re.fullmatch(rf"\s*(\S.*?)\s*>\s*({NUMBER})\s*", str(positive), re.IGNORECASE)
    if not said:
        raise SettingsError(
            f"positive {positive!r}: give a stain or channel, >, and a number with a point, in quotes, as 'dab>0.2'"
        )
    return said[1], float(said[2])


def is_judged_by(table: Path, positive: str) -> bool:
    """Return whether the column ``positive`` of a table follows from a rule, as far as the digits of its means tell."""
    name, above = parse_positive(positive)
    with table.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        column = _column_in(lines.fieldnames or (), name)
        # A mean that is written like the threshold may have been larger or not.
        return column is not None and all(
            line[column] == f"{above:.7g}" or line["positive"] == VERDICTS[judged(float(line[column]), above)]
            for line in lines
        )


def judged(means: float | NDArray[np.float64], above: float) -> Any:
    """Return the places in `VERDICTS` of objects of some means."""
    return np.where(np.isnan(means), 2, np.greater(means, above))


def _column_in(columns: Sequence[str], name: str) -> str | None:
    """Return the column of a table in which the means are that a rule names; None without one, or without the answer.

    >>> columns = ["id", "mean_DAPI", "mean_488", "mean_haematoxylin", "positive"]
    >>> [_column_in(columns, name) for name in ("dapi", "0", "488", "Hematoxylin", "dab")]
    ['mean_DAPI', 'mean_DAPI', 'mean_488', 'mean_haematoxylin', None]
    """
    if "positive" not in columns:
        return None
    means = {column.removeprefix("mean_"): column for column in columns if column.startswith("mean_")}
    if name in means:  # as in `Intensities`: channels may be called by their wavelengths
        return means[name]
    if name.isdecimal():
        channels = [column for of, column in means.items() if of not in STAINS]
        return channels[int(name)] if int(name) < len(channels) else None
    wanted = name.casefold(), name.casefold().replace("hema", "haema")
    return next((column for of, column in means.items() if of.casefold() in wanted), None)
