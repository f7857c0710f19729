"""Score a prediction against the truth: two files, or two folders of files matched by stem."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet import metrics
from tilenet.address import file_of
from tilenet.arguments import known_options
from tilenet.decide import relative_spacing
from tilenet.errors import ImageError, ImageNotFound, SettingsError
from tilenet.evaluation.labels import (
    describe_frames,
    files_by_stem,
    looks_like_intensities,
    read_labels,
    read_sized_labels,
)
from tilenet.evaluation.mask_record import nearest, recorded_of
from tilenet.instances.in_memory import objects
from tilenet.readers.calibrated import sizes_differ
from tilenet.readers.zarr_metadata import has_documents
from tilenet.resolution import size_text

LOG = logging.getLogger("tilenet")
Labels = NDArray[np.int32]
# What is said about the first file that it holds for, and how many such files there are.
REMARKS = {
    "image": "is scored as labels, but most of its values are in single pixels, as in an image%s. Give label images",
    "cubes": "the size of its voxels is not known, so they are taken for cubes%s; in flat ones, objects are often "
    "joined: give --pixel-size Z,Y,X",
    "resampled": "is at another resolution than the truth%s: each pixel of the truth is compared with the one of the "
    "mask that holds its centre",
    "planes": "its objects lie in one plane each%s, so those of the truth are cut into planes too, and each plane is "
    "scored as an image",
}
# Above this Dice coefficient, it is remarkable if no object matches.
COVERED = 0.9


@known_options()
def evaluate(
    prediction: str | PathLike[str],
    truth: str | PathLike[str],
    *,
    classes: bool = False,
    axes: str | None = None,
    pixel_size: float | str | Sequence[float] | None = None,
) -> dict[str, Any]:
    """Score a prediction against the truth.

    Parameters
    ----------
    prediction, truth : path or Mask
        Two files (or mask folders), or two folders of files, matched by the part of their names before the first
        dot. Each frame of a time series (axis ``t``) is scored as an image of its own, and so is each plane of a stack
        in which a 2-D network found objects that were not linked. Only masks that tilenet made at another pixel size
        (``mpp``) or level may differ from the truth in size: each pixel of the truth is compared with the pixel of the
        mask that holds its centre. For a coarser level, the image must be where it was.
    classes : bool
        Whether the labels are classes. By default they are objects (instance labels). If the predictions are
        masks (0 and one other value in all files) and the truths are not, masks are first split into objects, as
        `tilenet.objects` does it, with the pixel size of the prediction, or else of the truth.
    axes : str, optional
        Axes of the labels, for files that do not state them (``"zyx"``).
    pixel_size : float, str or sequence of float, optional
        For masks that are split: micrometres per pixel, one number for y and x, two (y, x) or three (z, y, x), where
        the files do not say, or in place of what they say.

    Returns
    -------
    dict
        Ready for JSON: ``images`` (frames count one by one), ``pixel_error``, ``dice`` and ``iou`` per class
        (``"1"`` is the foreground of objects). For objects also ``objects`` per IoU threshold,
        ``panoptic_quality``, ``mean_ap``, ``rand`` and ``information``, and the last two with
        thinned borders (`metrics.thin_borders`). Pixels and objects are counted over all images;
        ``mean_ap``, ``rand`` and ``information`` are means over images.

    Raises
    ------
    ImageError, ImageNotFound
        If a file has no partner, differs from it in shape, or does not hold integers. A file of integers that is
        plainly an image of intensities is scored, with a warning.
    SettingsError
        If there is a `pixel_size`, and no mask to split.
    """
    for given in (prediction, truth):
        if not isinstance(given, str | PathLike):
            raise SettingsError(f"evaluate takes files, not a {type(given).__name__}. For arrays see tilenet.metrics")
    prediction, truth = Path(prediction), Path(truth)
    pairs = match(prediction, truth)
    predictions, truths = zip(*pairs.values(), strict=True)
    splits_masks = not classes and _are_masks(predictions, axes) and not _are_masks(truths, axes)
    if pixel_size is not None and not splits_masks:
        raise SettingsError(
            f"{prediction}: pixel_size is for masks that are split into objects, and this is none. Leave it out"
        )
    scored, remarked = _Scored(classes=classes), defaultdict[str, list[Path]](list)
    for a, b in pairs.values():
        for frames in _frames(a, b, remarked, splits=splits_masks, axes=axes, pixel_size=pixel_size):
            scored.add(*frames)
    _remark(remarked)
    if scored.covers_without_a_match():
        LOG.warning(
            "%s: covers the objects of the truth (Dice %.2f), but no object matches one: they are joined, or end "
            "along other axes (--axes)",
            *(prediction, scored.pixels[1].dice),
        )
    return scored.of_pixels() | ({} if classes else scored.of_objects())


def _remark(remarked: Mapping[str, Sequence[Path]]) -> None:
    """Say what `REMARKS` has of the files for which it holds."""
    for name, paths in remarked.items():
        if paths:
            others = f" (the first of {len(paths)} such files)" if len(paths) > 1 else ""
            LOG.warning(f"%s: {REMARKS[name]}", paths[0], others)


class _Scored:
    """What was counted so far."""

    def __init__(self, *, classes: bool) -> None:
        self.pixels: dict[int, metrics.PixelCounts] = defaultdict(metrics.PixelCounts)
        self.counts = dict.fromkeys(() if classes else metrics.THRESHOLDS, metrics.ObjectCounts())
        self.means: list[dict[str, float]] = []
        self.images = 0

    def add(self, found: Labels, labels: Labels, true: Labels) -> None:
        """Count the pixels of a prediction, and the objects into which it was split."""
        self.images += 1
        seen = (np.minimum(found, 1), np.minimum(true, 1)) if self.counts else (found, true)
        for c, n in metrics.count_pixels(*seen).items():
            self.pixels[c] += n
        if self.counts:
            for t, count in metrics.count_objects(labels, true, thresholds=metrics.THRESHOLDS).items():
                self.counts[t] += count
            self.means.append(_of_image(labels, true))

    def covers_without_a_match(self) -> bool:
        at_half = self.counts.get(0.5, metrics.ObjectCounts())
        return bool(at_half.only_truth and not at_half.matched and self.pixels[1].dice > COVERED)

    def of_pixels(self) -> dict[str, Any]:
        total = sum(n.both + n.only_truth for n in self.pixels.values())
        # A wrong pixel is missing from exactly one true class, so it counts once.
        wrong = sum(n.only_truth for n in self.pixels.values())
        return {
            "images": self.images,
            "pixel_error": wrong / max(1, total),
            "dice": {str(c): n.dice for c, n in sorted(self.pixels.items())},
            "iou": {str(c): n.iou for c, n in sorted(self.pixels.items())},
        }

    def of_objects(self) -> dict[str, Any]:
        shown = {str(t): {"f1": n.f1, "precision": n.precision, "recall": n.recall} for t, n in self.counts.items()}
        averages = {name: float(np.mean([m[name] for m in self.means])) for name in self.means[0]}
        return {"objects": shown, "panoptic_quality": self.counts[0.5].panoptic_quality, **averages}


def _frames(
    a: Path, b: Path, remarked: dict[str, list[Path]], *, splits: bool, axes: str | None, pixel_size: Any
) -> Iterator[tuple[Labels, Labels, Labels]]:
    """Yield prediction, its objects, and truth of each image of two files that is scored by itself.

    Time is no axis of an object, and neither is z where a 2-D network found the objects.
    """
    (found, size), (true, true_size) = (read_sized_labels(p, axes=axes, pixel_size=pixel_size) for p in (a, b))
    made, alike = recorded_of(a), describe_frames(found) == describe_frames(true)
    at = None if alike or len(found) != len(true) else nearest(found[0].shape, true[0].shape, made)
    if not alike and at is None:
        raise ImageError(
            f"{a}: is {describe_frames(found)}, but the truth {b.name} is {describe_frames(true)}. "
            "Score images of one size, "
            "with the same axes (--axes); masks, of the whole image, which those of a coarser level need at its place"
        )
    remarked["image"] += [path for path, frames in ((a, found), (b, true)) if any(map(looks_like_intensities, frames))]
    labels = found
    if splits:
        # The pixels of a mask that was resampled along y and x have another shape than those of the truth.
        spacing = _spacing({a: size, b: true_size} if at is None else {a: size}, remarked["cubes"])
        labels = [objects(frame, spacing=spacing) for frame in found]
    if at is not None:
        remarked["resampled"].append(a)
        found, labels = [frame[at] for frame in found], [frame[at] for frame in labels]
    images = zip(found, labels, true, strict=True)
    if not (made.by_plane and true[0].ndim == 3):
        yield from images
        return
    remarked["planes"].append(a)
    for image in images:
        yield from zip(*image, strict=True)


def _spacing(sizes: Mapping[Path, tuple[float | None, ...]], cubes: list[Path]) -> tuple[float, ...] | None:
    """Return the pixel size of the first of two files of one image that states it; None if neither does.

    The first of two volumes of which neither does is added to `cubes`, as its voxels will be taken for such.
    `ImageError` if both state it, and their pixels have different shapes.
    """
    known = {path: tuple(size for size in of if size) for path, of in sizes.items() if None not in of}
    if len(known) == 2:
        (a, one), (b, other) = known.items()
        first, second = (relative_spacing(size) or (1.0,) * len(size) for size in (one, other))
        if sizes_differ(first, second):
            raise ImageError(
                f"{a}: has pixels of {size_text(one)}, and {b} of {size_text(other)}. Give the right one (--pixel-size)"
            )
    if not known:
        cubes += [path for path, of in sizes.items() if len(of) > 2][:1]
    return next(iter(known.values()), None)


def match(prediction: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Return the pairs of files by stem; two files are one pair, whatever their names."""
    for path in (prediction, truth):
        if not file_of(path).exists():
            raise ImageNotFound(f"{path}: no such file or folder. Check the path")
    if not (_is_folder_of_files(prediction) and _is_folder_of_files(truth)):
        return {truth.name: (prediction, truth)}
    found, true = files_by_stem(prediction), files_by_stem(truth)
    for stem in sorted({*found, *true}):
        if stem not in found or stem not in true:
            there, lacking = (found[stem], truth) if stem in found else (true[stem], prediction)
            raise ImageNotFound(f"{there}: has no partner in {lacking}. Every file needs one of the same stem")
    return {stem: (found[stem], true[stem]) for stem in sorted(found)}


def _are_masks(paths: Iterable[Path], axes: str | None) -> bool:
    """Return whether all files together hold at most one value other than 0, such as 1 or 255."""
    values: set[int] = set()
    for path in paths:
        values.update(*(np.unique(frame).tolist() for frame in read_labels(path, axes=axes)))
        if len(values - {0}) > 1:
            return False
    return True


def _is_folder_of_files(path: Path) -> bool:
    """Return whether a path is a folder of files, and not a zarr store, which is a folder too."""
    return path.is_dir() and not has_documents(path)


def _of_image(found: Labels, true: Labels) -> dict[str, float]:
    thinned = metrics.thin_borders(found)
    return {
        "mean_ap": metrics.mean_average_precision(found, true),
        "rand": metrics.rand_scores(found, true).f_score,
        "information": metrics.information_scores(found, true).f_score,
        "rand_thinned": metrics.rand_scores(thinned, true).f_score,
        "information_thinned": metrics.information_scores(thinned, true).f_score,
    }
