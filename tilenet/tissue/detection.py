"""Tissue detection: a coarse tissue map of a slide, so that bare glass need not be computed.

In bright field, a cell of the map is tissue if the saturation of its mean colour is above Otsu's
threshold [1]. The threshold is taken on a logarithmic scale, because glass is an order of magnitude
paler than the palest tissue. In fluorescence, a cell is tissue if any channel is brighter than the
triangle threshold [2], which was designed for histograms with one peak (the background) and a long
tail. Small holes are closed, and the map is dilated by the network's context, so that a pixel outside
the map depends on no tissue at all; the map also says which cells have tissue themselves.

[1] N. Otsu, IEEE Trans. Sys. Man. Cyber. 9 (1979). [2] G. W. Zack et al., J. Histochem. Cytochem. 25 (1977).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu, threshold_triangle
from skimage.morphology import dilation, footprint_rectangle, remove_small_holes

from tilenet.errors import ImageError, SettingsError, counted_of
from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div
from tilenet.plan import Plan
from tilenet.readers import open_image
from tilenet.readers.image import Image
from tilenet.store import TissueMap, refuse_unfinished
from tilenet.store.tissue_map import MOST_CELLS
from tilenet.tissue.cells import Means, any_of, cells_of, coarsest, mean_of, pixels_read, reduced

# Lower and upper bound on Otsu's threshold: saturation below the first is noise of the glass, above the second it is
# never glass. Unbounded, Otsu would split pale from strong tissue where there is no glass, and noise where there is
# nothing else.
PALEST = (0.03, 0.1)
# Keeps the logarithm of zero saturation finite: one step of 8 bits.
STEP = 1 / 256
# Holes of up to this many cells are closed.
HOLE = 64
# `tilenet plan` searches for tissue only if that reads at most this many pixels (a second or two); a run that reads
# more says so in the log.
CHEAP = 2**26
LOG = logging.getLogger("tilenet")

Cells = NDArray[np.bool_]


@dataclass(frozen=True)
class Tissue:
    """A tissue map, and how it was found."""

    map: TissueMap
    # JSON values: ``method`` (``saturation``, ``intensity`` or ``given``) and ``looked_at`` (shape of the level or mask
    # that was read); for tissue that was found ``threshold`` (one per channel), for that of drawn regions ``regions``
    # (how many), and for both ``dilated`` (pixels along y and x).
    facts: dict[str, Any]
    # The facts as text for the user.
    text: str

    def widened(self, margin: tuple[int, int]) -> Tissue:
        """Return the same tissue with the `margin` px of context that a network sees around it, which is no tissue."""
        own, covers = self.map.tissue, self.map.covers
        radius = [ceil_div(r * n, side) for r, n, side in zip(margin, own.shape, covers, strict=True)]
        square = footprint_rectangle([2 * r + 1 for r in radius], decomposition="separable")  # type: ignore[no-untyped-call]
        cells = dilation(own, square, mode="min")
        return replace(self, map=TissueMap(cells, covers, own), facts=self.facts | {"dilated": list(margin)})

    def to_json(self, plan: Plan) -> dict[str, Any]:
        """Return what the output records about tissue, including how many blocks of a plan are skipped."""
        with_tissue = self.map.blocks_with_tissue(plan)
        planes = len(plan) // with_tissue.size
        return {
            **self.facts,
            "tissue": round(self.map.fraction, 6),
            "sha256": self.map.sha256,
            "blocks": len(plan),
            "skipped_blocks": planes * int((~with_tissue).sum()),
            "skipped": round(1 - self.map.fraction_in_blocks(plan), 6),
        }


@dataclass(frozen=True)
class Search:
    """How a run finds tissue."""

    # What the run record keeps: None if the run does not use tissue, else the ``method`` (``auto`` or ``given``) and,
    # for a given map, its checksum.
    rule: dict[str, Any] | None
    # With all channels of a colour picture, else the chosen ones.
    image: Image
    # The network's context along y and x, in pixels.
    margin: tuple[int, int]
    # The user's own map. None for a resumed run, too, which takes it from its output: `run` refuses to search then.
    given: Tissue | None = None

    def run(self) -> Tissue | None:
        """Return the tissue, None if the run does not use it; reads a coarse level unless a map was given.

        `SettingsError` if the rule is that of a map that is not here.
        """
        if self.rule is None or self.given is not None:
            return self.given
        if self.rule.get("method") == "given":
            raise SettingsError(
                f"{self.image.name}: the tissue mask of this run is the user's own. Give it again (--tissue MASK)"
            )
        return find(self.image, self.margin)

    @property
    def cheap(self) -> bool:
        """Whether the search reads at most `CHEAP` pixels."""
        return self.given is not None or pixels_read(self.image) <= CHEAP


def search(wanted: Any, image: Image, *, channels: Sequence[int] | None, footprint: Footprint) -> Search:
    """Return how a run finds tissue; reads the user's mask, if one is given.

    `wanted` is True to find tissue in the image, which has all its channels; a mask of the image's plane (path or
    array), of any size, nonzero where there is tissue; the `Tissue` of the user's regions; the rule of a run record; or
    False or None to skip nothing. `channels` are those chosen for the network. `SettingsError` or `ImageError` if a
    mask does not have the proportions of the image, or is none.
    """
    # Each channel once: a grey image may feed every input of a network.
    looked_at = image if image.is_color or channels is None else image.with_channels(sorted(set(channels)))
    margin = footprint.margin[-2], footprint.margin[-1]
    if wanted is None or wanted is False:
        return Search(None, looked_at, margin)
    if wanted is True or isinstance(wanted, Mapping):
        return Search({"method": "auto"} if wanted is True else dict(wanted), looked_at, margin)
    found = wanted.widened(margin) if isinstance(wanted, Tissue) else read_mask(wanted, image)
    return Search({"method": "given", "sha256": found.map.sha256}, looked_at, margin, found)


def is_dark(image: Image) -> bool:
    """Return whether a colour picture has a dark background, as fluorescence has; False where telling is not cheap."""
    cells = cells_of(image.plane_shape())
    return pixels_read(image) <= CHEAP and _dark(reduced(coarsest(image, cells), cells, mean_of))


def _dark(means: Means) -> bool:
    return float(np.median(means.max(axis=0))) < 128


def find(image: Image, margin: tuple[int, int]) -> Tissue:
    """Find the tissue on an image, dilated by the `margin` px of context that a network sees.

    `ImageError` if the image is neither a colour picture in bright field, nor has a dark background.
    """
    covers = image.plane_shape()
    coarse = coarsest(image, cells_of(covers))
    if (n := prod(coarse.box_shape)) > CHEAP:
        LOG.info("%s: has no small level: %d px are read to find tissue", image.name, n)
    means = reduced(coarse, cells_of(covers), mean_of)
    colour = image.is_color and not _dark(means)
    if image.is_color and not colour:  # fluorescence stored as a picture
        means = means.max(axis=0, keepdims=True)
    cells, thresholds = _of_saturation(means) if colour else _of_intensity(means, image.name)
    own = remove_small_holes(cells, max_size=HOLE)
    method, view = "saturation" if colour else "intensity", coarse.plane_shape()
    facts = {"method": method, "threshold": thresholds, "looked_at": list(view)}
    above = ", ".join(f"{threshold:.4g}" for threshold in dict.fromkeys(thresholds))
    found = Tissue(TissueMap(own, covers), facts, f"by {method} above {above} on {view[0]} x {view[1]} px")
    return found.widened(margin)


def remark(found: Tissue, plan: Plan) -> tuple[int, str]:
    """Return a log level and a message for the user about the skipped blocks."""
    facts = found.to_json(plan)
    skipped, blocks = facts["skipped_blocks"], facts["blocks"]
    if skipped == blocks:
        told = "there is none in what is segmented, so that all of the mask is background"
        return logging.WARNING, f"{found.text}: {told}"
    return (
        logging.INFO,
        f"{found.text}: {counted_of(skipped, blocks, 'block')} skipped, {facts['skipped']:.0%} of the pixels",
    )


def read_mask(source: str | PathLike[str] | NDArray[Any], image: Image) -> Tissue:
    """Return the user's own mask as a tissue map: every cell with a nonzero pixel has tissue.

    The mask is taken as it is: no hole is closed, nothing is dilated.
    """
    if isinstance(source, str | PathLike):
        source = fspath(source)
        refuse_unfinished(source)
    with open_image(source) as mask:
        shape, covers = mask.plane_shape(), image.plane_shape()
        expected = [shape[0] * covers[1] / covers[0], shape[1] * covers[0] / covers[1]]
        if min(abs(shape[1] - expected[0]), abs(shape[0] - expected[1])) > max(1, 0.01 * max(shape)):
            raise SettingsError(
                f"{mask.name}: is {shape[0]} x {shape[1]} px, and the image {covers[0]} x {covers[1]}. Give a mask of "
                f"the whole image, at any size of its proportions"
            )
        by = max(ceil_div(n, min(side, MOST_CELLS)) for n, side in zip(shape, covers, strict=True))
        cells = reduced(mask, (ceil_div(shape[0], by), ceil_div(shape[1], by)), partial(any_of, name=mask.name))[0]
    facts = {"method": "given", "looked_at": list(shape)}
    return Tissue(TissueMap(cells.astype(bool), covers), facts, f"as {mask.name} has it")


def _of_saturation(means: Means) -> tuple[Cells, list[float]]:
    """Return the cells with tissue, and the threshold, given mean colours (3, *cells)."""
    brightest = means.max(axis=0)
    saturation = (brightest - means.min(axis=0)) / np.maximum(brightest, 1)
    logarithm = np.log(saturation + STEP)
    otsu = float(np.exp(threshold_otsu(logarithm)) - STEP) if np.ptp(logarithm) else 0.0  # type: ignore[no-untyped-call]
    threshold = min(max(otsu, PALEST[0]), PALEST[1])
    return saturation > threshold, [round(threshold, 6)]


def _of_intensity(means: Means, name: str) -> tuple[Cells, list[float]]:
    """Return the cells with tissue in any channel, and the thresholds, given mean intensities (C, *cells)."""
    cells, thresholds = np.zeros(means.shape[1:], bool), []
    for channel, of_channel in enumerate(means):
        finite = of_channel[np.isfinite(of_channel)]
        if not finite.size or not np.ptp(finite):
            threshold = float(finite.max(initial=0))
        else:
            _refuse_bright(finite, f"{name}: channel {channel}" if len(means) > 1 else name)
            threshold = float(threshold_triangle(finite))  # type: ignore[no-untyped-call]
        # A cell with a NaN counts as tissue: its block is computed, and fails as it would without a tissue map.
        cells |= ~(of_channel <= threshold)
        thresholds.append(round(threshold, 6))
    return cells, thresholds


def _refuse_bright(intensity: Means, name: str) -> None:
    counts, edges = np.histogram(intensity, 256)
    commonest, lowest, highest = (float(n) for n in (edges[counts.argmax()], edges[0], edges[-1]))
    if commonest - lowest > highest - commonest:
        raise ImageError(
            f"{name}: most of it is bright ({commonest:.4g}, in {lowest:.4g} to {highest:.4g}), so that tissue "
            f"cannot be told from the background. Give a mask of your own (--tissue mask.png), or leave --tissue out"
        )
