"""Haematoxylin, DAB and holes, painted onto images of stained tissue.

Colour images of nuclei are mostly purple. Where the labels say what is a nucleus, the same
tissue can be shown as immunohistochemistry does: blue nuclei in brown cytoplasm, or some of
the nuclei brown. Stains absorb light, so they add up as optical densities. And it can be shown
with holes (vacuoles, fat, gaps), which are bright and round as nuclei are in fluorescence.

References
----------
A. Ruifrok, D. Johnston: Quantification of histochemical staining by color deconvolution.
Analytical and Quantitative Cytology and Histology 2001. (The two stain vectors.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Random = np.random.Generator
HAEMATOXYLIN, DAB = (0.65, 0.70, 0.29), (0.27, 0.57, 0.78)
DARKEST, DENSEST = 0.05, 2.6


def is_coloured(image: Tensor) -> bool:
    """Tell whether the three channels of an image (3, *n) differ."""
    return len(image) == 3 and not torch.equal(image[0], image[1])


def paint_dab(x: Tensor, nuclei: Tensor, rng: Random) -> Tensor:
    """Return a crop as if stained with haematoxylin and DAB.

    Parameters
    ----------
    x : Tensor
        (3, h, w) float32, scaled so that 1 is white.
    nuclei : Tensor
        (h, w) float32, 1 inside nuclei.
    rng : numpy.random.Generator
        Decides where and how much DAB there is, and the exact colours.
    """
    density = -torch.log(x.clamp(DARKEST, 1)).mean(0) * 1.6
    soft = functional.avg_pool2d(nuclei[None, None], 5, 1, 2)[0, 0]  # so that no outline is drawn
    usual = float((density * soft).sum() / (soft.sum() + 1))
    density = density * (rng.uniform(0.45, 1.0) / max(usual, 0.25))
    patches = torch.sigmoid(_field(x.shape[-2:], int(rng.integers(2, 8)), rng) * rng.uniform(1, 5))
    blue = density * (soft * rng.uniform(0.7, 1.3) + (1 - soft) * rng.uniform(0.2, 0.6))
    if rng.random() < 0.7:
        brown = _cytoplasm(density, soft, patches, rng)
    else:
        stained = soft * (patches > 0.5)
        brown = rng.uniform(0.6, 2.0) * density * stained + rng.uniform(0, 0.15) * patches
        blue = blue * (1 - stained * rng.uniform(0.3, 0.9))
    brown = brown.clamp_max(DENSEST)
    return torch.exp(-1.5 * blue * _colour(HAEMATOXYLIN, 0.12, rng) - 1.3 * brown * _colour(DAB, 0.1, rng))


def paint_holes(x: Tensor, nuclei: Tensor, rng: Random) -> Tensor:
    """Return a crop (as for `paint_dab`) with white holes of one size, from specks to gaps, where no nucleus is."""
    side = max(x.shape[-2:])
    points = round(math.exp(rng.uniform(math.log(3), math.log(max(4, side / 5)))))
    steepness = side / points * rng.uniform(0.5, 2)
    holes = torch.sigmoid((_field(x.shape[-2:], points, rng) - rng.uniform(0.2, 1.6)) * steepness)
    holes = holes * (1 - functional.max_pool2d(nuclei[None, None], 3, 1, 1)[0, 0])
    white = torch.from_numpy(rng.normal(1, 0.04, (3, 1, 1)).astype(np.float32))
    return x * (1 - holes) + white * holes


def _cytoplasm(density: Tensor, soft: Tensor, patches: Tensor, rng: Random) -> Tensor:
    texture = _field(density.shape, max(density.shape) // int(rng.integers(2, 10)) + 2, rng)
    base = rng.uniform(0.1, 0.7) + density * rng.uniform(0.3, 1)
    outside = 1 - soft * rng.uniform(0.6, 1.0)
    strength = math.exp(rng.uniform(math.log(0.5), math.log(4.0)))
    brown: Tensor = strength * base * patches * outside * (1 + rng.uniform(0, 0.5) * texture).clamp_min(0)
    return brown


def _field(shape: torch.Size, points: int, rng: Random) -> Tensor:
    """Return smooth noise of that shape, from a square grid of so many points a side."""
    grid = torch.from_numpy(rng.standard_normal((1, 1, points, points), np.float32))
    field: Tensor = functional.interpolate(grid, tuple(shape), mode="bicubic", align_corners=True)[0, 0]
    return field


def _colour(stain: tuple[float, ...], spread: float, rng: Random) -> Tensor:
    vector = np.array(stain) / np.linalg.norm(stain) * np.exp(rng.normal(0, spread, 3))
    return torch.from_numpy(vector.astype(np.float32))[:, None, None]
