"""Make the README's picture: a part of the sample slide beside the mask of its nuclei.

    python pipelines/sample_picture.py docs/sample.png

Runs the packaged model on the sample slide, and draws the outlines of the mask on a copy of that part.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from skimage.io import imsave
from skimage.segmentation import find_boundaries

import tilenet
from tilenet.sample import write_sample

SIDE = 512
GAP = 8
OUTLINE = (255, 214, 0)


def draw(photo, mask):
    """Return the photo (h, w, 3) with the outlines of the mask (h, w)."""
    drawn = photo.copy()
    drawn[find_boundaries(mask, mode="outer")] = OUTLINE
    return drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    box = tilenet.Box((0, 0), (SIDE, SIDE))
    with tempfile.TemporaryDirectory() as folder:
        slide = write_sample(Path(folder) / "slide.tif")
        mask = tilenet.segment(slide, Path(folder) / "mask.zarr")
        part = mask[box.slices]
        with tilenet.open_image(slide) as image:
            photo = np.moveaxis(image.read(box), 0, -1)
    black_and_white = np.repeat(part[:, :, None] * np.uint8(255), 3, axis=2)
    gap = np.full((SIDE, GAP, 3), 255, np.uint8)
    imsave(out, np.hstack([photo, gap, draw(photo, part), gap, black_and_white]))
    print(f"{out}: {part.mean():.1%} of the part is nucleus")


if __name__ == "__main__":
    main()
