"""Crops of training images, deformed and recoloured at random.

A crop is resampled only once: flip, turn, zoom, stretch and elastic deformation become one map of
coordinates, at which the image is sampled linearly and its target by nearest neighbour. Coordinates
outside the image are mirrored, without repeating the edge, as in prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tilenet.card import parse_scaling
from tilenet.training.recipe import Recipe
from tilenet.training.stain import add_mirrored_nuclei, paint_holes, paint_stains

Random = np.random.Generator
# Share of the repainted crops of fluorescence to which more nuclei are added first.
CROWDED = 0.6


def draw_crop(
    image: Tensor,
    target: Tensor,
    *,
    shape: Sequence[int],
    lost: Sequence[int],
    recipe: Recipe,
    rng: Random,
    look: str = "other",
) -> tuple[Tensor, Tensor]:
    """Return a random crop (C, *shape) and its target (2, *(shape - 2 lost)).

    They are drawn from an image (C, *n), scaled, and a target (2, *n), class and weight, all float32. `shape` is one
    that the network takes; the network's output, and so the target, lacks `lost` pixels at each end. `look` is what the
    image looks like: ``stained``, ``fluorescent`` or ``other`` (`look_of`).
    """
    grid = draw_grid(image.shape[1:], shape, recipe, rng)
    x, y = _read(image, grid, "bilinear"), _read(target, grid, "nearest")
    repainted = {"stained": recipe.dab, "fluorescent": recipe.dyed}.get(look)
    if repainted and rng.random() < repainted:
        if look == "fluorescent" and rng.random() < CROWDED:
            x, y = add_mirrored_nuclei(x, y)
        x, look = paint_stains(x, y[0], rng, look=look), "stained"
        # Keep the hues: nothing else tells pale nuclei from brown tissue.
        recipe = replace(recipe, swap=0, grey=0, tint=0)
    if look == "stained" and recipe.holes and rng.random() < recipe.holes:
        x = paint_holes(x, (y[0] > 0).float(), rng)
    if look != "stained" and rng.random() < recipe.invert:
        x = 1 - x
    inner = (slice(None), *(slice(k, n - k) for k, n in zip(lost, shape, strict=True)))
    return draw_colours(x, recipe, rng), y[inner]


def draw_grid(source: Sequence[int], shape: Sequence[int], recipe: Recipe, rng: Random) -> Tensor:
    """Return the source coordinates of each pixel of a crop: (*shape, axes), in array order."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    if recipe.elastic:
        offsets = offsets + _displacements(shape, recipe, rng)
    matrix = torch.from_numpy(_draw_matrix(len(shape), recipe, rng))
    lossless = recipe.turns != "any" and recipe.zoom == recipe.stretch == 1
    # Of a crop with an even side, the centre lies between two pixels of the axis along which that side is read.
    between = (matrix.abs() @ torch.tensor([(n - 1) / 2 for n in shape]) % 1).tolist()
    centre = torch.tensor([_draw_centre(n, b if lossless else None, rng) for n, b in zip(source, between, strict=True)])
    return offsets @ matrix.T + centre


def _draw_centre(length: int, between: float | None, rng: Random) -> float:
    centre = rng.uniform(0, length - 1)
    # Without zoom and odd angles, pixels of the crop fall on pixels of the image, so that nothing is blurred.
    return centre if between is None else round(centre) + between


def _draw_matrix(ndim: int, recipe: Recipe, rng: Random) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    matrix = np.eye(ndim)
    turn = {"none": 0.0, "right": math.pi / 2 * rng.integers(4), "any": rng.uniform(0, 2 * math.pi)}[recipe.turns]
    scale = math.exp(rng.uniform(-1, 1) * math.log(recipe.zoom))
    c, s = math.cos(turn) / scale, math.sin(turn) / scale
    matrix[-2:, -2:] = [[c, -s], [s, c]]
    if recipe.stretch > 1:
        matrix[-2:, -2:] = matrix[-2:, -2:] @ _draw_stretch(recipe.stretch, rng)
    if recipe.flips:
        matrix = matrix * rng.choice([-1, 1], ndim)
    return matrix.round(12).astype(np.float32)


