"""A slide to try tilenet on, made from a photograph that comes with scikit-image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import OutputExists, SettingsError
from tilenet.geometry import mirror
from tilenet.masks.tiff_store import is_tiff
from tilenet.store.destination import put_whole

SIDE, LEVELS, FILE_TILE = 4096, 4, 256


def write_sample(path: str | Path) -> Path:
    """Write a tiled, pyramidal RGB TIFF, `SIDE` px high and wide: an immunohistochemistry photograph, mirror-tiled.

    The photograph (512 x 512, colon tissue, brown DAB and blue haematoxylin) is repeated by
    reflection, never resized. `SettingsError` if `path` does not end in ``.tif`` or ``.tiff``; `OutputExists` if there
    is such a file.
    """
    import tifffile
    from skimage import data

    photo: NDArray[np.uint8] = data.immunohistochemistry()  # type: ignore[no-untyped-call]
    path = Path(path)
    if not is_tiff(path):
        raise SettingsError(f"{path}: the sample is a TIFF. Give a name in .tif or .tiff")
    if path.exists():
        raise OutputExists(f"{path}: exists already. Choose another name, or remove it")
    with put_whole(path) as part, tifffile.TiffWriter(part) as tiff:
        for level, pixels in enumerate(_pyramid(photo)):
            tiff.write(
                pixels,
                photometric="rgb",
                tile=(FILE_TILE, FILE_TILE),
                compression="zlib",
                predictor=True,
                subifds=None if level else LEVELS - 1,
                subfiletype=1 if level else 0,
                metadata=None,
            )
    return path


def _pyramid(photo: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    rows, columns = ([mirror(i, n) for i in range(SIDE)] for n in photo.shape[:2])
    pixels = photo[np.ix_(rows, columns)]
    for _ in range(LEVELS):
        yield pixels
        half = len(pixels) // 2
        quads = pixels.reshape(half, 2, half, 2, 3)
        pixels = quads.mean(axis=(1, 3)).round().astype(np.uint8)
