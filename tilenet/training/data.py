"""Pairs of images and labels from a folder, read whole, scaled, and split by seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import ImageError, ImageNotFound, SettingsError, counted
from tilenet.evaluation.labels import describe_frames, files_by_stem, frames_of, looks_like_intensities, read_labels
from tilenet.geometry import Box
from tilenet.readers import open_image
from tilenet.scaling import resolve
from tilenet.training.recipe import Recipe

# Which channels of each image are read, by number or name; None for all.
Channels = int | str | Sequence[int | str] | None


@dataclass(frozen=True)
class Pair:
    """One training image, or one frame of a time series, and its labels."""

    # Stem of both files: all frames of a file have the same.
    name: str
    # (C, *n) float32, scaled.
    image: NDArray[np.float32]
    # (*n) int32.
    label: NDArray[np.int32]
    # Its place in the file; None if that holds no other.
    frame: int | None = None


def find_pairs(folder: str | Path) -> dict[str, tuple[Path, Path]]:
    """Return the paths of image and labels of each stem in ``images/`` and ``labels/``, sorted.

    `ImageNotFound` if a folder is missing or empty, or a file has no partner.
    """
    images, labels = (files_by_stem(Path(folder) / part) for part in ("images", "labels"))
    for stem in sorted({*images, *labels}):
        if stem not in labels:
            raise ImageNotFound(f"{images[stem]}: has no partner in labels/. Add {stem}.tif or take the image away")
        if stem not in images:
            raise ImageNotFound(f"{labels[stem]}: has no partner in images/. Add {stem}.png or take the labels away")
    return {stem: (images[stem], labels[stem]) for stem in sorted(images)}


def read_pair(
    name: str,
    image: Path,
    label: Path,
    *,
    scaling: Mapping[str, Any],
    axes: str | None = None,
    channels: Channels = None,
) -> list[Pair]:
    """Read an image, scaled by the rule, and its labels: one pair, or one for each frame of a time series.

    `ImageError` if their shapes differ, pixels are not finite, or the labels are plainly an image.
    """
    pixels = read_scaled(image, scaling, axes=axes, channels=channels)
    labels = read_labels(label, axes=axes and axes.replace("c", ""))
    wanted, found = describe_frames([frame[0] for frame in pixels]), describe_frames(labels)
    if wanted != found:
        raise ImageError(
            f"{label}: is {found}, but {image.name} is {wanted}. They must be of one size, with the same axes (--axes)"
        )
    if any(map(looks_like_intensities, labels)):
        raise ImageError(
            f"{label}: holds {len(np.unique(labels))} values, most of them in single pixels, as in an image. Put "
            f"numbered objects or classes into labels/"
        )
    pairs = [Pair(name, frame, of_frame, k) for k, (frame, of_frame) in enumerate(zip(pixels, labels, strict=True))]
    return pairs if len(pairs) > 1 else [replace(pair, frame=None) for pair in pairs]


def read_scaled(
    path: str | Path, rule: Mapping[str, Any], *, axes: str | None, channels: Channels
) -> list[NDArray[np.float32]]:
    """Return the pixels (C, *n) of each frame of an image, 2-D or 3-D; the rule scales all frames alike."""
    with open_image(path, axes=axes, channels=channels) as image:
        pixels = image.read_inside(Box.of_shape(image.box_shape))
        scaled, along = resolve(rule, image).apply(pixels), image.box_axes
    for values in (pixels, scaled):
        if values.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(values)))):
            raise ImageError(f"{path}: holds values that are not finite ({bad}). Replace them, or leave the image out")
    return frames_of(scaled, along, path)


def read_pairs(
    folder: str | Path, scaling: Mapping[str, Any], *, axes: str | None = None, channels: Channels = None
) -> list[Pair]:
    """Read all pairs of a folder, frame by frame; they must agree in channels and number of axes.

    A grey image among colour images gets three equal channels.
    """
    paths = find_pairs(folder)
    read = (read_pair(name, *files, scaling=scaling, axes=axes, channels=channels) for name, files in paths.items())
    pairs = list(chain.from_iterable(read))
    most, first = max(len(p.image) for p in pairs), paths[pairs[0].name][0]
    for p in pairs:
        image = paths[p.name][0]
        if p.label.ndim != pairs[0].label.ndim:
            raise ImageError(
                f"{image}: has {p.label.ndim} axes, {first.name} has {pairs[0].label.ndim}. Use images with the same "
                f"number of axes"
            )
        if len(p.image) != most and (len(p.image), most) != (1, 3):
            raise ImageError(
                f"{image}: has {len(p.image)} channels, others have {most}. Train on images alike, or choose channels "
                f"(--channels)"
            )
    return [replace(p, image=np.broadcast_to(p.image, (most, *p.label.shape))) for p in pairs]


def chosen_of(
    pairs: list[Pair], recipe: Recipe, leave_out: Collection[str], validate_on: Collection[str]
) -> tuple[list[Pair], list[Pair]]:
    """Return training and validation pairs; raise if a stem names no pair, or if none is left to train on."""
    names, held = {p.name for p in pairs}, set(validate_on)
    if missing := sorted(set(leave_out) - names):
        raise ImageError(f"{missing[0]}: is to be left out, but is not among the data. Check leave_out")
    used = [p for p in pairs if p.name not in set(leave_out)]
    if missing := sorted(held - {p.name for p in used}):
        raise ImageError(f"{missing[0]}: is to be validated on, but is not among the training data")
    if not {p.name for p in used} - held:
        raise SettingsError(f"none of {len(names)} images is left to train on. Leave out or validate on fewer")
    if not held:
        return split(used, recipe.validation, seed=recipe.seed)
    return [p for p in used if p.name not in held], [p for p in used if p.name in held]


def split(pairs: Sequence[Pair], share: float, *, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return training and validation pairs, drawn by seed; neither list is empty.

    Files are drawn, as the frames of one are much alike: of each file, all frames go the same way.
    """
    names = list(dict.fromkeys(p.name for p in pairs))
    if len(names) < 2:
        also = f", whose {len(pairs)} frames are too much alike" if len(pairs) > 1 else ""
        raise SettingsError(f"one pair ({names[0]}{also}) cannot be split into training and validation. Add another")
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[i] for i in order[: min(len(names) - 1, max(1, round(share * len(names))))]}
    return [p for p in pairs if p.name not in held], [p for p in pairs if p.name in held]


