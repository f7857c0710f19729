"""A complete mask, opened for reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tilenet.errors import OutputIncomplete
from tilenet.store.layout import Layout
from tilenet.store.writer import read_attributes


class Mask:
    """A mask written by tilenet, read lazily; made by `open_mask`.

    Attributes
    ----------
    path : Path
        The OME-Zarr label image.
    axes : str
        One letter per axis.
    levels : tuple of zarr.Array
        All resolutions, finest first.
    pixel_size : tuple of float or None
        Micrometres along `axes` at level 0; None where unknown.
    probabilities : zarr.Array or None
        With ``c`` = classes.
    info : dict
        How it was made: version, image, model, card, run record, scaling.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        found = read_attributes(path)["tilenet"]
        if not found["complete"]:
            raise OutputIncomplete(f"{path}: is not complete. Go on with the same command and --resume")
        layout = Layout.from_json(found["layout"])
        self.path, self.axes, self.info = path, layout.axes, found["info"]
        self.pixel_size = layout.pixel_size
        self.levels = tuple(zarr.open_array(path / str(k), mode="r") for k in range(layout.n_levels))
        self.probabilities = zarr.open_array(path / "probabilities/0", mode="r") if layout.classes else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along `axes`."""
        return tuple(self.levels[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the mask values."""
        return np.dtype(self.levels[0].dtype)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return np.asarray(self.levels[0][index])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[...].astype(self.dtype if dtype is None else dtype)

    def __repr__(self) -> str:
        sides = " x ".join(map(str, self.shape))
        return f"<Mask {self.path}: {self.axes} {sides}, {len(self.levels)} levels, {self.info['card']['name']}>"


def open_mask(path: str | Path) -> Mask:
    """Open a complete mask.

    Parameters
    ----------
    path : path
        What `segment` wrote.

    Raises
    ------
    OutputNotFound, OutputIncomplete, OutputError
        If there is none, it is not complete, or tilenet did not write it.
    """
    return Mask(Path(path))
