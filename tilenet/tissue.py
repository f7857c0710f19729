"""Where there is tissue: a coarse map of a slide, so that its glass need not be computed.

In bright field tissue is what has colour: its saturation, of the mean colour of a cell of the map,
is above Otsu's threshold [1], taken on a logarithmic scale since glass is an order of magnitude
paler than the palest tissue. In fluorescence it is what is brighter than the triangle threshold
[2], which was made for a histogram of one peak, the background, and a long tail, in any channel.
Small holes are closed, and the map is dilated by the network's context: a pixel outside it
depends on no tissue at all.

[1] N. Otsu, IEEE Trans. Sys. Man. Cyber. 9 (1979). [2] G. W. Zack et al., J. Histochem. Cytochem. 25 (1977).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu, threshold_triangle
from skimage.morphology import dilation, footprint_rectangle, remove_small_holes

from tilenet.cells import Means, any_of, cells_of, coarsest, mean_of, pixels_read, plane_of, reduced
from tilenet.errors import ImageError, SettingsError
from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div
from tilenet.plan import Plan
from tilenet.readers import open_image
from tilenet.readers.image import Image
from tilenet.store import TissueMap, refuse_unfinished
from tilenet.store.tissue_map import MOST_CELLS

# Saturation below the first is the noise of glass, above the second it is never glass, whatever Otsu says:
# he parts pale from strong tissue where there is no glass, and noise where there is nothing else.
PALEST = (0.03, 0.1)
# So that the logarithm of no colour is finite: one step of 8 bits.
STEP = 1 / 256
# Cells of a hole that is closed.
HOLE = 64
# What is looked at without being asked: a second or two of reading.
CHEAP = 2**26
LOG = logging.getLogger("tilenet")

Cells = NDArray[np.bool_]


@dataclass(frozen=True)
class Tissue:
    """A map, and how it was found.

    Attributes
    ----------
    map : TissueMap
        Where there is tissue.
    facts : dict
        ``method`` (``saturation``, ``intensity`` or ``given``), ``threshold`` (one per channel), the
        shape that was looked at, pixels by which it was dilated: for JSON.
    text : str
        The same for people.
    """

    map: TissueMap
    facts: dict[str, Any]
    text: str

    def to_json(self, plan: Plan) -> dict[str, Any]:
        """Return what the output says of it, with the blocks of a plan that are skipped."""
        computed = self.map.computed(plan)
        planes = len(plan) // computed.size
        return {
            **self.facts,
            "tissue": round(self.map.fraction, 6),
            "sha256": self.map.sha256,
            "blocks": len(plan),
            "skipped_blocks": planes * int((~computed).sum()),
            "skipped": round(1 - self.map.part_computed(plan), 6),
        }


@dataclass(frozen=True)
class Search:
    """What a run asks about tissue.

    Attributes
    ----------
    rule : dict or None
        What the run record keeps: None for not at all, else the ``method``, ``auto`` or ``given``, and the
        checksum of the map that was given.
    image : Image
        What is looked at: a colour picture whole, of others the channels that were chosen.
    margin : (int, int)
        The network's context along y and x, in pixels.
    given : Tissue or None
        The user's own map; None too where a run is gone on with, whose map its output has.
    """

    rule: dict[str, Any] | None
    image: Image
    margin: tuple[int, int]
    given: Tissue | None = None

    def run(self) -> Tissue | None:
        """Return the tissue, if that was asked; reads a coarse level of the image."""
        if self.rule is None or self.given is not None:
            return self.given
        return find(self.image, self.margin)

    @property
    def cheap(self) -> bool:
        """Tell whether little would be read."""
        return self.given is not None or pixels_read(self.image) <= CHEAP


def search(wanted: Any, image: Image, *, channels: Sequence[int] | None, footprint: Footprint) -> Search:
    """Return what a run asks about tissue; reads a mask that is given.

    Parameters
    ----------
    wanted : bool, path, array, mapping or None
        True: found in the image. A path or an array: a mask of the image's plane, of any size, not 0 where
        there is tissue. A mapping: the rule of a run record.
    image : Image
        All of the image.
    channels : sequence of int, optional
        Those that were chosen for the network.
    footprint : Footprint
        The network's.

    Raises
    ------
    SettingsError, ImageError
        If the mask that is given has not the shape of the image, or is none.
    """
    # Each once: a grey image may feed every input of a network.
    looked_at = image if image.is_color or channels is None else image.with_channels(sorted(set(channels)))
    margin = footprint.margin[-2], footprint.margin[-1]
    if wanted is None or wanted is False:
        return Search(None, looked_at, margin)
    if wanted is True or isinstance(wanted, Mapping):
        return Search({"method": "auto"} if wanted is True else dict(wanted), looked_at, margin)
    found = read_mask(wanted, image)
    return Search({"method": "given", "sha256": found.map.sha256}, looked_at, margin, found)


def find(image: Image, margin: tuple[int, int]) -> Tissue:
    """Return where there is tissue on an image, as far as a network whose margin is `margin` px would feel it.

    Raises
    ------
    ImageError
        If tissue cannot be told from the background: it is neither a colour picture of bright field, nor is
        the background dark.
    """
    covers = plane_of(image)
    coarse = coarsest(image, cells_of(covers))
    if pixels_read(image) > CHEAP:
        LOG.info("%s: has no small level: %d px are read to find tissue", image.name, pixels_read(image))
    means = reduced(coarse, cells_of(covers), mean_of)
    colour = image.is_color and float(np.median(means.max(axis=0))) >= 128
    if image.is_color and not colour:  # fluorescence stored as a picture
        means = means.max(axis=0, keepdims=True)
    cells, thresholds = _of_saturation(means) if colour else _of_intensity(means, image.name)
    cells = remove_small_holes(cells, max_size=HOLE)
    radius = [ceil_div(r * n, side) for r, n, side in zip(margin, cells.shape, covers, strict=True)]
    square = footprint_rectangle([2 * r + 1 for r in radius], decomposition="separable")  # type: ignore[no-untyped-call]
    cells = dilation(cells, square, mode="min")
    method, view = "saturation" if colour else "intensity", plane_of(coarse)
    facts = {"method": method, "threshold": thresholds, "looked_at": list(view), "dilated": list(margin)}
    above = ", ".join(f"{threshold:.4g}" for threshold in dict.fromkeys(thresholds))
    return Tissue(TissueMap(cells, covers), facts, f"by {method} above {above} on {view[0]} x {view[1]} px")


def remark(found: Tissue, plan: Plan) -> tuple[int, str]:
    """Return what people ought to hear of what is skipped, and how loudly (`logging`)."""
    facts = found.to_json(plan)
    skipped, blocks = facts["skipped_blocks"], facts["blocks"]
    if skipped == blocks:
        return logging.WARNING, f"{found.text}: there is none, so that all of the mask is background"
    return logging.INFO, f"{found.text}: {skipped} of {blocks} blocks are skipped, {facts['skipped']:.0%} of the pixels"


def read_mask(source: str | Path | NDArray[Any], image: Image) -> Tissue:
    """Return a mask of the user's own as a map: every cell with a pixel that is not 0 has tissue.

    It is taken as it is: no hole is closed, nothing is dilated.
    """
    if isinstance(source, str | Path):
        refuse_unfinished(source)
    with open_image(source) as mask:
        shape, covers = plane_of(mask), plane_of(image)
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
    """Return the cells with tissue, and the threshold, of mean colours (3, *cells)."""
    brightest = means.max(axis=0)
    saturation = (brightest - means.min(axis=0)) / np.maximum(brightest, 1)
    logarithm = np.log(saturation + STEP)
    otsu = float(np.exp(threshold_otsu(logarithm)) - STEP) if np.ptp(logarithm) else 0.0  # type: ignore[no-untyped-call]
    threshold = min(max(otsu, PALEST[0]), PALEST[1])
    return saturation > threshold, [round(threshold, 6)]


def _of_intensity(means: Means, name: str) -> tuple[Cells, list[float]]:
    """Return the cells with tissue in any channel, and the thresholds, of mean intensities (C, *cells)."""
    cells, thresholds = np.zeros(means.shape[1:], bool), []
    for channel, of_channel in enumerate(means):
        finite = of_channel[np.isfinite(of_channel)]
        if not finite.size or not np.ptp(finite):
            threshold = float(finite.max(initial=0))
        else:
            _refuse_bright(finite, f"{name}: channel {channel}" if len(means) > 1 else name)
            threshold = float(threshold_triangle(finite))  # type: ignore[no-untyped-call]
        # What is no number is no glass either: it fails as it does without a map.
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
