"""A job: everything that decides the bytes of a mask, settled before a pixel is read.

`Options` are what a caller says; a `Job` is what follows from them, an image and a model.
Its record is kept in the output, and every later run on the same output must come to the
same record.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import tilenet
from tilenet import predict, scaling, tissue
from tilenet.card import ModelCard, label_table
from tilenet.decide import Decision
from tilenet.device import DevicePredictor
from tilenet.errors import ImageError, ModelError, OutputError, OutputMismatch, SettingsError
from tilenet.footprint import Footprint
from tilenet.into import Target
from tilenet.models import find_model, fingerprint, load_model
from tilenet.plan import Plan
from tilenet.readers import open_image
from tilenet.readers.image import Image
from tilenet.readers.resampled import at_resolution, in_plane
from tilenet.region import find_roi, roi_to_json
from tilenet.resolution import Resolution, recorded, resolve
from tilenet.runner import AHEAD, BEHIND, READERS, Predictor
from tilenet.scaling import Scaling
from tilenet.sizes import DEFAULT_BYTES_PER_PIXEL, plan_tiles
from tilenet.store import Layout
from tilenet.tissue import Search, Tissue

# What may change between two runs of one output: where things lie, and what is for people.
SAME_BYTES = {"path", "source", "training_data", "licence", "notes", "metrics"}
# Interpreter and libraries, before the first tile.
RESIDENT = 330_000_000
# The network as given, the predictor's copy of it, and what the fast path makes of that.
COPIES = 3
# What people ought to hear of a run before it starts; the command prints it.
LOG = logging.getLogger("tilenet")


@dataclass(frozen=True)
class Options:
    """What a caller may say of a run; None is unsaid. See `tilenet.segment`."""

    level: int | None = None
    mpp: float | None = None
    axes: str | None = None
    channels: tuple[int, ...] | None = None
    tile: int | tuple[int, ...] | None = None
    block: int | tuple[int, ...] | None = None
    batch: int | None = None
    memory: int | None = None
    threads: int | None = None
    device: str | None = None
    precision: str | None = None
    engine: str | None = None
    threshold: float | None = None
    output: str | None = None
    probability_dtype: str | None = None
    scaling: Mapping[str, Any] | None = None
    missing: str | None = None
    roi: Sequence[Any] | None = None
    tissue: Any = None
    # Only from a record: what level and mpp came to.
    factor: tuple[Any, ...] | None = None

    def or_recorded(self, record: Mapping[str, Any]) -> Options:
        """Return the options with what is unsaid taken from a run record."""
        unsaid = [f.name for f in fields(self) if getattr(self, f.name) is None and f.name in record]
        return replace(self, **{name: _frozen(record[name]) for name in unsaid})


@dataclass(frozen=True)
class Job:
    """One image, one model, one plan.

    Attributes
    ----------
    image : Image
        At the level, and with the channels, that the network sees.
    network : torch.nn.Module or callable
        The predictor proper.
    card : ModelCard
        Completed for the network's outputs.
    source : str
        Where the model came from.
    plan : Plan
        Blocks of tiles.
    decision : Decision
        From logits to mask values.
    record : dict
        What decides the bytes, but for the scaling's numbers.
    resolution : Resolution
        Which pixels the network sees, and why.
    search : Search
        What is asked about tissue.
    inside : mapping
        What the layout says of the image that the mask lies in; empty if it lies in none.
    """

    image: Image
    network: Any
    card: ModelCard
    source: str
    plan: Plan
    decision: Decision
    footprint: Footprint
    bytes_per_pixel: float
    device: str
    record: dict[str, Any]
    resolution: Resolution
    search: Search
    inside: Mapping[str, Any] = field(default_factory=dict)

    def predictor(self, numbers: Scaling) -> Predictor:
        """Return what turns raw pixels into logits."""
        if not predict.is_network(self.network):
            return ScaledPredictor(self.network, self.footprint, numbers)
        device = predict.find_device(self.device)
        kind = predict.TorchPredictor if device.type == "cpu" else DevicePredictor
        return kind(
            self.network,
            self.footprint,
            device=device,
            precision=self.record["precision"],
            engine=self.record["engine"],
            scaling=numbers,
        )

    def numbers(self) -> Scaling:
        """Return the intensity scaling of the whole image; reads pixels for percentiles."""
        return scaling.resolve(self.record["scaling"], self.image)

    @cached_property
    def tissue(self) -> Tissue | None:
        """Where there is tissue, if that is asked of a new run; reads a coarse level of the image."""
        found = self.search.run()
        if found is not None:
            loudness, said = tissue.remark(found, self.plan)
            LOG.log(loudness, "%s: tissue %s", self.image.name, said)
        return found

    def described(self) -> tuple[Layout, dict[str, Any], Scaling]:
        """Return layout, info and scaling of a new output; reads pixels for tissue and for percentiles."""
        numbers, found = self.numbers(), self.tissue
        if found is None:
            return self.layout, self.info(numbers), numbers
        layout = replace(self.layout, tissue=found.map.to_json())
        return layout, self.info(numbers) | {"tissue": found.to_json(self.plan)}, numbers

    @property
    def layout(self) -> Layout:
        """What the output looks like."""
        classes = len(self.card.classes) if "probabilities" in self.decision.arrays else 0
        return Layout(
            axes=self.image.box_axes,
            shape=self.plan.shape,
            block=self.plan.block,
            pixel_size=self.image.pixel_size,
            name=self.card.name,
            labels=label_table(self.card),
            classes=classes,
            probability_dtype=self.decision.probability_dtype,
            origin=self.plan.origin,
            shift=self.image.shift,
            **{"frame": self.image.frame or {}, **self.inside},
        )

    def needs(self) -> dict[str, int]:
        """Return the bytes of host memory, device memory and disk that the run may take."""
        channels, outputs = self.image.n_channels, len(self.card.classes)
        pixels = prod(self.plan.largest_read) * self.plan.batch
        read = pixels * channels * self.image.dtype.itemsize
        passed = int(pixels * (self.bytes_per_pixel + 4 * channels))
        written = sum({"mask": 1}.get(name, 4 * outputs) for name in self.decision.arrays)
        block = prod(map(min, self.plan.block, self.plan.shape)) * written
        weights = COPIES * predict.weight_bytes(self.network)
        reading = (AHEAD + 1) * read + READERS * self.image.working_bytes + self.image.kept_bytes
        host = RESIDENT + weights + reading + (BEHIND + 2) * block
        on_host = self.device == "cpu"
        return {
            "host_bytes": host + (passed if on_host else 0),
            "device_bytes": 0 if on_host else passed + weights // COPIES + DevicePredictor.in_flight * read,
            "disk_bytes": prod(self.plan.shape) * written * 4 // 3,
        }

    def info(self, numbers: Scaling) -> dict[str, Any]:
        """Return what the output says about its making."""
        sha256 = fingerprint(self.network) if predict.is_network(self.network) else ""
        return {
            "version": tilenet.__version__,
            "image": {"path": _absolute(self.image.name), **self.image.identity()},
            "model": {"name": self.card.name, "source": self.source, "sha256": sha256},
            "card": self.card.to_dict(),
            "record": self.record,
            "scaling": numbers.to_json(),
        }


def settle(
    source: Any, model: Any, options: Options, *, footprint: Footprint | None = None, target: Target | None = None
) -> Job:
    """Decide everything about a run; reads no pixels.

    Parameters
    ----------
    source
        What `open_image` takes.
    model
        A packaged model's name, a path, a network, or any callable with a `footprint`.
    options : Options
        What the caller said.
    footprint : Footprint, optional
        For a network that has none of its own.
    target : Target, optional
        The OME-Zarr image that the mask goes into.
    """
    image = open_image(source, level=options.level or 0, axes=options.axes, missing=options.missing or "error")
    network, card, origin = _find_network(model)
    footprint = predict.footprint_of(network, footprint)
    resolution = _resolution(image, card, options)
    inside = _inside(target, image, resolution) if target else {}
    image = at_resolution(image, resolution)
    _check_axes(image, footprint)
    _check_color(image, network, options.channels)
    whole = image
    image = _fit_channels(image, getattr(network, "in_channels", None), options.channels)
    card = card.completed(predict.count_outputs(network, footprint, image.n_channels))
    precision = predict.find_precision(options.precision or "auto", network)
    need = predict.bytes_per_pixel(network, precision, image.n_channels) or DEFAULT_BYTES_PER_PIXEL
    part = find_roi(options.roi, image.box_shape, name=image.name)
    plan = plan_tiles(
        part.shape,
        footprint,
        tile=_inner_tile(options.tile, footprint),
        block=_inner(options.block, footprint),
        batch=options.batch,
        memory=options.memory,
        bytes_per_pixel=need,
        origin=part.start,
    )
    decision = Decision.of_card(
        card,
        options.output or "mask",
        threshold=options.threshold,
        probability_dtype=options.probability_dtype or "float32",
    )
    device = predict.find_device(options.device or "auto")
    record = _record(options, image=image, plan=plan) | resolution.to_json()
    record |= {"roi": roi_to_json(part, options.roi), "device": device.type, "precision": precision}
    search = tissue.search(options.tissue, whole, channels=options.channels, footprint=footprint)
    if search.rule and "logits" in decision.arrays:
        raise SettingsError("what has no tissue has no logits: ask for mask or probabilities, or leave tissue out")
    record["tissue"] = search.rule
    record["engine"] = predict.find_engine(options.engine or "auto", network, device=device, precision=precision)
    record |= {
        "scaling": dict(options.scaling or card.scaling),
        "threshold": decision.threshold if len(card.classes) == 1 else None,
    }
    how = (str(device), record, resolution, search, inside)
    return Job(image, network, card, origin, plan, decision, footprint, need, *how)


def check_info(info: Mapping[str, Any], name: str | Path) -> None:
    """Raise `OutputError` where an output does not say how it was made, as no run leaves it."""
    for part in ("record", "image", "model", "card", "scaling"):
        if not isinstance(info.get(part), dict):
            raise OutputError(f"{name}: zarr.json was changed, it has no {part} any more. Start again with --overwrite")


def refuse_contradiction(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `OutputMismatch` where a run to be resumed was started with something else.

    Parameters
    ----------
    found, wanted : mapping
        The `Job.info` in the output, and that of the run that would go on with it.
    """
    wanted = json.loads(json.dumps(wanted))
    for part in ("record", "image", "model", "card"):
        for name in sorted({*found[part], *wanted[part]} - SAME_BYTES):
            old, new = found[part].get(name), wanted[part].get(name)
            if old != new:
                how = "Leave the option out" if part == "record" else f"That is another {part}: give the same"
                raise OutputMismatch(
                    f"the run to be resumed has {part} {name} = {old}, now it is {new}. "
                    f"{how}, or start again with --overwrite"
                )


