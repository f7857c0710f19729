"""Images and labels to train on."""

import numpy as np
import tifffile


def discs(rng, shape=(60, 70)):
    label = np.zeros(shape, np.uint16)
    y, x = np.indices(shape)
    for k in range(1, 7):
        cy, cx = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        label[(y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(4, 9) ** 2] = k
    return label


def image_of(labels, rng):
    """Return what is labelled, bright in noise."""
    return np.clip((labels > 0) * 120 + rng.normal(60, 20, labels.shape), 0, 255).astype(np.uint8)


def write_pair(folder, stem, image, labels, **options):
    """Write an image into one folder, and its labels into another."""
    for part, pixels in (("images", image), ("labels", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / part / f"{stem}.tif", pixels, **options)


def write_discs(folder, stems):
    """Write one pair for each stem; return the folder."""
    rng = np.random.default_rng(5)
    for stem in stems:
        labels = discs(rng)
        write_pair(folder, stem, image_of(labels, rng), labels)
    return folder