def describe_training(pairs: tuple[list[Pair], list[Pair]], scaling: Mapping[str, Any]) -> str:
    """Return in one line which network is trained, and on what."""
    first = pairs[0][0]
    ndim, channels = first.label.ndim, len(first.image)
    numbers = ", ".join(f"{name} {value}" for name, value in scaling.items() if name != "method")
    return (
        f"{ndim}-D network over {'zyx'[-ndim:]} of {counted(channels, 'channel')}: {_counted(pairs[0])} to "
        f"train on, {_counted(pairs[1])} for validation; intensities of each file scaled: {scaling['method']}"
        f"{numbers and f' ({numbers})'}"
    )


def _counted(pairs: Sequence[Pair]) -> str:
    files = len({p.name for p in pairs})
    return counted(files, "image") + (f" of {len(pairs)} frames in all" if files < len(pairs) else "")


def digest_of(pairs: tuple[list[Pair], list[Pair]]) -> str:
    """Return numbers and checksum of the training and validation pairs, which must be the same in a resume."""
    counts = [len(part) for part in pairs]
    digest = hashlib.sha256()
    for p in (*pairs[0], *pairs[1]):
        digest.update(repr((p.name, p.image.shape)).encode())
        digest.update(np.ascontiguousarray(p.image).data)
        digest.update(np.ascontiguousarray(p.label).data)
    return f"{counts[0]} and {counts[1]} for validation ({digest.hexdigest()[:12]})"
