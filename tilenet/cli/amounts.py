"""What ``tilenet export`` says of the polygons and tables that it wrote: as values for JSON, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilenet.export.in_regions import InRegion
    from tilenet.export.totals import Measured, Outlined

# Volumes below so many mm3 have densities per 1,000 um3: those per mm3 would be many millions.
SMALL = 1e-3


def polygons_said(found: Outlined, out: Path | None, said: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what polygons amount to as a dict and as text; `said` are the options that they were written with."""
    facts = {"out": str(out), "features": dict(found.features), "vertices": found.vertices, "left_out": found.left_out}
    counted = _counts(found.features, kind=_kind(objects=found.objects, volumes=found.volumes))
    return facts, f"{out}: {counted}, {found.vertices} vertices{_left_out(found.left_out, said)}"


def table_said(found: Measured, out: Path | None, said: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what a table amounts to as a dict and as text; `said` are the options that it was written with."""
    kind = _kind(objects=found.objects)
    text = f"{out}: {_counts(found.counts, kind=kind)}{_per(found, kind)}{_positive(found)}"
    lines = [text + _left_out(found.left_out, said), *(_region(region, kind) for region in found.regions)]
    return {"out": str(out), **_facts_of(found, said)}, "\n".join(lines)


def _facts_of(found: Measured, said: Mapping[str, Any]) -> dict[str, Any]:
    space, density = _density(found)
    facts = {
        "counts": dict(found.counts),
        "left_out": found.left_out,
        "area_px": dict(found.area_px),
        "pixel_um2": found.pixel_um2,
        "voxel_um3": found.voxel_um3,
        f"per_{space}": density,
    }
    if found.tissue_share is not None:
        facts |= _facts_of_tissue(found)
    if said["positive"]:
        facts |= {"positive": dict(found.positive), "judged": dict(found.judged)}
    if said["within"]:
        facts["regions"] = [
            {"name": region.name, "counts": dict(region.counts), "mm2": region.mm2, "per_mm2": _rounded(region.per_mm2)}
            | (_facts_of_tissue(region) if found.tissue_share is not None else {})
            | ({"positive": dict(region.positive), "judged": dict(region.judged)} if said["positive"] else {})
            for region in found.regions
        ]
    return facts


def _facts_of_tissue(counted: Measured | InRegion) -> dict[str, Any]:
    of_tissue = _rounded(counted.per_mm2_of_tissue)
    return {
        "in_tissue": dict(counted.in_tissue),
        "tissue_mm2": counted.tissue_mm2,
        "per_mm2_of_tissue": of_tissue,
    }


def _density(found: Measured) -> tuple[str, dict[str, float]]:
    """Return mm2, or mm3 for volumes, and how many there are of each class in one."""
    return ("mm3", _rounded(found.per_mm3)) if found.volumes else ("mm2", _rounded(found.per_mm2))


def _per(found: Measured, kind: str) -> str:
    """Return the densities as text.

    >>> from collections import Counter
    >>> from dataclasses import replace
    >>> from tilenet.export.totals import Measured
    >>> small = Measured("m.csv", Counter(object=26), mask_px=10**6, volumes=True, voxel_um3=0.001)
    >>> _per(small, " objects"), _per(replace(small, mask_px=10**10), " objects")
    (', 26 objects per 1,000 um3', ', 2,600 objects per mm3')
    >>> _per(Measured("m.csv", Counter(cell=1), mask_px=2495800, pixel_um2=1.0), " objects")
    ', 0.401 cell objects per mm2'
    """
    (space, density), of_tissue = _density(found), _rounded(found.per_mm2_of_tissue)
    if found.only_regions and found.mm2 is not None:
        return _per_of_regions(found, of_tissue, kind)
    if not density:
        return ", no density as the pixel size is unknown"
    small = found.mm3 is not None and found.mm3 < SMALL
    return "".join(
        (
            f", {value / 1e6:,.4g} {_what(name, kind)} per 1,000 um3"
            if small
            else f", {_number(value)} {_what(name, kind)} per {space}"
        )
        + (f" ({_number(of_tissue[name])} per mm2 of tissue, {found.tissue_mm2:.4g} mm2)" if of_tissue else "")
        for name, value in sorted(density.items())
        if value
    )


def _per_of_regions(found: Measured, density: Mapping[str, float], kind: str) -> str:
    """Return as text what lies in the regions that alone were looked at, and its densities."""
    counted = {name: n for name, n in sorted(found.in_tissue.items()) if found.counts[name]}
    per = {name: f"{_number(value)} per mm2, " for name, value in density.items()}
    return "".join(
        f", {n} {_what(name, _of(n, kind))} in the drawn regions ({per.get(name, '')}{found.tissue_mm2:.4g} mm2)"
        for name, n in counted.items()
    )


def _number(value: float) -> str:
    """Return a density as text, one below 100 to three digits.

    >>> _number(4879.2), _number(99.96), _number(4.8), _number(0.40312)
    ('4,879', '100', '4.8', '0.403')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return densities to two digits behind the point, those below 1 to three digits.

    >>> _rounded({"cell": 400.6731, "gland": 0.400673})
    {'cell': 400.67, 'gland': 0.401}
    """
    return {name: round(value, 2) if value >= 1 else float(f"{value:.3g}") for name, value in numbers.items()}


def _region(region: InRegion, kind: str) -> str:
    of_tissue = {name: f", {_number(n)} per mm2 of tissue" for name, n in region.per_mm2_of_tissue.items()}
    per = {name: f" ({_number(n)} per mm2{of_tissue.get(name, '')})" for name, n in region.per_mm2.items()}
    counted = ", ".join(
        f"{count} {_what(name, _of(count, kind))}{per.get(name, '')}" for name, count in sorted(region.counts.items())
    )
    size = "" if region.mm2 is None else f", {region.mm2:.4g} mm2"
    size += "" if region.tissue_mm2 is None else f" ({region.tissue_mm2:.4g} mm2 of tissue)"
    return f"  {region.name}{size}: {counted}{_positive(region)}"


def _positive(counted: Measured | InRegion) -> str:
    """Return the share of objects that are positive as text; empty if that was not asked for, or without objects."""
    if not (counted.positive and counted.counts.total()):
        return ""
    positive, judged = counted.positive.total(), counted.judged.total()
    share = f" ({100 * positive / judged:.1f} %)" if judged else ""
    neither = counted.counts.total() - judged
    return f", {positive} of {judged} positive{share}" + (f", {neither} neither" if neither else "")


def _left_out(count: int, said: Mapping[str, Any]) -> str:
    return f", {count} smaller than {said['min_area']} left out" if count else ""


def _kind(*, objects: bool, volumes: bool = False) -> str:
    """Return the words that say what is counted; they follow the name of a class, which may have no plural."""
    return " outlines in planes" if volumes else " objects" if objects else " regions"


def _counts(counts: Mapping[str, int], *, kind: str) -> str:
    """Return the number of shapes of each class as text.

    >>> _counts({"rim": 1, "body": 2}, kind=_kind(objects=False)), _counts({"nucleus": 0}, kind=_kind(objects=True))
    ('2 body regions, 1 rim region', 'no objects')
    >>> _counts({"nucleus": 1}, kind=_kind(objects=True, volumes=True))
    '1 nucleus outline in planes'
    """
    counted = (f"{count} {_what(name, _of(count, kind))}" for name, count in sorted(counts.items()) if count)
    return ", ".join(counted) or f"no{kind}"


def _what(name: str, kind: str) -> str:
    """Return the name of a class and the words of `_kind`; a class that is called object needs no further word.

    >>> _what("nucleus", " objects"), _what("object", " objects"), _what("object", " object")
    ('nucleus objects', 'objects', 'object')
    """
    return kind.strip() if kind.strip().rstrip("s") == name else f"{name}{kind}"


def _of(count: int, kind: str) -> str:
    return kind.replace("s", "", 1) if count == 1 else kind
