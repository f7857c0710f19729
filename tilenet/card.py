"""The model card: what a network's weights alone do not tell about it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import cycle
from math import isfinite
from typing import Any, Literal, cast, get_args

from tilenet.errors import ModelError, SettingsError

Output = Literal["softmax", "sigmoid", "regression"]
OUTPUTS = get_args(Output)
MASK_VALUES = range(256)
# Colours that colour-blind people can tell apart, too: Okabe and Ito 2008, https://jfly.uni-koeln.de/color.
PALETTE = (
    *((230, 159, 0, 255), (86, 180, 233, 255), (0, 158, 115, 255), (240, 228, 66, 255)),
    *((0, 114, 178, 255), (213, 94, 0, 255), (204, 121, 167, 255)),
)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 100_000


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value) and abs(value) < 1e30


def _is_integers(value: object) -> bool:
    return isinstance(value, tuple | list) and all(type(v) is int for v in value)


def _is_table(value: object, of: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(_is_text(k) and of(v) for k, v in value.items())


def _is_plain(value: object) -> bool:
    """Return whether JSON can hold a value: it cannot hold NumPy's numbers."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float) or _is_table(value, _is_plain)


def _is_colors(value: object) -> bool:
    return _is_table(value, _is_integers) and all(
        key.isdecimal() and int(key) in MASK_VALUES and len(color) == 4 and set(color) <= set(MASK_VALUES)
        for key, color in cast("dict[str, list[int]]", value).items()
    )


# A card may come from an untrusted source, so every field is checked.
RULES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "output", "training_data", "licence", "notes"), _is_text),
    **dict.fromkeys(("architecture", "scaling", "metrics"), lambda value: _is_table(value, _is_plain)),
    "classes": lambda value: isinstance(value, tuple | list) and all(map(_is_text, value)),
    "mask_of_class": _is_integers,
    "threshold": _is_number,
    "labels": lambda value: _is_table(value, _is_text) and all(key.isdecimal() for key in value),
    "colors": _is_colors,
    "pixel_size": lambda value: value is None or (_is_number(value) and value > 0),
}
# What an error asks for.
CORRECT = "Correct the card"
WANTED = {"colors": "Give red, green, blue and alpha, 0 to 255, by mask value, such as {'1': [0, 200, 100, 255]}"}

# Classes that say how deep inside an object a pixel lies, the deepest last: those of `tilenet train --targets depth`.
DEPTH_CLASSES = ("background", "rim", "body", "centre")


