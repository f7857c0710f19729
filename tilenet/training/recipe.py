"""Every option of a training, in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from math import inf
from numbers import Real
from operator import index
from typing import Any, Literal, get_args, get_type_hints

from tilenet.arguments import known_options, plain
from tilenet.card import parse_scaling
from tilenet.errors import SettingsError

PERCENTILES = {"method": "percentile", "low": 1, "high": 99.8, "per_channel": False, "clip": [-0.5, 1.5]}
RATES = {"adamw": 2e-3, "sgd": 1e-2}
BALANCED = ("balanced",)
# These change only who computes and how fast; a resumed training may have other values.
FREE = ("workers", "device", "compiled")
INTEGERS = ("depth", "wf", "elastic_grid", "tile", "epochs", "stop", "crops", "batch", "seed", "workers")
# Smallest and largest value of each number.
RANGES = (
    *((name, 1, inf) for name in ("epochs", "batch", "crops", "tile", "zoom", "stretch", "elastic_grid")),
    *((name, 0, inf) for name in ("small", "w0", "elastic", "intensity", "stain", "weight_decay", "workers", "seed")),
    *((name, 0, 1) for name in ("dropout", "dice", "hold", "average", "momentum")),
    *((name, 0, 1) for name in ("noise", "invert", "tint", "swap", "grey", "dab", "dyed", "holes")),
    *(("depth", 1, 16), ("wf", 0, 24), ("sigma", 1e-6, inf)),
)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults suit a few dozen images of objects.

    Attributes
    ----------
    depth, wf, padding, batch_norm, up_mode, pool_size
        Architecture of the network; see `tilenet.UNet`.
    dropout : float
        Share of the features dropped at the bottom of the network during training.
    targets : {"mask", "depth", "classes"}
        What the network learns from the labels: whether a pixel is in an object (any label but 0); how
        deep inside an object it lies (background, rim, body, centre), which separates neighbours and
        needs instance labels; or the labels themselves, as classes in ascending order.
    class_weights : tuple of float, or str
        Weight w_c of each class; empty for 1 each, or ``balanced`` for inverse frequencies.
    small : float
        Objects of fewer pixels than this count more, by the square root of the ratio (at most 2.5).
    w0, sigma : float
        Height, and width in pixels, of the additional weight between objects that are near each
        other (the paper's border weights); not for ``targets="classes"``.
    dice : float
        Factor of a soft Dice loss of the foreground, which is added to the weighted cross entropy.
    scaling : mapping or str
        Rule that scales the intensities of each file, or its text (``"linear:0,255"``), also kept on the model card;
        see `tilenet.scaling`.
    tile : int, optional
        Side of the network's output in training, rounded up to one that the network allows.
    zoom, stretch : float
        Crops are enlarged or reduced by up to the factor `zoom`. In the plane y, x, they are lengthened along
        one direction, relative to the direction across it, by up to the factor `stretch`.
    elastic, elastic_grid : float, int
        Standard deviation of the elastic displacements in pixels, and points per side of their grid.
    flips, turns : bool, {"none", "right", "any"}
        Whether to mirror crops, and whether to turn them in the plane y, x by right angles or by any angle.
    intensity, stain : float
        Strength of random gamma, gain and offset; strength of random mixing of colour channels.
    noise, invert, tint, swap, grey : float
        Share of the crops that are blurred or made noisy (`noise`); inverted, unless they are of colour
        images (`invert`); shown in some channels only, like a fluorescent stain in an RGB image (`tint`);
        given their channels in another order (`swap`); made grey (`grey`).
    dab, dyed, holes : float
        Share of the crops of colour images (`dab`), and of grey images with bright objects, that is,
        fluorescence (`dyed`), that are repainted as immunohistochemistry, with blue haematoxylin and brown
        DAB. Share of the crops of colour images, and of those repainted, that get white holes outside of
        nuclei (`holes`). Only for labels of nuclei.
    shares : mapping of str to float
        Relative frequency of drawing the images whose names start with each key; images that start with none
        are never drawn. By default, all images are drawn according to their size.
    optimizer : {"adamw", "sgd"}
        AdamW, or SGD with `momentum`; both with a cosine schedule from `rate`.
    hold : float
        Share of the training before the learning rate starts to fall along the cosine.
    average : float
        Decay per step of the moving average of the weights, which is what the model keeps; 0 for none.
    epochs, crops, batch : int
        Number of epochs, of crops per epoch, and of crops per step. By default, an epoch has as many crops as
        cover the training images once.
    stop : int, optional
        Epoch to end after, keeping its network whatever its validation score. Its use is to train once more, now
        on the validation images too, up to the epoch that was found best. By default the training ends after the
        last epoch, and the network of the best one is kept.
    validation : float
        Share of the images that choose the best epoch.
    seed : int
        Decides split, weights and crops: the same seed gives the same bytes on a CPU.
    precision, device, workers, compiled
        The precision ``auto`` is bf16 on a GPU and fp32 elsewhere; `workers` is the number of processes that make
        crops; `compiled` has PyTorch compile the network first, which takes about a minute.
    """

    depth: int = 4
    wf: int = 4
    padding: bool = False
    batch_norm: bool = True
    up_mode: Literal["upconv", "upsample"] = "upconv"
    pool_size: tuple[int, ...] | None = None
    dropout: float = 0.0
    targets: Literal["mask", "depth", "classes"] = "mask"
    class_weights: Sequence[float | str] = ()
    small: float = 0.0
    w0: float = 10.0
    sigma: float = 5.0
    dice: float = 0.5
    scaling: Mapping[str, Any] | str = field(default_factory=lambda: dict(PERCENTILES))
    tile: int | None = None
    zoom: float = 1.25
    stretch: float = 1.0
    elastic: float = 10.0
    elastic_grid: int = 3
    flips: bool = True
    turns: Literal["none", "right", "any"] = "right"
    intensity: float = 0.2
    stain: float = 0.1
    noise: float = 0.0
    invert: float = 0.0
    tint: float = 0.0
    swap: float = 0.0
    grey: float = 0.0
    dab: float = 0.0
    dyed: float = 0.0
    holes: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: float | None = None
    hold: float = 0.0
    momentum: float = 0.99
    weight_decay: float = 1e-2
    average: float = 0.99
    epochs: int = 60
    stop: int | None = None
    crops: int | None = None
    batch: int = 4
    validation: float = 0.2
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    workers: int = 0
    compiled: bool = False

    def __post_init__(self) -> None:
        put = partial(object.__setattr__, self)  # the class is frozen
        for option in fields(self):
            value = plain(getattr(self, option.name))
            put(option.name, tuple(value) if isinstance(value, list) else value)
        put("scaling", parse_scaling(self.scaling))
        if isinstance(self.class_weights, str):
            put("class_weights", parse_weights(self.class_weights))
        for name in INTEGERS:
            value = getattr(self, name)
            try:
                put(name, None if value is None else index(value))
            except TypeError as error:
                raise SettingsError(f"{name} is a whole number, not {value!r}") from error
        self._check_numbers()
        self._check_weights()
        hints = get_type_hints(Recipe)
        for name in ("targets", "turns", "optimizer", "precision"):
            if getattr(self, name) not in (allowed := get_args(hints[name])):
                raise SettingsError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.stop is not None and not 1 <= self.stop <= self.epochs:
            raise SettingsError(f"stop is one of the {self.epochs} epochs, from 1, not {self.stop}")
        if not (isinstance(self.validation, Real) and 0 < self.validation < 1):
            raise SettingsError(f"validation is a share between 0 and 1, not {self.validation}")

    def _check_numbers(self) -> None:
        for name, least, most in RANGES:
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, Real) and least <= float(value) <= most and float(value) < inf
            ):
                limits = f"at least {least:g}" if most == inf else f"from {least:g} to {most:g}"
                raise SettingsError(f"{name} is {limits}, not {value}")
        if self.rate is not None and not (isinstance(self.rate, Real) and 0 < self.rate < inf):
            raise SettingsError(f"rate is above 0, not {self.rate}")
        if self.pool_size is not None and (not isinstance(self.pool_size, tuple) or min(self.pool_size, default=0) < 1):
            raise SettingsError(f"pool_size is 1 or more along each axis, such as (1, 2, 2), not {self.pool_size}")

    def _check_weights(self) -> None:
        if not isinstance(self.class_weights, Iterable) or not isinstance(self.shares, Mapping):
            raise SettingsError("class_weights are numbers, one per class, and shares are numbers by groups of images")
        for name, numbers in (("class_weights", self.class_weights), ("shares", self.shares.values())):
            weights = () if tuple(numbers) == BALANCED else tuple(numbers)
            if weights and not (all(isinstance(n, Real) and 0 <= n < inf for n in weights) and any(weights)):
                raise SettingsError(f"{name} are numbers, none below 0 and not all 0, not {list(numbers)}")
        for start in self.shares:
            if inside := [other for other in self.shares if other != start and other.startswith(start)]:
                raise SettingsError(f"shares: {inside[0]!r} starts with {start!r}, so images would be in both groups")

    @property
    def last_epoch(self) -> int:
        """The epoch after which the training ends."""
        return self.stop or self.epochs

    @property
    def peak_rate(self) -> float:
        """Learning rate at the start of the cosine."""
        return RATES[self.optimizer] if self.rate is None else self.rate

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the result, ready for JSON."""
        values = {name: value for name, value in asdict(self).items() if name not in FREE}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


Recipe.__init__ = known_options()(Recipe.__init__)  # type: ignore[method-assign]


def parse_weights(text: str) -> tuple[float | str, ...]:
    """Parse the weights of classes: comma-separated numbers, or ``balanced``.

    >>> parse_weights("1,2.5"), parse_weights("balanced")
    ((1.0, 2.5), ('balanced',))
    """
    try:
        return BALANCED if text == BALANCED[0] else tuple(map(float, text.split(",")))
    except ValueError as error:
        raise SettingsError(f"class_weights {text!r} are neither numbers with commas between nor balanced") from error
