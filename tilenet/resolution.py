"""Which pixels a network is given: a level of the image, and by which factor it is resampled.

This module only computes numbers. The caller gives a level, a pixel size, or neither; the result is a
level and an exact rational factor along y and x. `tilenet.readers.resampled` does the resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, log2

from tilenet.errors import ANEW, SettingsError
from tilenet.geometry import ceil_div

# Pixels whose size is within 10 % of the wanted size are not resampled.
TOLERANCE = Fraction(11, 10)
# Factors are fractions of small integers, so that sums of pixels stay exact. The mask states the pixel size that
# results, which is at most 0.05 % from the wanted one.
LARGEST_DENOMINATOR = 1000
# A smaller factor is refused: the network would see mostly interpolated pixels.
FINEST = Fraction(1, 8)

Factor = tuple[Fraction, Fraction]
# Along y and x, or along z, y and x.
PixelSize = Sequence[float | None]
AS_STORED: Factor = (Fraction(1), Fraction(1))


def downsample_factor(finest: int, coarse: int) -> Fraction:
    """Return how many pixels of the finest level one pixel of a coarser level covers along an axis, by their lengths.

    It is a whole number, mostly a power of two, if one fits the lengths, whose remainder is dropped or rounded up.

    >>> lengths = (2967, 741), (2967, 23), (1001, 501), (1001, 500), (1001, 333), (300, 200)
    >>> [str(downsample_factor(*both)) for both in lengths]
    ['4', '128', '2', '2', '3', '3/2']
    """
    ratio = finest / coarse
    for whole in (2 ** max(0, round(log2(ratio))), max(1, round(ratio))):
        if coarse in (finest // whole, ceil_div(finest, whole)):
            return Fraction(whole)
    return Fraction(finest, coarse)


def coarser_size(size: float | None, finest: int, coarse: int) -> float | None:
    """Return the pixel size of a coarser level along an axis, from that of the finest level and both lengths."""
    return None if size is None else size * float(downsample_factor(finest, coarse))


def size_text(sizes: PixelSize) -> str:
    """Return pixel sizes as text for people.

    >>> size_text([0.5, 0.5]), size_text([2.0, None, 0.25])
    ('0.5 um', '2 x ? x 0.25 um')
    """
    texts = ["?" if size is None else f"{size:.4g}" for size in sizes]
    return f"{texts[0] if len(set(texts)) == 1 else ' x '.join(texts)} um"


@dataclass(frozen=True)
class Resolution:
    """The level that is read, and by which factor it is resampled."""

    # Level of the stored image; 0 is the finest.
    level: int
    # Stored pixels per pixel that the network sees, along y and x.
    factor: Factor = AS_STORED
    # The wanted micrometres per pixel if they decided the choice, else None.
    mpp: float | None = None
    # What was chosen and why, in words for the user.
    text: str = ""
    # Whether the user should see `text`: a pixel size is known, and the caller did not choose a level.
    announced: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the values that the run record keeps."""
        return {"level": self.level, "mpp": self.mpp, "factor": [[f.numerator, f.denominator] for f in self.factor]}


def choose(sizes: Sequence[PixelSize], wanted: float) -> tuple[int, Factor]:
    """Return the coarsest level that is at least as fine as wanted, and its factors along y and x.

    `sizes` are those of each level, finest first; the sizes of the first level must be known.

    >>> choose([(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)], 0.75)
    (1, (Fraction(3, 2), Fraction(3, 2)))
    >>> choose([(0.25, 0.25), (0.52, 0.52)], 0.5)  # within 10 %, so not resampled
    (1, (Fraction(1, 1), Fraction(1, 1)))
    >>> choose([(1.0, 1.0)], 0.5)  # no level is fine enough
    (0, (Fraction(1, 2), Fraction(1, 2)))
    """
    in_plane = [size[-2:] for size in sizes]
    factors = [None if None in size else tuple(_factor(wanted, n) for n in size) for size in in_plane]
    fine = [k for k, f in enumerate(factors) if f is not None and min(f) * TOLERANCE >= 1]
    level = max(fine, default=0)
    y, x = factors[level] or AS_STORED
    near = all(max(f, 1 / f) <= TOLERANCE for f in (y, x))
    return level, AS_STORED if near else (y, x)


