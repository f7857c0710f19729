"""An array whose tiles are computed when it is indexed, and that can be sent to other processes.

It is pickled as paths and a plan. Each process opens image and weights where they are used, once for all
of its tasks.
"""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from numbers import Integral
from threading import Lock, RLock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tilenet import machine
from tilenet.address import file_of, is_address
from tilenet.decide import cropped_logits
from tilenet.errors import BlocksFailed, ImageError, ModelError, TilenetError, first_line
from tilenet.geometry import cell_box
from tilenet.jobs.job import Job
from tilenet.models.saved import fingerprint, load_model
from tilenet.plan import Plan, tile_of
from tilenet.predict import predictors
from tilenet.runner import Predictor
from tilenet.scaling import Scaling
from tilenet.unet import UNet, is_as_built

# How many arrays made by other processes a process keeps open between tasks.
KEPT = 4

_building, _one_pass_at_a_time = RLock(), Lock()
_predictors: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_unpickled: OrderedDict[str, Tiles] = OrderedDict()


@dataclass(frozen=True)
class Weights:
    """A network stored in a file and loaded where it is needed; `sha256` is the `fingerprint` of the network."""

    source: str
    sha256: str

    def load(self) -> UNet:
        """Return the network (`ModelError` if the file has changed since)."""
        network = load_model(self.source)
        if fingerprint(network) != self.sha256:
            raise ModelError(f"{self.source}: was changed since the lazy array was made. Make the array again")
        return network


class Tiles:
    """An array computed when it is indexed, in whole tiles of one plan; `shape` and `dtype` include the class axis.

    The network of its job may be `Weights`. The token is unique to this array.
    """

    def __init__(self, job: Job, scaling: Scaling, token: str) -> None:
        self.token, self._job, self._scaling = token, job, scaling
        self._class_axis = None if job.decision.arrays == ("mask",) else int(job.image.box_axes.startswith("t"))
        self.shape = self.with_classes(job.plan.shape, len(job.card.classes))
        self.ndim = len(self.shape)
        by_name = is_address(job.image.name) or file_of(job.image.name).exists()
        self._identity = job.image.identity() if by_name else None
        self._key = _key(job, scaling, token)
        self._predictor: Predictor | None = None
        self._pickled: bytes | None = None
        self.dtype = np.dtype(self._dtype())

    @property
    def plan(self) -> Plan:
        """The plan, over the image's axes without ``c``."""
        return self._job.plan

    def with_classes(self, sides: Sequence[int], of_classes: int) -> tuple[int, ...]:
        """Insert the length `of_classes` of the class axis, if there is one, into `sides` along the image's axes."""
        if self._class_axis is None:
            return tuple(sides)
        return (*sides[: self._class_axis], of_classes, *sides[self._class_axis :])

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        """Return the values selected by an integer, a slice or a list of integers along each axis."""
        # An integer drops its axis from the result, as in NumPy.
        drop_axes = tuple(0 if isinstance(i, Integral) else slice(None) for i in index)
        wanted = [picked(i, n) for i, n in zip(index, self.shape, strict=True)]
        out = np.empty([len(w) for w in wanted], self.dtype)
        # The class axis comes first, as in the values of a tile; a mask has one class.
        classes, classes_first = np.arange(1), out[np.newaxis]
        if self._class_axis is not None:
            classes, classes_first = wanted.pop(self._class_axis), np.moveaxis(out, self._class_axis, 0)
        for cut in product(*map(cuts_of, wanted, self.plan.tile)):
            values = self._tile(tuple(c.corner for c in cut))  # (K, *write)
            place = (slice(None), *(c.place for c in cut))
            classes_first[place] = values[np.ix_(classes, *(c.part for c in cut))]
        return out[drop_axes]

    def _tile(self, corner: tuple[int, ...]) -> NDArray[Any]:
        """Compute the values (K, *write) of the tile whose first pixel is `corner`; K is 1 for a mask."""
        job, plan = self._job, self.plan
        tile = tile_of(plan.footprint, cell_box(corner, plan.tile, plan.shape))
        try:
            batch, predictor = job.read(tile), self._shared_predictor()
            # One forward pass at a time: PyTorch has threads of its own, and the memory is planned for one pass.
            with _one_pass_at_a_time, machine.threads(job.record["threads"]):
                logits = predictor(batch)[0]
            (values,) = job.decision(cropped_logits(tile, logits, job.footprint.ndim)).values()
        except TilenetError:
            raise
        except Exception as error:
            where = f"{job.image.name}: the tile at {tile.write} cannot be computed"
            raise BlocksFailed(f"{where}: {first_line(error)}. Fix the image or the model") from error
        return values.reshape(-1, *tile.write.shape)

    def _shared_predictor(self) -> Predictor:
        """Return the predictor that this process shares among arrays of the same network and settings."""
        with _building:
            if self._predictor is None:
                self._predictor = _predictors.get(self._key)
            if self._predictor is None:
                self._predictor = _predictors[self._key] = self._new_predictor()
            return self._predictor

    def _new_predictor(self) -> Predictor:
        network = self._job.network
        job = replace(self._job, network=network.load()) if isinstance(network, Weights) else self._job
        return job.predictor(self._scaling)

    def _dtype(self) -> DTypeLike:
        job = self._job
        if job.decision.arrays == ("mask",):
            return np.uint8
        if job.decision.arrays == ("probabilities",):
            return job.decision.probability_dtype
        if isinstance(job.network, Weights) or predictors.is_network(job.network):
            return np.float64 if job.record["precision"] == "fp64" else np.float32
        smallest = (a.legal_at_least(a.smallest) for a in job.footprint.axes)
        return self._shared_predictor()(np.zeros((1, job.image.n_channels, *smallest), job.image.dtype)).dtype

    def __reduce__(self) -> tuple[Any, ...]:
        import cloudpickle

        with _building:
            if self._pickled is None:
                self._pickled = cloudpickle.dumps((self._job, self._scaling, self._identity))
        return _unpickle, (self.token, self._pickled)