@dataclass
class ScaledPredictor:
    """Any callable as a predictor, with the intensities scaled in front of it."""

    function: Callable[[Any], Any]
    footprint: Footprint
    scaling: Scaling

    def __call__(self, batch: Any) -> Any:
        """Return the callable's logits (N, K, *m) of raw pixels (N, C, *n)."""
        import numpy as np

        return self.function(np.stack([self.scaling.apply(pixels) for pixels in batch]))


def _find_network(model: Any) -> tuple[Any, ModelCard, str]:
    if isinstance(model, str | Path):
        network = load_model(model)
        assert network.card is not None
        return network, network.card, str(model if str(model) == network.card.name else find_model(model).absolute())
    if not callable(model):
        raise ModelError(f"a model is a name, a path, a torch.nn.Module or a callable, not a {type(model).__name__}")
    card = getattr(model, "card", None) or ModelCard(name=type(model).__name__)
    return model, card, type(model).__name__


def _resolution(image: Image, card: ModelCard, options: Options) -> Resolution:
    if options.factor is not None:
        return recorded(options.level or 0, options.factor, options.mpp)
    # An open image at another level than the finest was put there by the caller.
    level = image.level if options.level is None and image.level else options.level
    resolution = resolve(
        [in_plane(image, k) for k in range(len(image.levels))],
        level=level,
        mpp=options.mpp,
        card=card.pixel_size,
        model=card.name,
        name=image.name,
    )
    if resolution.told:
        LOG.info("%s: %s", image.name, resolution.text)
    return resolution


