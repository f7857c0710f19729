"""The options of a run: parsing, normalisation, and checks for contradictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from inspect import Parameter
from math import isfinite
from numbers import Real
from operator import index
from typing import Any, Literal, TypedDict, get_args

from tilenet.arguments import plain
from tilenet.byte_counts import LEAST_MEMORY, parse_bytes
from tilenet.card import parse_scaling
from tilenet.errors import SettingsError
from tilenet.readers.calibrated import parse_pixel_size
from tilenet.readers.guards import Missing
from tilenet.region import Roi
from tilenet.resolution import refuse_both
from tilenet.sizes import whole_number

# More threads than any processor has.
MOST_THREADS = 4096
# Options that are a single number or text: name, type, and what an error message asks for.
KINDS = (
    ("threshold", Real, "a number"),
    ("least_depth", Real, "a number between 0 and 1"),
    ("link", Real, "a number above 0, and at most 1"),
    ("mpp", Real, "micrometres per pixel, a number"),
    ("axes", str, "letters of tczyx, one per axis"),
)
# What a store and an array can be.
StoredOutput = Literal["mask", "both"]
ArrayOutput = Literal["mask", "probabilities", "logits"]


class LazySettings(TypedDict, total=False):
    """Types of the keyword arguments that `segment`, `batch` and `lazy` all take."""

    level: int | None
    mpp: float | None
    axes: str | None
    pixel_size: float | str | Sequence[float] | None
    channels: int | str | Sequence[int | str] | None
    tile: int | Sequence[int] | None
    memory: int | str | None
    threads: int | None
    device: str | None
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] | None
    engine: Literal["auto", "plain", "fast"] | None
    scaling: Mapping[str, Any] | str | None
    threshold: float | None
    probability_dtype: Literal["float32", "float16", "float64"] | None
    missing: Missing | None
    strict: bool


class RunSettings(LazySettings, total=False):
    """Those that `segment` and `batch` take."""

    batch: int | None
    roi: Roi | None
    tissue: Any
    least_depth: float | None
    link: float | None


class BatchSettings(RunSettings, total=False):
    """Those that `batch` passes on to each run."""

    output: StoredOutput | None


@dataclass(frozen=True)
class Options:
    """The options of a run; None means not given. See `tilenet.segment`."""

    level: int | None = None
    mpp: float | None = None
    axes: str | None = None
    # One number or its text become those of y and x.
    pixel_size: float | str | Sequence[float] | None = None
    # Channel numbers, or channel names of the image; `as_network_input` resolves names to numbers.
    channels: int | str | Sequence[int | str] | None = None
    tile: int | Sequence[int] | None = None
    block: int | Sequence[int] | None = None
    batch: int | None = None
    # Bytes; a text such as "4GB" becomes their number.
    memory: Any = None
    threads: int | None = None
    device: str | None = None
    precision: str | None = None
    engine: str | None = None
    threshold: float | None = None
    output: str | None = None
    least_depth: float | None = None
    link: float | None = None
    probability_dtype: str | None = None
    # A scaling rule, or its command-line text.
    scaling: Any = None
    missing: Missing | None = None
    roi: str | Sequence[Any] | None = None
    tissue: Any = None
    # The resampling factor that follows from level and mpp.
    factor: tuple[Any, ...] | None = None
    # `ObjectRule.spacing`, which follows from the image.
    spacing: tuple[float, ...] | None = None
    # Changes no mask, and is in no record.
    strict: bool = False

    def __post_init__(self) -> None:
        """Convert numbers and sequences of any kind to plain Python ones; refuse values that no run accepts."""
        for option in fields(self):
            if isinstance(value := getattr(self, option.name), str | Mapping) and not value:
                raise SettingsError(f"{option.name} is empty. Give a value, or leave it out")
        put = partial(object.__setattr__, self)  # the class is frozen
        for name in ("tile", "block", "channels"):
            put(name, _plain(getattr(self, name), name, texts=name == "channels"))
        if isinstance(value := self.channels, int | str):
            put("channels", parse_channels(value) if isinstance(value, str) else (value,))
        if self.pixel_size is not None:
            put("pixel_size", parse_pixel_size(self.pixel_size))
        if isinstance(self.memory, str):
            put("memory", parse_bytes(self.memory))
        for name, least in (("level", 0), ("threads", 1), ("batch", 1), ("memory", LEAST_MEMORY)):
            if (value := getattr(self, name)) is not None:
                put(name, whole_number(value, name, least))
        if self.threads is not None and self.threads > MOST_THREADS:
            raise SettingsError(f"threads {self.threads}: give {MOST_THREADS} at most")
        for name, kind, what in KINDS:
            put(name, _of_kind(getattr(self, name), name, kind, what))
        if self.factor is None:
            refuse_both(self.level, self.mpp)
        if self.scaling is not None:
            put("scaling", _rule(self.scaling))
        if self.missing not in (None, *get_args(Missing)):
            raise SettingsError(f"missing {self.missing!r}: give one of {', '.join(get_args(Missing))}")

    @property
    def of_image(self) -> dict[str, Any]:
        """Those with which the image is opened, by `open_image`."""
        level, missing = self.level or 0, self.missing or "error"
        return {"level": level, "axes": self.axes, "pixel_size": self.pixel_size, "missing": missing}

    def filled_from(self, record: Mapping[str, Any]) -> Options:
        """Return the options with those not given filled in from a run record."""
        unsaid = {f.name for f in fields(self) if getattr(self, f.name) is None}
        # Only the record of objects in pixels of unequal sides has a spacing.
        said: dict[str, Any] = {k: v for k, v in {"spacing": (), **record}.items() if k in unsaid}
        said |= {k: tuple(v) for k, v in said.items() if isinstance(v, list)}
        return replace(self, **said)


def parameters_of(settings: type) -> list[Parameter]:
    """Return the parameters that ``**settings`` stands for, with their types and the defaults of `Options`."""
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(Options, name), annotation=kind.__forward_arg__)
        for name, kind in settings.__annotations__.items()
    ]


def parse_channels(text: str) -> tuple[int | str, ...]:
    """Parse comma-separated channel numbers and names.

    >>> parse_channels("DAPI, 2")
    ('DAPI', 2)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise SettingsError(f"channels {text!r} are not numbers or names with commas between them, such as 0,2 or DAPI")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def parse_tissue(text: str) -> bool | str:
    """Return the path of a mask of tissue, or of drawn regions, or True for ``auto``: find the tissue in the image."""
    return text == "auto" or text


