"""Pairs of images and labels from a folder, read whole, scaled, and split by seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import ImageError, ImageNotFound, SettingsError
from tilenet.geometry import Box
from tilenet.labels import files_by_stem, is_image, read_labels, spatial_shape
from tilenet.readers import open_image
from tilenet.scaling import resolve


@dataclass(frozen=True)
class Pair:
    """One training image and its labels.

    Attributes
    ----------
    name : str
        Stem of both files.
    image : numpy.ndarray
        (C, *n) float32, scaled.
    label : numpy.ndarray
        (*n) int32.
    """

    name: str
    image: NDArray[np.float32]
    label: NDArray[np.int32]


def find_pairs(folder: str | Path) -> dict[str, tuple[Path, Path]]:
    """Return the paths of image and labels of each stem in ``images/`` and ``labels/``, sorted.

    Raises
    ------
    ImageNotFound
        If a folder is missing or empty, or a file has no partner.
    """
    images, labels = (files_by_stem(Path(folder) / part) for part in ("images", "labels"))
    for stem in sorted({*images, *labels}):
        if stem not in labels:
            raise ImageNotFound(f"{images[stem]}: has no partner in labels/. Add {stem}.tif or take the image away")
        if stem not in images:
            raise ImageNotFound(f"{labels[stem]}: has no partner in images/. Add {stem}.png or take the labels away")
    return {stem: (images[stem], labels[stem]) for stem in sorted(images)}


def read_pair(name: str, image: Path, label: Path, *, scaling: Mapping[str, Any], axes: str | None = None) -> Pair:
    """Read an image, scaled by the rule, and its labels.

    Raises
    ------
    ImageError
        If their shapes differ, or the labels are plainly an image.
    """
    pixels = read_scaled(image, scaling, axes=axes)
    labels = read_labels(label, axes=axes and axes.replace("c", ""))
    if pixels.shape[1:] != labels.shape:
        raise ImageError(
            f"{label}: is {labels.shape}, but {image.name} is {pixels.shape[1:]}. They must be of one size"
        )
    if is_image(labels):
        raise ImageError(
            f"{label}: holds {len(np.unique(labels))} values, most of them in single pixels, as in an image. Put "
            f"numbered objects or classes into labels/"
        )
    return Pair(name, pixels, labels)


def read_scaled(path: str | Path, rule: Mapping[str, Any], *, axes: str | None = None) -> NDArray[np.float32]:
    """Return the pixels of a 2-D or 3-D image (C, *n), scaled by a rule."""
    with open_image(path, axes=axes) as image:
        pixels = image.read_inside(Box.of_shape(image.box_shape))
        scaled = resolve(rule, image).apply(pixels)
    return scaled.reshape(len(scaled), *spatial_shape(scaled.shape[1:], path))


def read_pairs(folder: str | Path, scaling: Mapping[str, Any], *, axes: str | None = None) -> list[Pair]:
    """Read all pairs of a folder; they must agree in channels and number of axes.

    A grey image among colour images gets three equal channels.
    """
    paths = find_pairs(folder)
    pairs = [read_pair(name, *files, scaling=scaling, axes=axes) for name, files in paths.items()]
    channels, first = max(len(p.image) for p in pairs), paths[pairs[0].name][0]
    for p in pairs:
        image = paths[p.name][0]
        if p.label.ndim != pairs[0].label.ndim:
            raise ImageError(
                f"{image}: has {p.label.ndim} axes, {first.name} has {pairs[0].label.ndim}. Use images with the same "
                f"number of axes"
            )
        if len(p.image) != channels and (len(p.image), channels) != (1, 3):
            raise ImageError(f"{image}: has {len(p.image)} channels, others have {channels}. Train on images alike")
    return [Pair(p.name, np.broadcast_to(p.image, (channels, *p.label.shape)), p.label) for p in pairs]


def split(pairs: Sequence[Pair], share: float, *, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return training and validation pairs, drawn by seed; neither list is empty."""
    if len(pairs) < 2:
        raise SettingsError(f"one pair ({pairs[0].name}) cannot be split into training and validation. Add another")
    order = np.random.default_rng(seed).permutation(len(pairs))
    held = {int(i) for i in order[: min(len(pairs) - 1, max(1, round(share * len(pairs))))]}
    return [p for i, p in enumerate(pairs) if i not in held], [p for i, p in enumerate(pairs) if i in held]


def digest_of(pairs: tuple[list[Pair], list[Pair]]) -> str:
    """Return numbers and checksum of the training and validation pairs, which must be the same in a resume."""
    counts = [len(part) for part in pairs]
    digest = hashlib.sha256()
    for p in (*pairs[0], *pairs[1]):
        digest.update(repr((p.name, p.image.shape)).encode())
        digest.update(np.ascontiguousarray(p.image).data)
        digest.update(np.ascontiguousarray(p.label).data)
    return f"{counts[0]} and {counts[1]} for validation ({digest.hexdigest()[:12]})"
