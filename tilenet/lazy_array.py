"""`lazy`: a result as a dask array that computes only the tiles that are needed.

The graph contains coordinates and one small object. Images and weights are opened where they are used::

    original-tilenet-segment-...    Tiles: plan, decision, paths of the image and the weights
    (tilenet-segment-..., i, j)     Tiles[rows, columns]

Dask fuses slicing into this index, so that a slice of the array computes the tiles that it touches,
not whole chunks.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack
from uuid import uuid4

import numpy as np

from tilenet.arguments import known_options
from tilenet.errors import ImageError, SettingsError, closed_on_error, one_line
from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div
from tilenet.jobs.job import Job
from tilenet.jobs.options import ArrayOutput, LazySettings, Options, checked_output, parameters_of
from tilenet.jobs.setup import make_job
from tilenet.models.named import function_of
from tilenet.models.saved import fingerprint
from tilenet.plan import Plan
from tilenet.predict import predictors
from tilenet.readers.array import client_of
from tilenet.tiled_array import Tiles, Weights

if TYPE_CHECKING:
    from dask.array import Array

# Most chunks by default. Dask walks the keys of all chunks for each result, which takes a tenth of a second for
# this many.
MOST_CHUNKS = 2**16
HINTS = {
    "objects": "Number them with tilenet.segment(..., objects=True)",
    "workers": "Compute the array with distributed.Client(n_workers=...), or any other scheduler of Dask",
}


@known_options(HINTS, parameters_of(LazySettings))
def lazy(
    image: Any,
    *,
    model: Any = "nuclei",
    footprint: Footprint | None = None,
    output: ArrayOutput | None = None,
    chunks: Any = None,
    **settings: Unpack[LazySettings],
) -> Array:
    """Return the result of `segment` as a dask array; computing a part of it runs only the tiles that it touches.

    Every pixel equals that of `segment` with ``batch=1`` and the same tile: tiles lie on the grid of the
    whole image and see real pixels around them. Percentiles of a scaling are computed once, in this call.

    Parameters
    ----------
    image : path, array or Image
        As for `segment`. If tasks run in other processes, each opens a file by itself, while an
        array is sent to them. A dask array is computed box by box, never as a whole.
    model, footprint
        As for `segment`. A process holds one copy of the network, loaded from the file if a name or a
        path was given. A network object is copied in this call, so that training it further has
        no effect.
    output : str, optional
        ``mask`` (default), ``probabilities`` or ``logits``.
    chunks : int, sequence of int or str, optional
        Chunks of the dask array, along its axes; whole tiles are best. Default: one tile, or several
        where one tile per chunk would make the graph too large.
    **settings
        Any of level, mpp, axes, pixel_size, channels, tile, memory, threads, device, precision, engine,
        scaling, threshold, probability_dtype, missing and strict, as for `segment`. `memory` is the memory of one
        process, which computes one tile at a time.

    Returns
    -------
    dask.array.Array
        Its shape, axes and dtype are those of `segment`: (*n) for a mask, otherwise with classes first, after ``t``.

    Raises
    ------
    TilenetError
        As in `segment`; ``compute`` raises `BlocksFailed` for a tile that cannot be computed.

    Examples
    --------
    >>> import dask.array as da
    >>> import tilenet
    >>> slide = da.zeros((100_000, 80_000), dtype="uint8", chunks=4096)
    >>> mask = tilenet.lazy(slide, tile=64)
    >>> mask[50_000:50_040, 7_000:7_010].compute().shape
    (40, 10)
    """
    checked_output(output, objects=False, stored=False)
    if hasattr(image, "dask") and client_of(image) is not None:
        raise ImageError(
            "dask array: is kept in the memory of a cluster (persist), and its workers cannot read it for each other's "
            "tasks. Give lazy the array from before that; segment takes it as it is"
        )
    job = make_job(image, model, Options(**settings, output=output, batch=1), footprint=footprint)
    with closed_on_error(job):
        tiles = Tiles(_portable(job, model), job.resolve_scaling(), uuid4().hex)
    if job.owns_image:
        weakref.finalize(tiles, job.image.close)
    return _dask_array(tiles, chunks)


def _portable(job: Job, model: Any) -> Job:
    """Return the job with `Weights` in place of its network if it came from a file, else with a copy of the network."""
    if isinstance(model, str | Path) and not function_of(model):
        return replace(job, network=Weights(job.source, fingerprint(job.network)))
    return replace(job, network=copy.deepcopy(job.network)) if predictors.is_network(job.network) else job


def _dask_array(tiles: Tiles, chunks: Any) -> Array:
    import dask.array as da

    if chunks is None:
        chunks = tiles.with_classes(default_chunks(tiles.plan), -1)
    meta = np.empty((0,) * tiles.ndim, tiles.dtype)
    name = f"tilenet-segment-{tiles.token}"
    try:
        array: Array = da.from_array(tiles, chunks=chunks, name=name, meta=meta)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise SettingsError(f"chunks {chunks!r} do not fit shape {tiles.shape} ({one_line(error)})") from error
    return array


def default_chunks(plan: Plan) -> tuple[int, ...]:
    """Return the sides of a chunk: a tile, doubled along the axis with most chunks until the chunks are few enough.

    >>> from tilenet.sizes import plan_tiles
    >>> default_chunks(plan_tiles((2**20, 2**10), Footprint.same(2, reach=1), tile=64, block=64))
    (256, 64)
    """
    sides = list(plan.tile)
    while prod(counts := list(map(ceil_div, plan.shape, sides))) > MOST_CHUNKS:
        sides[counts.index(max(counts))] *= 2
    return tuple(sides)
