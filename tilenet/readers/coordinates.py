"""Where the pixels of an OME-Zarr image lie in its own axes and units, which is where a viewer places them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

# Units of length in micrometres, by the names that OME, UDUNITS and ImageJ use.
_PREFIXES = {"pico": 1e-6, "nano": 1e-3, "micro": 1.0, "milli": 1e3, "centi": 1e4, "deci": 1e5, "": 1e6, "kilo": 1e9}
_SYMBOLS = {"pm": 1e-6, "nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6}
_OTHERS = {"micron": 1.0, "microns": 1.0, "angstrom": 1e-4, "Å": 1e-4, "inch": 2.54e4, "in": 2.54e4}

MICROMETERS = (
    {f"{prefix}{meter}": um for prefix, um in _PREFIXES.items() for meter in ("meter", "metre", "meters", "metres")}
    | _SYMBOLS
    | _OTHERS
)
# The keys ``axes``, ``scale`` and ``translation``, each a list with one entry per axis.
CoordinateTransform = Mapping[str, Any]
# Units that OME-Zarr 0.4 and 0.5 define, beside metres and seconds with a prefix.
SPECIFIED = ("angstrom", "foot", "inch", "mile", "parsec", "yard", "minute", "hour", "day")


def frame_of(image: Mapping[str, Any], level: int) -> CoordinateTransform:
    """Return the frame of a level of an entry of ``multiscales``: its transformations, then those of the whole image.

    `KeyError`, `TypeError`, `ValueError` or `IndexError` if the metadata does not state it, or in an unknown form.
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


def along(frame: CoordinateTransform, places: Sequence[int], names: str) -> CoordinateTransform:
    """Return the frame of the axes at some places in the image, renamed to `names`."""
    axes = [{**frame["axes"][i], "name": name} for i, name in zip(places, names, strict=True)]
    return {"axes": axes, **{k: [frame[k][i] for i in places] for k in ("scale", "translation")}}


def in_known_units(frame: CoordinateTransform) -> CoordinateTransform:
    """Return a frame in units that OME-Zarr defines: others are converted to micrometres, or left out if unknown.

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


def resized(frame: CoordinateTransform, sizes: Mapping[str, float]) -> CoordinateTransform:
    """Return a frame with other pixel sizes, in micrometres, along some axes.

    The translation along these axes stays the same number of pixels: a file that states a wrong pixel size places
    its levels with that size, too.

    >>> frame = {"axes": [{"name": "x", "unit": "meter"}], "scale": [2.0], "translation": [3.0]}
    >>> found = resized(frame, {"x": 0.5})
    >>> found["axes"], found["scale"], found["translation"]
    ([{'name': 'x', 'type': 'space', 'unit': 'micrometer'}], [0.5], [0.75])
    """
    names = [axis["name"] for axis in frame["axes"]]
    scale = [sizes.get(name, old) for name, old in zip(names, frame["scale"], strict=True)]
    unit = {"type": "space", "unit": "micrometer"}
    return {
        "axes": [
            {"name": name} | unit if name in sizes else axis for name, axis in zip(names, frame["axes"], strict=True)
        ],
        "scale": scale,
        "translation": [
            first * (new / old) for first, new, old in zip(frame["translation"], scale, frame["scale"], strict=True)
        ],
    }


def scaled(frame: CoordinateTransform, factors: Sequence[float]) -> CoordinateTransform:
    """Return the frame of pixels that are `factors` times as large along each axis; the translation stays."""
    return {**frame, "scale": [size * factor for size, factor in zip(frame["scale"], factors, strict=True)]}
