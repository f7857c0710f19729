"""A job: everything that decides the bytes of a mask, known before a pixel is read.

Its run record is kept in the output, and every later run on the same output must arrive at the
same record (`tilenet.jobs.mismatch`). `tilenet.jobs.setup` builds a job from options, an image and a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import tilenet
from tilenet import machine
from tilenet.address import absolute
from tilenet.bands import Demand
from tilenet.byte_counts import library_bytes
from tilenet.card import ModelCard, label_table
from tilenet.decide import Decision
from tilenet.errors import ImageError
from tilenet.footprint import Footprint
from tilenet.models.saved import fingerprint
from tilenet.plan import Plan, Tile
from tilenet.predict import predictors
from tilenet.predict.last_bits import numerics_of, remark_other_bits
from tilenet.predict.memory import bytes_saved, weight_bytes
from tilenet.predict.on_cpu import CpuPredictor
from tilenet.predict.on_gpu import GpuPredictor
from tilenet.prefetch import prefetch_depth
from tilenet.probe.claims import Answer
from tilenet.readers.image import READERS, Image, Pixels
from tilenet.resolution import Resolution
from tilenet.runner import BEHIND, Predictor
from tilenet.scaling import Scaling, resolve
from tilenet.store import Layout, Store
from tilenet.tissue import detection
from tilenet.tissue.detection import Search, Tissue

# Memory for the weights, as a multiple of their size: the network as given, plus what an engine makes of it. That is a
# copy while the network is checked or, for Winograd convolutions, weights of 36 elements for every 9 (beside some of
# the untransformed ones).
COPIES = {"plain": 3, "fast": 6}
LOG = logging.getLogger("tilenet")


@dataclass(frozen=True)
class Job:
    """One image, one model, one plan."""

    # At the level, and with the channels, that the network sees.
    image: Image
    # The model itself; `predictor` wraps it for a device, precision and engine.
    network: Any
    # Completed for the network's number of outputs.
    card: ModelCard
    # Where the model came from.
    source: str
    plan: Plan
    decision: Decision
    footprint: Footprint
    # Memory of a forward pass.
    demand: Demand
    answer: Answer
    # Such as ``cuda:1``; the record has only its type.
    device: str
    # The run record: everything that decides the bytes, except the resolved scaling.
    record: dict[str, Any]
    resolution: Resolution
    search: Search
    # Layout fields of a mask that lies within an OME-Zarr image; empty for any other mask.
    inside: Mapping[str, Any] = field(default_factory=dict)
    # Whether the job opened the image and therefore closes it; False for an image that the caller opened.
    owns_image: bool = True

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the image, if it was opened for this job."""
        if self.owns_image:
            self.image.close()

    def predictor(self, scaling: Scaling) -> Predictor:
        """Return the predictor, which turns raw pixels into logits."""
        if not predictors.is_network(self.network):
            return ScaledPredictor(self.network, self.footprint, scaling)
        device = machine.find_device(self.device)
        kind = CpuPredictor if device.type == "cpu" else GpuPredictor
        return kind(
            self.network,
            self.footprint,
            device=device,
            precision=self.record["precision"],
            engine=self.record["engine"],
            scaling=scaling,
        )

    def read(self, tile: Tile) -> Pixels:
        """Return the pixels of a tile as a batch of one (1, C, *n), without outer axes, which no network sees."""
        pixels = self.image.read(tile.read)
        return pixels.reshape(1, len(pixels), *pixels.shape[-self.footprint.ndim :])

    def resolve_scaling(self) -> Scaling:
        """Return the intensity scaling of the whole image; reads pixels for percentiles."""
        return resolve(self.record["scaling"], self.image)

    @cached_property
    def tissue(self) -> Tissue | None:
        """Where a new run finds tissue, None if it does not use tissue; may read a coarse level of the image."""
        found = self.search.run()
        if found is not None:
            loudness, message = detection.remark(found, self.plan)
            LOG.log(loudness, "%s: tissue %s", self.image.name, message)
        return found

    def described(self) -> tuple[Layout, dict[str, Any]]:
        """Return layout and info of a new output; reads pixels for tissue and for percentiles."""
        info, found = self.info(self.resolve_scaling()), self.tissue
        if found is None:
            return self.layout, info
        return replace(self.layout, tissue=found.map.to_json()), info | {"tissue": found.to_json(self.plan)}

    @property
    def layout(self) -> Layout:
        """What the output looks like."""
        if self.image.box_axes == "ztyx":  # the order is that of OME-Zarr; arrays in memory may have any
            order = "".join(sorted(self.image.axes, key="tczyx".index))
            turned = [self.image.axes.index(axis) for axis in order]
            raise ImageError(
                f"{self.image.name}: has z before t ({self.image.axes}), and a mask on disk has t before z. Write the "
                f"image so ({order}); an array: give np.transpose(array, {turned}), axes "
                f"{order!r}. Or get an array: in Python, without an output"
            )
        classes = 1 if self.decision.depths else len(self.card.classes)
        # What objects are found in is no mask to look at: it has no pyramid, and lies in no image.
        placed = {"n_levels": 1} if self.record["output"] == "objects" else self.inside
        return Layout(
            axes=self.image.box_axes,
            shape=self.plan.shape,
            block=self.plan.block,
            pixel_size=self.image.pixel_size,
            name=self.card.name,
            labels=label_table(self.card),
            classes=classes if "probabilities" in self.decision.arrays else 0,
            probability_dtype=self.decision.probability_dtype,
            origin=self.plan.origin,
            shift=self.image.shift,
            **{"frame": self.image.frame or {}, "n_levels": 0, **placed},
        )

    def needs(self) -> dict[str, int]:
        """Return the bytes of host and of device memory that the run may take.

        The array that `segment` returns without `out` is not counted.
        """
        read = prod(self.plan.largest_read) * self.plan.batch * self.image.n_channels * self.image.dtype.itemsize
        engine, device = self.record["engine"], self.record["device"]
        passed = self.demand.of(self.plan.largest_read, self.plan.batch)
        saved = bytes_saved(self.network, self.decision, engine=engine, device=device)
        passed -= saved * prod(self.plan.largest_read) * self.plan.batch
        block = prod(map(min, self.plan.block, self.plan.shape)) * self._bytes_of_pixel()
        weights = weight_bytes(self.network)
        on_host = self.device == "cpu"
        ahead = prefetch_depth(self.plan.batch, asynchronous=not on_host)
        if not on_host:  # pinned memory is allocated and cached in powers of two
            read = 2 ** (read - 1).bit_length()
        reading = (ahead + 1) * read + READERS * self.image.working_bytes + self.image.kept_bytes
        # `BEHIND` blocks of pixels, one of which is encoded: its chunks, and the whole shard.
        host = library_bytes() + int(COPIES[engine] * weights) + reading + (BEHIND + 2) * block
        return {
            "host_bytes": host + (passed if on_host else 0),
            "device_bytes": 0 if on_host else passed + weights + GpuPredictor.in_flight * read,
        }

    def _bytes_of_pixel(self) -> int:
        """Return the bytes of one pixel in all arrays that the run writes or returns."""
        doubles = self.record["precision"] == "fp64" or not predictors.is_network(self.network)
        classes = 1 if self.decision.depths else len(self.card.classes)
        sizes = {
            "mask": 1,
            "probabilities": classes * np.dtype(self.decision.probability_dtype).itemsize,
            "logits": classes * (8 if doubles else 4),
        }
        return sum(sizes[name] for name in self.decision.arrays)

    def info(self, scaling: Scaling) -> dict[str, Any]:
        """Return what the output records about how it was made."""
        return {
            "version": tilenet.__version__,
            "image": {"path": absolute(self.image.name), **self.image.identity()},
            "model": {
                "source": self.source,
                **identity_of(self.network, self.card, self.footprint),
                "answer": self.answer.to_json(),
            },
            "card": self.card.to_dict(),
            "record": self.record,
            "scaling": scaling.to_json(),
            "computed": self.numerics,
        }

    @property
    def numerics(self) -> dict[str, str]:
        """What computes, as far as the last bits of logits may depend on it."""
        return numerics_of(self.network, self.record["engine"], self.device)

    def remark_other_bits(self, store: Store, name: str | Path) -> None:
        """Say so if a store, shown as `name`, was begun where the last bits may be others."""
        if predictors.is_network(self.network):  # what a function computes with is not known
            remark_other_bits(store, self.numerics, name)


def identity_of(network: Any, card: ModelCard, footprint: Footprint) -> dict[str, Any]:
    """Return what the output records about a model, except where it came from and what it answers."""
    return {
        "name": card.name,
        "sha256": fingerprint(network) if predictors.is_network(network) else "",
        "footprint": [[a.step, a.lost, *a.spoiled] for a in footprint.axes],
    }


@dataclass
class ScaledPredictor:
    """Any callable as a predictor, with the intensities scaled in front of it."""

    function: Callable[[Any], Any]
    footprint: Footprint
    scaling: Scaling

    def __call__(self, batch: Any) -> Any:
        """Return the callable's logits (N, K, *m) for raw pixels (N, C, *n)."""
        # The function may rely on C-contiguous input.
        made = np.asarray(self.function(np.ascontiguousarray([self.scaling.apply(pixels) for pixels in batch])))
        return made if made.dtype.kind == "f" else made.astype(np.float64)
