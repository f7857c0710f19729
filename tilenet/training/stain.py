"""Haematoxylin, DAB and holes, painted onto images of nuclei.

Colour images of nuclei are few and mostly purple. Where labels say which pixels are nuclei, the same cells,
and those in fluorescence images, can be repainted as immunohistochemistry shows them: blue nuclei in brown
cytoplasm or between brown membranes, or some of the nuclei brown. Stains absorb light, so they add up
as optical densities. Tissue can also be given holes (vacuoles, fat, gaps), which are bright and round
like nuclei in fluorescence.

References
----------
A. Ruifrok, D. Johnston: Quantification of histochemical staining by color deconvolution.
Analytical and Quantitative Cytology and Histology 2001. (The two stain vectors.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

Random = np.random.Generator
HAEMATOXYLIN, DAB = (0.65, 0.70, 0.29), (0.27, 0.57, 0.78)
# Transmission below which a pixel counts as no darker; largest density of painted DAB.
DARKEST, DENSEST = 0.05, 2.6


def modality_of(image: Tensor, nuclei: Tensor) -> str:
    """Return what an image (C, *n) looks like: ``stained``, ``fluorescent`` (bright nuclei) or ``other``.

    Only a plane of three channels, which are equal if it is grey, can be other than ``other``. `nuclei` (*n) is nonzero
    in nuclei.
    """
    if image.ndim != 3 or len(image) != 3:
        return "other"
    if not bool((image == image[:1]).all()):
        return "stained"
    inside = nuclei > 0
    if not inside.any() or inside.all():
        return "other"
    return "fluorescent" if image[:, inside].mean() > image[:, ~inside].mean() else "other"


def add_mirrored_nuclei(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Add mirrored copies of the nuclei of a fluorescence crop where there is room; return the crop and its target.

    The crop is (C, h, w), the target (2, h, w): class (0 outside nuclei) and weight.
    """
    for mirrored in ([-1], [-2], [-2, -1]):
        labels, _ = ndimage.label(target[0].flip(mirrored).numpy() > 0)
        taken = ndimage.binary_dilation(target[0].numpy() > 0)
        free = torch.from_numpy((labels > 0) & ~np.isin(labels, np.unique(labels[taken])))
        x, target = (torch.where(free, kept.flip(mirrored), kept) for kept in (x, target))
    return x, target


def paint_stains(x: Tensor, depth: Tensor, rng: Random, *, look: str) -> Tensor:
    """Return a crop as if stained with haematoxylin and DAB.

    The crop is (3, h, w) float32, scaled: of stained tissue, in which 1 is white, or of fluorescence (`look`). The
    depth is (h, w) float32, 0 outside nuclei; values above 1, if any, separate nuclei that touch. `rng` decides where
    and how much DAB there is, and the exact colours.
    """
    soft = functional.avg_pool2d((depth > 0).float()[None, None], 5, 1, 2)[0, 0]  # blurred, so no outline shows
    density = _fluorescence_density(x, soft, rng) if look == "fluorescent" else _density(x)
    usual = float((density * soft).sum() / soft.sum()) if soft.any() else 1.0
    density = density * (math.exp(rng.uniform(math.log(0.25), 0)) / max(usual, 0.25))
    patches = torch.sigmoid(_field(x.shape[-2:], int(rng.integers(2, 8)), rng) * rng.uniform(1, 5) + rng.normal())
    blue = density * (soft * rng.uniform(0.7, 1.3) + (1 - soft) * rng.uniform(0.2, 0.6))
    kind = rng.random()
    if kind < 0.3:
        brown = _cytoplasm(density, soft, patches, rng)
    elif kind < 0.75:
        brown = membranes(depth, rng) + (_stripes(depth.shape, rng) if rng.random() < 0.5 else 0)
        brown = brown * patches * (1 - soft * rng.uniform(0.1, 0.9))
    else:
        stained = soft * (patches > 0.5)
        brown = rng.uniform(0.6, 2.0) * density * stained + rng.uniform(0, 0.15) * patches
        blue = blue * (1 - stained * rng.uniform(0.3, 0.9))
    brown = brown.clamp_max(DENSEST)
    return torch.exp(-1.5 * blue * _colour(HAEMATOXYLIN, 0.12, rng) - 1.3 * brown * _colour(DAB, 0.1, rng))


def paint_holes(x: Tensor, nuclei: Tensor, rng: Random) -> Tensor:
    """Return a crop, in which 1 is white, with white holes outside of nuclei: of similar size, from specks to gaps."""
    side = max(x.shape[-2:])
    points = round(math.exp(rng.uniform(math.log(3), math.log(max(4, side / 5)))))
    steepness = side / points * rng.uniform(0.5, 2)
    holes = torch.sigmoid((_field(x.shape[-2:], points, rng) - rng.uniform(0.2, 1.6)) * steepness)
    holes = holes * (1 - functional.max_pool2d(nuclei[None, None], 3, 1, 1)[0, 0])
    white = torch.from_numpy(rng.normal(1, 0.04, (3, 1, 1)).astype(np.float32))
    stuff = 1 - rng.uniform(0, 0.08) * _field(x.shape[-2:], int(rng.integers(4, 60)), rng).abs()
    return x * (1 - holes) + white * stuff * holes