def resolve(
    sizes: Sequence[PixelSize],
    *,
    level: int | None = None,
    mpp: float | None = None,
    card_mpp: float | None = None,
    model: str = "the model",
    name: str = "the image",
) -> Resolution:
    """Decide which level is read and how it is resampled, from the caller's wish, the image and the model card.

    `sizes` are micrometres per pixel of each level, finest first: along y and x or, for a network of volumes, z, y and
    x, of which z is only told. If the caller gives neither `level` nor `mpp`, that of the card is used.

    >>> resolve([(0.25, 0.25), (0.5, 0.5)], mpp=0.5).text
    'level 1 (0.5 um/px) as stored, for the 0.5 um/px asked for'
    """
    if mpp is not None and not (isfinite(mpp) and mpp > 0):
        raise SettingsError(f"mpp {mpp:g} is not a number of micrometres per pixel. Give one such as 0.5")
    refuse_both(level, mpp)
    if level is not None:
        return Resolution(level, text=f"level {level}{_um(sizes, level)} as stored, as asked")
    known = None not in sizes[0][-2:]
    if mpp is not None and not known:
        raise SettingsError(
            f"{name}: does not say its pixel size, so mpp means nothing. Give it (--pixel-size), or choose a level "
            f"(--level)"
        )
    wanted = mpp if mpp is not None else card_mpp
    if wanted is None or not known:
        return _as_it_is(sizes, card_mpp=card_mpp, model=model)
    whose = f"the {wanted:g} um/px asked for" if mpp is not None else f"the {wanted:g} um/px that {model} knows"
    level, factor = _chosen(sizes, wanted, f"{name}: has {size_text(sizes[0])}/px at its finest", whose)
    by = " x ".join(f"{float(f):.6g}" for f in dict.fromkeys(factor))
    way = "averaged over" if min(factor) >= 1 else "interpolated, no finer than the file, in steps of"
    how = "as stored" if factor == AS_STORED else f"resampled: {way} {by} px"
    return Resolution(level, factor, wanted, f"level {level}{_um(sizes, level)} {how}, for {whose}", announced=True)


def _chosen(sizes: Sequence[PixelSize], wanted: float, has: str, whose: str) -> tuple[int, Factor]:
    """Do as `choose`, and refuse a wanted size that is out of all proportion to those of the image."""
    try:
        level, factor = choose(sizes, wanted)
    except OverflowError as error:
        remedy = "Give another size (--pixel-size, --mpp), or choose a level (--level)"
        raise SettingsError(f"{has}, whose ratio to {whose} is no number. {remedy}") from error
    if min(factor) < FINEST:
        times = f"{float(1 / min(factor)):.3g} times coarser than {whose}"
        raise SettingsError(f"{has}, {times}. Choose a coarser mpp, or a level (--level)")
    return level, factor


def refuse_both(level: int | None, mpp: float | None) -> None:
    """Raise `SettingsError` if the caller gives a level and a pixel size, which may contradict each other."""
    if level is not None and mpp is not None:
        raise SettingsError(f"level {level} and mpp {mpp:g} both say what to read. Leave one of them out")


def recorded(level: int, factor: Sequence[Sequence[int]], mpp: float | None) -> Resolution:
    """Return the resolution that a run record states.

    >>> recorded(1, [[3, 2], [3, 2]], 0.75).to_json()
    {'level': 1, 'mpp': 0.75, 'factor': [[3, 2], [3, 2]]}
    """
    try:
        y, x = (Fraction(*f) for f in factor)
        sane = min(y, x) > 0
    except (TypeError, ValueError, ZeroDivisionError):
        sane = False
    if not sane:
        raise SettingsError(f"the run record's factor {str(factor)[:60]} was changed. To replace the mask, {ANEW}")
    how = "as stored" if (y, x) == AS_STORED else f"resampled by {float(y):.6g} x {float(x):.6g}"
    return Resolution(level, (y, x), mpp, f"level {level} {how}, as the run was started", announced=mpp is not None)


def _factor(wanted: float, size: float | None) -> Fraction:
    assert size is not None
    if wanted >= size:
        return Fraction(wanted / size).limit_denominator(LARGEST_DENOMINATOR)
    # Below 1, limit the numerator instead of the denominator, for the same relative precision.
    return 1 / Fraction(size / wanted).limit_denominator(LARGEST_DENOMINATOR)


def _as_it_is(sizes: Sequence[PixelSize], *, card_mpp: float | None, model: str) -> Resolution:
    image_says, model_says = None not in sizes[0][-2:], card_mpp is not None
    if image_says:
        why = f"{model} asks for no pixel size. To resample, give --mpp"
    elif model_says:
        why = f"the image does not say its pixel size ({model} knows {card_mpp:g} um/px)"
    else:
        why = "neither the image nor the model says a pixel size"
    return Resolution(0, text=f"level 0{_um(sizes, 0)} as stored: {why}", announced=image_says or model_says)


def _um(sizes: Sequence[PixelSize], level: int) -> str:
    """Return the pixel size of a level as `` (0.5 um/px)``, or an empty text if it is unknown along y or x."""
    size = sizes[level] if level < len(sizes) else (None, None)
    return "" if None in size[-2:] else f" ({size_text(size)}/px)"