def _draw_stretch(most: float, rng: Random) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return a matrix that stretches one direction and squeezes the other, changing their ratio by up to `most`."""
    angle, factor = rng.uniform(0, math.pi), math.exp(rng.uniform(0, 1) * math.log(most) / 2)
    c, s = math.cos(angle), math.sin(angle)
    axes = np.array([[c, -s], [s, c]])
    stretched: np.ndarray[tuple[int, int], np.dtype[np.float64]] = axes @ np.diag([1 / factor, factor]) @ axes.T
    return stretched


def _displacements(shape: Sequence[int], recipe: Recipe, rng: Random) -> Tensor:
    """Return smooth random displacements in the plane y, x: (*shape, axes)."""
    points = rng.normal(0, recipe.elastic, (1, 2, recipe.elastic_grid, recipe.elastic_grid)).astype(np.float32)
    plane = functional.interpolate(torch.from_numpy(points), tuple(shape[-2:]), mode="bicubic", align_corners=True)
    moved = torch.zeros(*shape, len(shape))
    moved[..., -2:] = plane[0].permute(1, 2, 0)
    return moved


def _read(pixels: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Sample (C, *n) at source coordinates (*m, axes), mirrored outside; return (C, *m)."""
    last = torch.tensor([max(1, n - 1) for n in pixels.shape[1:]])
    unit = (grid * (2 / last) - 1).flip(-1)
    read = functional.grid_sample(pixels[None], unit[None], mode=mode, padding_mode="reflection", align_corners=True)
    return read[0]


def draw_colours(x: Tensor, recipe: Recipe, rng: Random) -> Tensor:
    """Return a crop (C, *n) with its channels, intensities and sharpness changed at random."""
    if len(x) > 1:
        x = _mix_channels(x, recipe, rng)
    if recipe.intensity:
        gamma = math.exp(rng.normal(0, recipe.intensity))
        x = torch.where(x > 0, x.clamp_min(1e-6) ** gamma, x)
        x = x * math.exp(rng.normal(0, recipe.intensity)) + rng.normal(0, recipe.intensity / 3)
    if rng.random() < recipe.noise:
        x = _blurred(x, rng.uniform(0.5, 1.6)) if rng.random() < 0.5 else x + _noise(x.shape, rng)
    clip = parse_scaling(recipe.scaling).get("clip")
    return x.clamp(*clip) if clip else x


def _mix_channels(x: Tensor, recipe: Recipe, rng: Random) -> Tensor:
    mix = np.eye(len(x))
    if rng.random() < recipe.swap:
        mix = mix[rng.permutation(len(x))]
    if rng.random() < recipe.grey:
        mix = np.full_like(mix, 1 / len(x))
    mix = mix + rng.normal(0, recipe.stain, mix.shape)
    if rng.random() < recipe.tint:
        strength = rng.choice([0, 0.3, 1], len(x))
        strength[rng.integers(len(x))] = 1
        mix = strength[:, None] * mix
    mixed: Tensor = torch.tensordot(torch.from_numpy(mix.astype(np.float32)), x, dims=1)
    return mixed


def _noise(shape: Sequence[int], rng: Random) -> Tensor:
    channels = shape[0] if rng.random() < 0.5 else 1
    return torch.from_numpy(rng.standard_normal((channels, *shape[1:]), np.float32)) * rng.uniform(0, 0.08)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Return (C, *n) smoothed by a Gaussian in the plane y, x."""
    t = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-t * t / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    planes = x.reshape(-1, 1, *x.shape[-2:])
    for weight, pad in ((kernel, (4, 4, 0, 0)), (kernel.mT, (0, 0, 4, 4))):
        planes = functional.conv2d(functional.pad(planes, pad, mode="replicate"), weight)
    smooth: Tensor = planes.reshape(x.shape)
    return smooth
