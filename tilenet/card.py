"""The model card: what a network's weights cannot say about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tilenet.errors import ModelError

OUTPUTS = ("softmax", "sigmoid", "regression")
MASK_VALUES = range(256)


@dataclass(frozen=True)
class ModelCard:
    """What a network is for, and how its output becomes a mask.

    Attributes
    ----------
    name : str
        What the model is called.
    architecture : dict
        Arguments of `UNet`, from which the network is built again.
    output : {"softmax", "sigmoid", "regression"}
        What the logits are: one of several classes, one class or not, or plain values.
    classes : tuple of str
        Names of the network's outputs, in order.
    mask_of_class : tuple of int
        Mask value (0 to 255) of each class; 0 is background.
    threshold : float
        For one output: a sigmoid (or a value) above it makes mask value 1.
    labels : dict
        Name of each mask value, as text: ``{"1": "nucleus"}``.
    colors : dict
        Red, green, blue and alpha (0 to 255) of each mask value.
    scaling : dict
        Rule for intensities; see `tilenet.scaling`.
    pixel_size : float or None
        Micrometres per pixel of the training images.
    training_data, licence, notes : str
        For people.
    metrics : dict
        Scores, and on what they were measured.
    """

    name: str = ""
    architecture: dict[str, Any] = field(default_factory=dict)
    output: str = "softmax"
    classes: tuple[str, ...] = ()
    mask_of_class: tuple[int, ...] = ()
    threshold: float = 0.5
    labels: dict[str, str] = field(default_factory=dict)
    colors: dict[str, list[int]] = field(default_factory=dict)
    scaling: dict[str, Any] = field(default_factory=lambda: {"method": "none"})
    pixel_size: float | None = None
    training_data: str = ""
    licence: str = ""
    notes: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ModelError(f"model card: output {self.output!r} is none of {', '.join(OUTPUTS)}")
        if any(v not in MASK_VALUES for v in self.mask_of_class):
            raise ModelError(f"model card: mask_of_class {list(self.mask_of_class)} leaves 0 to 255")

    def completed(self, n_outputs: int) -> ModelCard:
        """Return the card with what follows from the number of outputs filled in.

        One output is a sigmoid unless it is a regression; several are classes, each its own
        mask value.
        """
        output = "sigmoid" if n_outputs == 1 and self.output == "softmax" else self.output
        classes = self.classes or tuple(f"class {k}" for k in range(n_outputs))
        values = self.mask_of_class or ((1,) if n_outputs == 1 else tuple(range(n_outputs)))
        for what, given in (("classes", classes), ("mask_of_class", values)):
            if len(given) != n_outputs:
                raise ModelError(f"model card: {what} names {len(given)}, the network has {n_outputs} outputs")
        labels = self.labels or _labels(classes, values)
        return replace(self, output=output, classes=classes, mask_of_class=values, labels=labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain values, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the card as text, its keys sorted."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Return the card of a text written by `to_json`; unknown keys are refused."""
        try:
            values: dict[str, Any] = json.loads(text)
            if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
                raise ModelError(f"model card: {unknown[0]!r} is not a known key; it was written by a newer tilenet")
            values |= {k: tuple(values[k]) for k in ("classes", "mask_of_class") if k in values}
            return cls(**values)
        except (json.JSONDecodeError, RecursionError, TypeError) as error:
            raise ModelError(f"model card: not readable ({error})") from error


def _labels(classes: Sequence[str], values: Sequence[int]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in zip(classes, values, strict=True):
        if value:
            named[str(value)] = f"{named[str(value)]}, {name}" if str(value) in named else name
    return named


def label_table(card: ModelCard) -> Mapping[int, tuple[str, tuple[int, ...] | None]]:
    """Return name and colour (None where unsaid) of each mask value but background."""
    values = sorted({v for v in card.mask_of_class if v})
    colors = {int(v): tuple(c) for v, c in card.colors.items()}
    return {v: (card.labels.get(str(v), f"class {v}"), colors.get(v)) for v in values}