def _unpickle(token: str, pickled: bytes) -> Tiles:
    """Return this process's only `Tiles` of a token, so that the image is opened once, not for each task."""
    import cloudpickle

    with _building:
        if token not in _unpickled:
            job, scaling, identity = cloudpickle.loads(pickled)
            tiles = _unpickled[token] = Tiles(job, scaling, token)
            weakref.finalize(tiles, job.image.close)
            tiles._pickled = pickled
            if tiles._identity != identity:
                del _unpickled[token]
                raise ImageError(f"{job.image.name}: was changed since the lazy array was made. Make the array again")
        _unpickled.move_to_end(token)
        while len(_unpickled) > KEPT:
            _unpickled.popitem(last=False)
        return _unpickled[token]


def picked(index: Any, length: int) -> NDArray[np.intp]:
    """Return the positions that an integer, a slice, or a list of integers or bools selects on an axis of any length.

    >>> picked(slice(-2, None), 10**15).tolist(), picked([1, -1], 4).tolist(), picked(-4, 4).tolist()
    ([999999999999998, 999999999999999], [1, 3], [0])
    """
    if isinstance(index, slice):
        positions = range(length)[index]
        return np.arange(positions.start, positions.stop, positions.step)
    found = np.atleast_1d(np.asarray(index))
    if found.dtype == bool:
        found = np.flatnonzero(found)
    if found.size and not (-length <= found.min() and found.max() < length):
        raise IndexError(f"{index} is not within an axis of {length}")
    return np.where(found < 0, found + length, found).astype(np.intp)


def _key(job: Job, scaling: Scaling, token: str) -> str:
    """Return a key of all that decides a predictor's logits; a network of unknown code is identified by the token."""
    network = job.network
    if isinstance(network, Weights):
        weights: Any = [network.sha256, job.card.architecture]
    else:
        weights = [fingerprint(network), network.options] if is_as_built(network) else token
    how = [job.device, job.record["precision"], job.record["engine"], scaling.to_json(), repr(job.footprint)]
    return json.dumps([weights, how])


@dataclass(frozen=True)
class Cut:
    """The wanted pixels of one tile along one axis."""

    # First pixel of the tile.
    corner: int
    # The wanted pixels, counted from there, and where they go in the result.
    part: NDArray[np.intp]
    place: slice


def cuts_of(wanted: NDArray[np.intp], side: int) -> list[Cut]:
    """Return the tiles, on a grid of `side` pixels, that hold wanted pixels.

    >>> [cut.corner for cut in cuts_of(np.arange(5, 40, 20), 8)]
    [0, 24]
    """
    tiles = wanted // side
    ends = [*np.flatnonzero(np.diff(tiles, prepend=-1)), len(wanted)]
    corners = [int(tiles[start]) * side for start in ends[:-1]]
    return [Cut(c, wanted[a:b] - c, slice(a, b)) for c, (a, b) in zip(corners, pairwise(ends), strict=True)]
