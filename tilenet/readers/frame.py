"""Where the pixels of an OME-Zarr image lie, in its own axes and units, as a viewer places them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from tilenet.readers.units import MICROMETERS

# ``axes``, ``scale`` and ``translation``, an entry for each axis.
Frame = Mapping[str, Any]
SPECIFIED = ("angstrom", "inch", "minute", "hour", "day")


def frame_of(image: Mapping[str, Any], level: int) -> Frame:
    """Return the frame of a level: its transformations, and behind them those of the whole image.

    Parameters
    ----------
    image : mapping
        An entry of ``multiscales``.

    Raises
    ------
    KeyError, TypeError, ValueError, IndexError
        Where that is not said, or not in a way that is known.
    """
    n = len(image["axes"])
    scale, translation = [1.0] * n, [0.0] * n
    for said in (image["datasets"][level], image):
        for one in said.get("coordinateTransformations") or ():
            numbers = [float(number) for number in one[one["type"]]]
            if one["type"] == "scale":
                scale = [a * b for a, b in zip(scale, numbers, strict=True)]
                translation = [a * b for a, b in zip(translation, numbers, strict=True)]
            elif one["type"] == "translation":
                translation = [a + b for a, b in zip(translation, numbers, strict=True)]
            else:
                raise ValueError(f"a transformation that is {one['type']!r}")
    if not all(isfinite(number) for number in (*scale, *translation)) or min(scale) <= 0:
        raise ValueError("scales that are not positive numbers")
    return {"axes": list(image["axes"]), "scale": scale, "translation": translation}


def along(frame: Frame, places: Sequence[int], names: str) -> Frame:
    """Return the frame of some axes, by their places in the image, under the names that they have here."""
    axes = [{**frame["axes"][i], "name": name} for i, name in zip(places, names, strict=True)]
    return {"axes": axes, **{k: [frame[k][i] for i in places] for k in ("scale", "translation")}}


def in_known_units(frame: Frame) -> Frame:
    """Return a frame whose units are those that OME-Zarr names; others are turned into micrometres, or left out.

    >>> in_known_units({"axes": [{"name": "x", "unit": "um"}], "scale": [0.5], "translation": [3.0]})["axes"]
    [{'name': 'x', 'type': 'space', 'unit': 'micrometer'}]
    """
    axes, factors = [], []
    for axis in frame["axes"]:
        kind, unit, factor = "time" if axis["name"] == "t" else "space", str(axis.get("unit")), 1.0
        if not (unit in SPECIFIED or unit.endswith("second" if kind == "time" else "meter")):
            factor = MICROMETERS.get(unit, 1.0) if kind == "space" else 1.0
            unit = "micrometer" if kind == "space" and unit in MICROMETERS else ""
        axes.append({"name": axis["name"], "type": kind} | ({"unit": unit} if unit else {}))
        factors.append(factor)
    numbers = {k: [n * f for n, f in zip(frame[k], factors, strict=True)] for k in ("scale", "translation")}
    return {"axes": axes, **numbers}


def scaled(frame: Frame, factors: Sequence[float]) -> Frame:
    """Return the frame of pixels that are so many of these along each axis."""
    return {**frame, "scale": [size * factor for size, factor in zip(frame["scale"], factors, strict=True)]}
