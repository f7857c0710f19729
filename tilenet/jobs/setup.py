"""Build a job from the caller's options, an image and a model; reads no pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tilenet import machine
from tilenet.bands import Demand
from tilenet.byte_counts import gigabytes, library_bytes, memory_option
from tilenet.card import ModelCard, parse_scaling
from tilenet.decide import Decision
from tilenet.errors import ModelError, SettingsError, closed_on_error
from tilenet.footprint import Footprint
from tilenet.geometry import Box
from tilenet.jobs.job import Job
from tilenet.jobs.network_input import NetworkInput, as_network_input
from tilenet.jobs.options import Options
from tilenet.jobs.record import run_record
from tilenet.masks.label_target import LabelTarget
from tilenet.masks.tiff_mask import is_tiff_mask
from tilenet.models.named import load_named, source_of
from tilenet.models.saved import KNOWN, class_name
from tilenet.plan import Plan
from tilenet.predict import predictors
from tilenet.predict.memory import demand_of
from tilenet.probe.claims import Answer, ask, ask_in_batches, doubts, remarks
from tilenet.readers import open_image
from tilenet.readers.image import Image
from tilenet.readers.resampled import in_plane
from tilenet.region import find_roi
from tilenet.resolution import FINEST, Resolution
from tilenet.scaling import check_rule
from tilenet.sizes import plan_tiles
from tilenet.store import is_ours, refuse_unfinished
from tilenet.tissue import detection
from tilenet.tissue.detection import Search
from tilenet.tissue.regions import names_regions, tissue_in_regions

LOG = logging.getLogger("tilenet")


def make_job(
    source: Any, model: Any, options: Options, *, footprint: Footprint | None = None, target: LabelTarget | None = None
) -> Job:
    """Decide everything about a run; reads no pixels.

    `source` is what `open_image` takes, `model` what `segment` takes, or what `found_model` returned of it. An image
    that is opened here is closed on error.
    """
    found = model if isinstance(model, FoundModel) else found_model(model)
    if isinstance(source, str | Path):
        refuse_unfinished(source)
    footprint = predictors.footprint_of(found.network, footprint)
    opened = open_image(source, **options.of_image)
    owns_image = not isinstance(source, Image)
    if isinstance(source, str | Path) and (is_ours(Path(source)) or is_tiff_mask(source)):
        LOG.warning("%s: is a mask that tilenet wrote, and is segmented like any image", source)
    with closed_on_error(*([opened] if owns_image else [])):
        job = _make_job(opened, found, options, footprint=footprint, target=target)
    _remark_memory(job, options)
    return replace(job, owns_image=owns_image)


def _remark_memory(job: Job, options: Options) -> None:
    """Say so if the run takes more than the memory that was given, which Python alone may fill, or than there is."""
    needs, given, total = job.needs()["host_bytes"], options.memory, machine.total_memory()
    if given is not None and needs > given:
        LOG.warning(
            "%s: takes %s, more than the memory of %s: Python and its libraries alone take %s. "
            "Give --memory %s or more",
            *(
                job.image.name,
                *map(gigabytes, (needs, given, library_bytes())),
                memory_option(_enough(job, options, needs)),
            ),
        )
    if total is not None and needs > total:
        LOG.warning(
            "%s: takes %s, and this machine, or this container, has %s: the run may be killed. Give a smaller --memory",
            *(job.image.name, *map(gigabytes, (needs, total))),
        )


def _enough(job: Job, options: Options, memory: int) -> int:
    """Return a memory in which the run stays if it is given that: with more of it, tiles are larger and take more."""
    part = Box.of_shape(job.plan.shape).shifted(job.plan.origin or (0,) * len(job.plan.shape))
    while True:
        plan = _plan(part, job.footprint, replace(options, memory=memory), job.demand)
        needs = replace(job, plan=plan).needs()["host_bytes"]
        if needs <= memory:
            return memory
        memory = needs


class FoundModel(NamedTuple):
    """A network, its card, and where it came from."""

    network: Any
    card: ModelCard
    source: str


def _make_job(
    opened: Image, model: FoundModel, options: Options, *, footprint: Footprint, target: LabelTarget | None
) -> Job:
    network, card, source = model
    taken = as_network_input(opened, network, card, options, footprint)
    check_rule(options.scaling or parse_scaling(card.scaling), taken.image)
    _remark_widths(taken, options, source)
    inside = placed_in(target, opened, taken.resolution) if target else {}
    answer = ask(network, footprint, taken.image.n_channels)
    card = card.completed(answer.outputs)
    device, precision, engine, demand = _backend_of(network, footprint, options, taken.image.n_channels)
    part = find_roi(options.roi, taken.image.box_shape, name=taken.image.name)
    plan = _plan(part, footprint, options, demand)
    if plan.largest_batch > 1 and answer.repeats:
        answer = replace(answer, mixing=ask_in_batches(network, footprint, taken.image.n_channels))
    _remark_model(card.name or type(network).__name__, card, answer, strict=options.strict)
    decision = _decision(card, options)
    job = Job(
        image=taken.image,
        network=network,
        card=card,
        source=source,
        plan=plan,
        decision=decision,
        footprint=footprint,
        demand=demand,
        answer=answer,
        device=str(device),
        record={},
        resolution=taken.resolution,
        search=_search(options, opened, taken, footprint, decision),
        inside=inside,
    )
    return replace(job, record=run_record(job, taken, options, precision=precision, engine=engine, part=part))


def _decision(card: ModelCard, options: Options) -> Decision:
    output, dtype = options.output or "mask", options.probability_dtype or "float32"
    return Decision.of_card(card, output, threshold=options.threshold, probability_dtype=dtype)


def _remark_model(name: str, card: ModelCard, answer: Answer, *, strict: bool) -> None:
    """Say what does not suit about a model; if `strict`, raise `ModelError` where that breaks the promise."""
    if strict and (doubt := next(doubts(answer), "")):
        raise ModelError(f"{name}: {doubt}. Leave --strict (strict=True) out to run it in spite of this")
    for said in remarks(card, answer):
        LOG.warning("%s: %s", name, said)


def _remark_widths(taken: NetworkInput, options: Options, source: str) -> None:
    """Say so if objects are plainly wider or narrower, in pixels as stored, than those that a packaged model knows."""
    sizes = in_plane(taken.whole, taken.whole.level)
    chosen = options.level is not None or options.mpp is not None
    if source not in KNOWN or chosen or None in sizes:
        return
    what, (low, high), (narrow, wide) = KNOWN[source]
    um = sum(filter(None, sizes)) / len(sizes)
    if narrow <= high * um and low * um <= wide:
        return
    if high * um < narrow:
        remedy = "Wider ones are cut in pieces: try a coarser --mpp, such as 0.25"
    elif low * um * FINEST <= wide:
        remedy = "Narrower ones are missed: try a finer --mpp"
    else:
        remedy = f"In pixels of {um:.3g} um no {what} can be seen: give a file of finer pixels"
    here = (f"{float(f'{n * um:.2g}'):g}" for n in (low, high))  # two digits, without an exponent
    LOG.warning(
        "%s: %s knows %s %d to %d px wide, here %s to %s um. %s",
        *(taken.image.name, source, what, low, high, *here, remedy),
    )


def _search(options: Options, opened: Image, taken: NetworkInput, footprint: Footprint, decision: Decision) -> Search:
    """Return how the run finds tissue."""
    wanted = options.tissue
    if names_regions(wanted):
        wanted = tissue_in_regions(wanted, opened, taken.resolution)
    search = detection.search(wanted, taken.whole, channels=taken.channels, footprint=footprint)
    if search.rule and "logits" in decision.arrays:
        raise SettingsError("what has no tissue has no logits: ask for mask or probabilities, or leave tissue out")
    return search


def _backend_of(network: Any, footprint: Footprint, options: Options, n_channels: int) -> tuple[Any, str, str, Demand]:
    """Return device, precision and engine of a network, and the memory that a forward pass needs."""
    name = options.device or "auto"
    if not predictors.is_network(network):
        if name not in ("auto", "cpu"):
            said = "the model is a function, and computes wherever it does. Leave device out"
            raise SettingsError(f"device {name}: {said}")
        name = "cpu"
    device = machine.find_device(name)
    precision = predictors.find_precision(options.precision or "auto", network)
    if (precision, device.type) == ("fp64", "mps"):
        raise SettingsError("precision fp64: not on mps. Use --device cpu, or --precision fp32")
    if (options.probability_dtype, device.type) == ("float64", "mps"):
        raise SettingsError("probability_dtype float64: not on mps. Use --device cpu, or --probability-dtype float32")
    engine = predictors.find_engine(options.engine or "auto", network, device=device, precision=precision)
    demand = demand_of(network, footprint, precision, n_channels, engine=engine, device=device.type)
    return device, precision, engine, demand


def found_model(model: Any, load: Callable[[str | Path], Any] = load_named) -> FoundModel:
    """Return the network that the caller gave, or that `load` returns for the name that they gave."""
    named = isinstance(model, str | Path)
    network = load(model) if named else model
    if isinstance(network, type):
        raise ModelError(f"{network.__name__} is a class. Give an instance of it, such as {network.__name__}(...)")
    if not callable(network):
        raise ModelError(f"a model is a name, a path, a torch.nn.Module or a callable, not a {type(network).__name__}")
    name = class_name(network)
    card = getattr(network, "card", None) or ModelCard(name=name)
    return FoundModel(network, card, source_of(model) if named else name)


def placed_in(target: LabelTarget, image: Image, resolution: Resolution) -> dict[str, Any]:
    """Return the layout fields of a mask of an image, at a resolution, that goes into an OME-Zarr image."""
    level = resolution.level
    shape = [n for n, a in zip(image.levels[level].shape, image.axes, strict=True) if a != "c"]
    return target.layout_of(image.box_axes, shape, level=level, factor=resolution.factor)


def _plan(part: Box, footprint: Footprint, options: Options, demand: Demand) -> Plan:
    """Return the plan for a part of an image; tiles and blocks of a run record have sides along outer axes, too."""
    tile, block, ndim = options.tile, options.block, footprint.ndim
    if isinstance(tile, tuple):
        if any(side != 1 for side in tile[:-ndim]):
            raise SettingsError(
                f"tile {','.join(map(str, tile))} has {len(tile)} sides, and a {ndim}-D network is looped over planes. "
                f"Give {ndim} sides, or a {len(tile)}-D model"
            )
        tile = tile[-ndim:]
    return plan_tiles(
        part.shape,
        footprint,
        tile=tile,
        block=block[-ndim:] if isinstance(block, tuple) else block,
        batch=options.batch,
        memory=options.memory,
        demand=demand,
        origin=part.start,
    )