def parse_integers(text: str, name: str = "") -> tuple[int, ...]:
    """Parse comma-separated integers; `name` says in an error what they are."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise SettingsError(f"{name}{text!r} is not integers with commas between them, such as 1 or 1,2,2") from error


def parse_sides(text: str) -> int | tuple[int, ...]:
    """Parse one side, or comma-separated sides.

    >>> parse_sides("512"), parse_sides("32,256,256")
    (512, (32, 256, 256))
    """
    sides = parse_integers(text, "tile ")
    return sides[0] if len(sides) == 1 else sides


def checked_output(output: str | None, *, objects: bool, stored: bool) -> str | None:
    """Return the `output` that a run record has; `SettingsError` if objects, a store or an array cannot be that."""
    if objects:
        if output not in (None, "mask"):
            raise SettingsError(f"objects and output {output!r}: give only one of them")
        return "objects"
    fitting = get_args(StoredOutput if stored else ArrayOutput)
    if (output or "mask") not in fitting:
        where = "a store" if stored else "an array"
        raise SettingsError(f"output {output!r}: {where} can be {' or '.join(fitting)}")
    return output


def _plain(value: Any, name: str, *, texts: bool) -> Any:
    """Convert an integer to int, or a sequence of integers (and, with `texts`, strings) to a tuple."""
    if value is None or (texts and isinstance(value, str)):
        return value
    try:
        if hasattr(value, "__index__") and not hasattr(value, "__len__"):
            return int(index(value))
        return tuple(each if texts and isinstance(each, str) else int(index(each)) for each in value)
    except TypeError as error:
        raise SettingsError(f"{name} {value!r}: neither a whole number nor a sequence of them") from error


def _rule(scaling: Any) -> dict[str, Any]:
    """Return a rule for scaling, given as a mapping or as text, as plain values that JSON can hold."""
    rule = plain(parse_scaling(scaling))
    if not isinstance(rule, dict):
        raise SettingsError(f"scaling {rule!r}: give a rule, such as {{'method': 'none'}}, or its text")
    return rule


def _of_kind(value: Any, name: str, kind: type, what: str) -> Any:
    """Return a number or a text of a kind, None for None; a number of NumPy's, which JSON cannot hold, as Python's."""
    if value is None:
        return None
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, Real) and not isfinite(value)):
        raise SettingsError(f"{name} {value!r}: give {what}")
    return value if isinstance(value, str | int | float) else float(value)  # type: ignore[arg-type]