def _inside(target: Target, image: Image, resolution: Resolution) -> dict[str, Any]:
    level = resolution.level
    shape = [n for n, a in zip(image.levels[level].shape, image.axes, strict=True) if a != "c"]
    return target.layout_of(image.box_axes, shape, level=level, factor=resolution.factor)


def _check_axes(image: Image, footprint: Footprint) -> None:
    wanted = "zyx"[-footprint.ndim :]
    if not image.box_axes.endswith(wanted):
        raise ImageError(
            f"{image.name}: its axes are {image.axes}, and a {footprint.ndim}-D network runs over {wanted}, "
            f"which must come last (c aside). Choose another model, or say --axes"
        )


def _check_color(image: Image, network: Any, chosen: Sequence[int] | None) -> None:
    """Refuse three stains that would pass for red, green and blue.

    A network without a card is the caller's own: it is given the channels as they are.
    """
    of_three = getattr(network, "in_channels", None) == image.n_channels == 3
    if chosen is None and of_three and getattr(network, "card", None) is not None and not image.is_color:
        names = ", ".join(name or f"channel {i}" for i, name in enumerate(image.channel_names))
        raise ImageError(
            f"{image.name}: its 3 channels ({names}; {image.dtype}) are not known to be an 8-bit colour picture, and "
            f"the model takes red, green and blue. Choose one stain, such as --channels 0, or all: --channels 0,1,2"
        )


