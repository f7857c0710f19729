"""Read pixel sizes and channel names from where each kind of TIFF keeps them."""

from __future__ import annotations

import re
from math import prod
from typing import Any
from xml.etree import ElementTree

from tifffile import PHOTOMETRIC

from tilenet.errors import ImageError
from tilenet.readers.coordinates import MICROMETERS
from tilenet.readers.guards import DAMAGED, check_xml, positive_or_none
from tilenet.readers.image import INKS, RGB
from tilenet.readers.tiff_walk import MOST_DIRECTORIES

# Pixel sizes (um) from resolution tags outside this range are printers' defaults: 72 and 300 dpi are 353 and 85 um.
SANE = (1e-4, 40.0)
CENTIMETER, INCH = 3, 2
# Most tags and attributes of OME-XML: some 20 describe each plane, of which there are 2^18 at most.
MOST_MARKS = 6_000_000
COLOR = (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)


def channel_names(tiff: Any, series: Any, *, n_channels: int) -> tuple[str, ...]:
    """Return a name for each channel; empty where the file gives none."""
    names: list[str] = []
    if series.kind == "ome":
        names = [c.get("Name") or "" for c in _ome_elements(tiff, "Channel")]
    page = series.keyframe
    if len(names) != n_channels and n_channels == 3 and "S" in page.axes and page.photometric in COLOR:
        names = list(RGB)
    if len(names) != n_channels and n_channels == len(INKS) and page.photometric == PHOTOMETRIC.SEPARATED:
        names = list(INKS)
    return tuple(names) if len(names) == n_channels else ("",) * n_channels


def finest_sizes(tiff: Any, series: Any) -> dict[str, float | None]:
    """Return the pixel size of the finest level in micrometres, by axis."""
    page = tiff.pages.first
    if series.kind == "ome":
        size = _of_ome(tiff)
    elif tiff.is_svs:
        match = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", page.description)
        size = {a: positive_or_none(match.group(1)) for a in "yx"} if match else {}
    elif tiff.is_imagej:
        size = _of_imagej(tiff.imagej_metadata or {}, page)
    else:
        size = {}
    return size if any(size.values()) or tiff.is_imagej else _of_tags(series.keyframe)


def _of_ome(tiff: Any) -> dict[str, float | None]:
    pixels = next(iter(_ome_elements(tiff, "Pixels")), {})
    size = {}
    for axis in "ZYX":
        value = positive_or_none(pixels.get(f"PhysicalSize{axis}"))
        unit = MICROMETERS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size[axis.lower()] = value * unit if value and unit else None
    return size


def check_ome(tiff: Any, *, name: str) -> list[str]:
    """Refuse implausible OME-XML, and return the names of the other files that hold parts of the image."""
    check_xml(tiff.ome_metadata, f"{name}: its OME-XML", DAMAGED, most=MOST_MARKS)
    elements = ElementTree.fromstring(tiff.ome_metadata).iter()
    files = []
    for element in elements:
        counts = [int(element.get(k, 1)) for k in ("SizeC", "SizeZ", "SizeT", "NumPlanes", "PlaneCount")]
        if prod(max(n, 1) for n in counts) > MOST_DIRECTORIES:
            raise ImageError(f"{name}: its OME-XML says that it has more than {MOST_DIRECTORIES} planes. It is damaged")
        files.append(element.get("FileName", ""))
    others = sorted({f for f in files if f and f != tiff.filename})
    # Only files in the same folder: a path in the metadata of an image must not choose which file is opened.
    wrong = [f for f in others if {"/", "\\", ":"} & set(f)]
    if wrong:
        raise ImageError(f"{name}: its OME-XML names {wrong[0]!r}, which is not beside it. Correct its metadata")
    return others


def _ome_elements(tiff: Any, tag: str) -> list[dict[str, str]]:
    """Return the attributes of all elements with some tag in the first image."""
    root = ElementTree.fromstring(tiff.ome_metadata)
    image = next((e for e in root if e.tag.endswith("}Image") or e.tag == "Image"), root)
    return [dict(e.attrib) for e in image.iter() if e.tag.rpartition("}")[2] == tag]


def _of_imagej(metadata: dict[str, Any], page: Any) -> dict[str, float | None]:
    unit = MICROMETERS.get(str(metadata.get("unit", "")).replace("\\u00B5", "µ"))
    if unit is None:
        return {}
    spacing = positive_or_none(metadata.get("spacing"))
    return _plausible(_resolution(page, unit) | {"z": spacing * unit if spacing is not None else None})


def _of_tags(page: Any) -> dict[str, float | None]:
    unit = {CENTIMETER: 1e4, INCH: 2.54e4}.get(_tag(page, "ResolutionUnit"))
    return _plausible(_resolution(page, unit)) if unit else {}


def _resolution(page: Any, unit: float) -> dict[str, float | None]:
    """Return pixel sizes in micrometres from the resolution tags, which count pixels per `unit` micrometres."""
    found = {a: _inverse(_tag(page, t)) for a, t in (("y", "YResolution"), ("x", "XResolution"))}
    return {a: n * unit if n is not None else None for a, n in found.items()}


def _plausible(sizes: dict[str, float | None]) -> dict[str, float | None]:
    """Return sizes, or none of them if that along y or x is not sane: the one along z has the same unit."""
    in_plane = [size for axis in "yx" if (size := sizes[axis]) is not None]
    return sizes if all(SANE[0] <= size <= SANE[1] for size in in_plane) else {}


def _tag(page: Any, name: str) -> Any:
    tag = page.tags.get(name)
    return tag.value if tag is not None else None


def _inverse(resolution: Any) -> float | None:
    """Return units per pixel from a resolution tag, which is a fraction of pixels per unit."""
    if not isinstance(resolution, tuple) or len(resolution) != 2 or not resolution[0]:
        return None
    return float(resolution[1]) / float(resolution[0])