@dataclass(frozen=True)
class ModelCard:
    """What a network is for, and how its output becomes a mask.

    Attributes
    ----------
    name : str
        Name of the model.
    architecture : dict
        Arguments of `UNet` that build the network again.
    output : {"softmax", "sigmoid", "regression"}
        What the logits mean: one of several classes, a class that is present or not, or plain values.
    classes : tuple of str
        Names of the network's outputs, in order.
    mask_of_class : tuple of int
        Mask value (0 to 255) of each class; 0 is background.
    threshold : float
        For a network with one output: a sigmoid (or, in a regression, a value) above it is foreground.
    labels : dict
        Name of each mask value, which is given as text: ``{"1": "nucleus"}``.
    colors : dict
        Red, green, blue and alpha (0 to 255) of each mask value.
    scaling : mapping or str
        Rule for intensities, or its text, which is parsed; see `tilenet.scaling` and `parse_scaling`.
    pixel_size : float or None
        Micrometres per pixel of the training images.
    training_data, licence, notes : str
        Texts for the user.
    metrics : dict
        Scores, and on which data they were measured.
    """

    name: str = ""
    architecture: dict[str, Any] = field(default_factory=dict)
    output: Output = "softmax"
    classes: tuple[str, ...] = ()
    mask_of_class: tuple[int, ...] = ()
    threshold: float = 0.5
    labels: dict[str, str] = field(default_factory=dict)
    colors: dict[str, list[int]] = field(default_factory=dict)
    scaling: Mapping[str, Any] | str = field(default_factory=lambda: {"method": "none"})
    pixel_size: float | None = None
    training_data: str = ""
    licence: str = ""
    notes: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", parse_scaling(self.scaling))
        for name, is_right in RULES.items():
            if not is_right(value := getattr(self, name)):
                raise ModelError(f"model card: {name} cannot be {str(value)[:60]!r}. {WANTED.get(name, CORRECT)}")
        if self.output not in OUTPUTS:
            raise ModelError(f"model card: output {self.output!r} is none of {', '.join(OUTPUTS)}. Correct the card")
        if any(v not in MASK_VALUES for v in self.mask_of_class):
            raise ModelError(
                f"model card: mask_of_class {str(list(self.mask_of_class))[:60]} leaves 0 to 255. Correct the card"
            )

    def completed(self, n_outputs: int) -> ModelCard:
        """Return the card with missing fields filled in for a network of `n_outputs` outputs.

        One output is a sigmoid unless it is a regression; several outputs are classes, each with
        its own mask value. More outputs than there are mask values have none.
        """
        output = "sigmoid" if n_outputs == 1 and self.output == "softmax" else self.output
        numbered = ("foreground",) if n_outputs == 1 else tuple(f"class {k}" for k in range(n_outputs))
        classes = self.classes or numbered
        if self.mask_of_class:
            values = self.mask_of_class
        elif n_outputs == 1:
            values = (1,)
        else:
            values = tuple(range(n_outputs)) if n_outputs <= len(MASK_VALUES) else ()
        for what, given in (("classes", classes), ("mask_of_class", values)):
            if given and len(given) != n_outputs:
                raise ModelError(
                    f"model card: {what} names {len(given)}, the network has {n_outputs} outputs. Correct it"
                )
        labels = self.labels or (_labels(classes, values) if values else {})
        return replace(self, output=output, classes=classes, mask_of_class=values, labels=labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain values, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the card as text, its keys sorted."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Parse a card that `to_json` wrote; unknown keys are refused."""
        try:
            values: dict[str, Any] = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError(f"a {type(values).__name__}")
            if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
                raise ModelError(f"model card: {unknown[0]!r} is not a known key. Update tilenet, or correct the card")
            values |= {k: tuple(values[k]) for k in ("classes", "mask_of_class") if k in values}
            return cls(**values)
        except ModelError:
            raise
        except (ValueError, RecursionError, TypeError) as error:
            raise ModelError(f"model card: not readable ({str(error)[:100]}). Get the model again") from error


def _labels(classes: Sequence[str], values: Sequence[int]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in zip(classes, values, strict=True):
        if value:
            named[str(value)] = f"{named[str(value)]}, {name}" if str(value) in named else name
    return named


def colors_of(card: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """Return the colour (red, green, blue and opacity) of each mask value except background.

    Mask values to which the card (as returned by `ModelCard.to_dict`) gives none get an unused one of `PALETTE`.

    >>> colors_of({"mask_of_class": [0, 1, 2], "colors": {"1": [230, 159, 0, 255]}})
    {1: (230, 159, 0, 255), 2: (86, 180, 233, 255)}
    """
    found = {int(value): tuple(color) for value, color in card["colors"].items()}
    free = cycle([color for color in PALETTE if color not in found.values()] or PALETTE)
    for value in sorted({v for v in card["mask_of_class"] if v} - set(found)):
        found[value] = next(free)
    return found


def label_table(card: ModelCard) -> Mapping[int, tuple[str, tuple[int, ...]]]:
    """Return the name and the colour of each mask value except background."""
    colors = colors_of(card.to_dict())
    return {v: (card.labels.get(str(v), f"class {v}"), colors[v]) for v in sorted({v for v in card.mask_of_class if v})}


def parse_scaling(text: Mapping[str, Any] | str) -> Mapping[str, Any]:
    """Return a scaling rule, parsed if it is a command-line text.

    >>> parse_scaling("linear:0,255"), parse_scaling({"method": "none"})
    ({'method': 'linear', 'subtract': 0.0, 'divide': 255.0}, {'method': 'none'})
    >>> parse_scaling("percentile:1,99.8")
    {'method': 'percentile', 'low': 1.0, 'high': 99.8}
    """
    if not isinstance(text, str):
        return text
    method, _, numbers = text.partition(":")
    names = {"none": (), "linear": ("subtract", "divide"), "percentile": ("low", "high")}.get(method)
    try:
        values = [float(n) for n in numbers.split(",")] if numbers else []
        if names is None or len(values) != len(names) or not all(map(isfinite, values)):
            raise ValueError
    except ValueError as error:
        raise SettingsError(f"scaling {text!r}: give linear:SUBTRACT,DIVIDE, percentile:LOW,HIGH, or none") from error
    if method == "percentile" and not 0 <= values[0] < values[1] <= 100:
        raise SettingsError(f"scaling {text!r}: give two percentiles from 0 to 100, the lower one first")
    if method == "linear" and values[1] == 0:
        raise SettingsError(f"scaling {text!r}: a scaling cannot divide by 0. Give another number")
    return {"method": method, **dict(zip(names, values, strict=True))}


def parse_colors(text: str) -> dict[str, list[int]]:
    """Parse the colours of mask values from a command-line text into the form that a card holds.

    >>> parse_colors("1=00c864,2=ffd600")
    {'1': [0, 200, 100, 255], '2': [255, 214, 0, 255]}
    """
    found = [re.fullmatch(r"\s*(\d+)\s*=\s*#?([0-9a-fA-F]{6})\s*", part) for part in text.split(",")]
    if not all(found):
        raise SettingsError(f"colors {text!r} is not VALUE=RRGGBB for each mask value, such as 1=00c864,2=ffd600")
    return {str(int(f[1])): [*bytes.fromhex(f[2]), 255] for f in found if f}