def _fit_channels(image: Image, wanted: int | None, chosen: Sequence[int] | None) -> Image:
    """Return the image with the channels that the network takes."""
    if chosen is not None:
        image = image.with_channels(chosen)
    if wanted is None or image.n_channels == wanted:
        return image
    if image.n_channels == 1:
        return image.with_channels((0,) * wanted)
    names = ", ".join(name for name in image.channel_names if name)
    # One channel feeds any network, so that is what a network of more can be given.
    some = range(wanted) if wanted < image.n_channels else range(1)
    raise ImageError(
        f"{image.name}: has {image.n_channels} channels{f' ({names})' if names else ''}, the model takes {wanted}. "
        f"Choose with --channels, such as --channels {','.join(map(str, some))}"
    )


def _record(options: Options, *, image: Image, plan: Plan) -> dict[str, Any]:
    return {
        "axes": image.axes,
        "channels": list(options.channels) if options.channels is not None else None,
        "tile": list(plan.tile),
        "block": list(plan.block),
        "batch": plan.batch,
        "threads": options.threads or predict.current_threads(),
        "output": options.output or "mask",
        "probability_dtype": options.probability_dtype or "float32",
        "missing": options.missing or "error",
    }


def _absolute(name: str) -> str:
    """Return where a file lies, so that `verify` finds it from anywhere; other names as they are."""
    path = Path(name)
    return str(path.absolute()) if path.exists() else name


def _inner(sides: int | tuple[int, ...] | None, footprint: Footprint) -> int | tuple[int, ...] | None:
    """Return the sides along the network's axes; those of a record have the outer ones too."""
    return sides if sides is None or isinstance(sides, int) else tuple(sides)[-footprint.ndim :]


def _inner_tile(sides: int | tuple[int, ...] | None, footprint: Footprint) -> int | tuple[int, ...] | None:
    """Return a tile's sides along the network's axes; along the axes in front it is one plane long."""
    outer = () if sides is None or isinstance(sides, int) else sides[: -footprint.ndim]
    if any(side != 1 for side in outer):
        said = ",".join(map(str, sides)) if isinstance(sides, tuple) else sides
        raise SettingsError(
            f"tile {said} has {len(outer) + footprint.ndim} sides, and a {footprint.ndim}-D network is looped over "
            f"planes. Give {footprint.ndim} sides, or a {footprint.ndim + len(outer)}-D model"
        )
    return _inner(sides, footprint)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_output_option(output: str | None, *, stored: bool) -> None:
    """Raise `SettingsError` for an output that a store, or an array, cannot be."""
    fitting = ("mask", "both") if stored else ("mask", "probabilities", "logits")
    if (output or "mask") not in fitting:
        where = "a store" if stored else "an array"
        raise SettingsError(f"output {output!r}: {where} can be {' or '.join(fitting)}")


def refuse_with_objects(*, output: str | None, resume: bool) -> None:
    """Raise `SettingsError` for what objects, found in memory, cannot be asked with."""
    if output not in (None, "mask"):
        raise SettingsError(f"objects and output {output!r}: say one of them")
    if resume:
        raise SettingsError("objects are found in memory at once, so there is nothing to resume; use overwrite")
