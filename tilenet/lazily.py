"""`lazy`: a result as a dask array, of which only the tiles that are asked for are computed.

A graph sends coordinates and one small object; images and weights are opened where they are used::

    original-tilenet-segment-...    Tiles: plan, decision, where the image and the weights lie
    (tilenet-segment-..., i, j)     Tiles[rows, columns]

Dask fuses a slice of the array into the index, so that a slice costs the tiles that it touches,
not the chunks.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from tilenet import predict
from tilenet.errors import ImageError
from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div
from tilenet.job import Job
from tilenet.models import fingerprint
from tilenet.options import Options, check_output_option
from tilenet.plan import Plan
from tilenet.readers.array import client_of
from tilenet.settling import settle
from tilenet.tiles import Tiles, Weights

# Dask walks the names of all chunks for each result: so many take it a tenth of a second.
MOST_CHUNKS = 2**16
SETTINGS = (
    *("level", "mpp", "axes", "channels", "tile", "memory", "threads", "device", "precision"),
    *("engine", "scaling", "threshold", "probability_dtype", "missing"),
)


def lazy(
    image: Any,
    *,
    model: Any = "nuclei",
    footprint: Footprint | None = None,
    output: str | None = None,
    chunks: Any = None,
    **settings: Any,
) -> Any:
    """Return what `segment` gives as a dask array: a part of it costs the tiles that it touches.

    Every pixel is that of `segment` with ``batch=1`` and the same tile: tiles lie on the grid of the
    whole image and see real pixels around them. Percentiles of a scaling are read now, once.

    Parameters
    ----------
    image : path, array or Image
        As for `segment`. Where tasks run in other processes, a file is opened there, and an array
        is sent. A dask array is computed box by box, never whole.
    model, footprint
        As for `segment`. A process holds one copy, loaded from the file where a name or a path was
        given. A network is copied now: training it further changes nothing here.
    output : str, optional
        ``mask`` (default), ``probabilities`` or ``logits``.
    chunks : int, sequence of int or str, optional
        Of the dask array, along its axes; whole tiles are best. Default one tile, or as many as
        keep the graph small.
    **settings
        Any of level, mpp, axes, channels, tile, memory, threads, device, precision, engine, scaling,
        threshold, probability_dtype and missing, as for `segment`. `memory` is that of one
        process, in which one tile is computed at a time.

    Returns
    -------
    dask.array.Array
        Shape, axes and dtype as of `segment`: (*n) for a mask, with ``c`` = classes for the others.

    Raises
    ------
    TilenetError
        As of `segment`; from ``compute``, `BlocksFailed` for a tile that cannot be computed.

    Examples
    --------
    >>> import dask.array as da
    >>> import tilenet
    >>> slide = da.zeros((100_000, 80_000), dtype="uint8", chunks=4096)
    >>> mask = tilenet.lazy(slide, tile=64)
    >>> mask[50_000:50_040, 7_000:7_010].compute().shape
    (40, 10)
    """
    if unknown := set(settings) - set(SETTINGS):
        raise TypeError(f"lazy() got an unexpected keyword argument {min(unknown)!r}")
    check_output_option(output, stored=False)
    if hasattr(image, "dask") and client_of(image) is not None:
        raise ImageError(
            "dask array: is kept in the memory of a cluster (persist), and its workers cannot read it for each other's "
            "tasks. Give lazy the array from before that; segment takes it as it is"
        )
    job = settle(image, model, Options(**settings, output=output, batch=1), footprint=footprint)
    try:
        tiles = Tiles(_portable(job, model), job.numbers(), uuid4().hex)
    except BaseException:
        job.close()
        raise
    if job.owns_image:
        weakref.finalize(tiles, job.image.close)
    return _dask_array(tiles, chunks)


def _portable(job: Job, model: Any) -> Job:
    """Return the job with its network as a file's name, or else as a copy that nobody changes."""
    if isinstance(model, str | Path):
        return replace(job, network=Weights(job.source, fingerprint(job.network)))
    return replace(job, network=copy.deepcopy(job.network)) if predict.is_network(model) else job


def _dask_array(tiles: Tiles, chunks: Any) -> Any:
    import dask.array as da

    if chunks is None:
        chunks = tiles.with_classes(default_chunks(tiles.plan), -1)
    meta = np.empty((0,) * tiles.ndim, tiles.dtype)
    from_array: Any = da.from_array
    return from_array(tiles, chunks=chunks, name=f"tilenet-segment-{tiles.token}", meta=meta)


def default_chunks(plan: Plan) -> tuple[int, ...]:
    """Return the sides of a chunk: a tile, doubled where most chunks lie until they are few enough.

    >>> from tilenet.sizes import plan_tiles
    >>> default_chunks(plan_tiles((2**20, 2**10), Footprint.same(2, reach=1), tile=64, block=64))
    (256, 64)
    """
    sides = list(plan.tile)

    def counts() -> list[int]:
        return list(map(ceil_div, plan.shape, sides))

    while prod(counts()) > MOST_CHUNKS:
        longest = max(range(len(sides)), key=counts().__getitem__)
        sides[longest] *= 2
    return tuple(sides)