def _density(x: Tensor) -> Tensor:
    """Return the optical density (h, w) of a crop (3, h, w) of stained tissue."""
    return -torch.log(x.clamp(DARKEST, 1)).mean(0) * 1.6


def _fluorescence_density(x: Tensor, soft: Tensor, rng: Random) -> Tensor:
    """Return an optical density (h, w): the bright nuclei of a fluorescence crop, with fibres around them."""
    shape = x.shape[-2:]
    fibres = _field(shape, [max(shape) // int(rng.integers(3, 12)) + 2, int(rng.integers(2, 20))], rng).abs()
    fibres = fibres.mT.contiguous() if rng.random() < 0.5 and shape[0] == shape[1] else fibres
    return x.mean(0).clamp_min(0) ** rng.uniform(0.5, 1) * soft + (1 - soft) * fibres * rng.uniform(0, 0.4)


def membranes(depth: Tensor, rng: Random) -> Tensor:
    """Return DAB (h, w) of cells that meet halfway between their nuclei: much in membranes, less in cytoplasm."""
    cores = (depth > float(depth.max() > 1)).numpy()
    labels, count = ndimage.label(cores)
    if not count:
        return torch.zeros_like(depth)
    distance, nearest = ndimage.distance_transform_edt(~cores, return_indices=True)
    cells = labels[tuple(nearest)]
    if rng.random() < 0.6:
        cells = cells * (distance < rng.uniform(4, 24))
    edges = np.zeros(cells.shape, np.float32)
    edges[:-1] += cells[:-1] != cells[1:]
    edges[:, :-1] += cells[:, :-1] != cells[:, 1:]
    lines = ndimage.gaussian_filter(edges, rng.uniform(0.7, 1.8))
    inside = ndimage.gaussian_filter((cells > 0).astype(np.float32), 1.5)
    uneven = _uneven(depth.shape, int(rng.integers(3, 20)), rng.uniform(0, 0.6), rng)
    fill = torch.from_numpy(inside) * math.exp(rng.uniform(math.log(0.1), math.log(2.5)))
    return (fill + torch.from_numpy(lines) * rng.uniform(1, 5)) * uneven


def _cytoplasm(density: Tensor, soft: Tensor, patches: Tensor, rng: Random) -> Tensor:
    """Return DAB (h, w) all over the cytoplasm, and less in nuclei."""
    base = rng.uniform(0.1, 0.7) + density * rng.uniform(0.3, 1)
    outside = 1 - soft * rng.uniform(0.6, 1.0)
    strength = math.exp(rng.uniform(math.log(0.5), math.log(4.0)))
    return (
        strength * base * patches * outside * _uneven(density.shape, int(rng.integers(2, 10)), rng.uniform(0, 0.5), rng)
    )


def _uneven(shape: torch.Size, size: int, strength: float, rng: Random) -> Tensor:
    """Return smooth factors around 1 that vary by `strength` over about `size` pixels."""
    return (1 + strength * _field(shape, max(shape) // size + 2, rng)).clamp_min(0)


def _stripes(shape: torch.Size, rng: Random) -> Tensor:
    """Return DAB (h, w) like that of long cells seen from the side: dark, bent lines beside each other."""
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 24)
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    across = (math.cos(angle) * x + math.sin(angle) * y) / period + rng.uniform(0, 2) * _field(shape, 5, rng)
    lines = torch.cos(math.pi * across).abs() ** rng.uniform(4, 20)
    return rng.uniform(0.1, 1) + lines * rng.uniform(0.3, 2) * _uneven(shape, int(rng.integers(10, 40)), 0.8, rng)


def _field(shape: torch.Size, points: int | list[int], rng: Random) -> Tensor:
    """Return smooth noise of a shape, interpolated from a random grid of `points` per side."""
    rows, columns = [points] * 2 if isinstance(points, int) else points
    grid = torch.from_numpy(rng.standard_normal((1, 1, rows, columns), np.float32))
    field: Tensor = functional.interpolate(grid, tuple(shape), mode="bicubic", align_corners=True)[0, 0]
    return field


def _colour(stain: tuple[float, ...], spread: float, rng: Random) -> Tensor:
    vector = np.array(stain) / np.linalg.norm(stain) * np.exp(rng.normal(0, spread, 3))
    return torch.from_numpy(vector.astype(np.float32))[:, None, None]
