"""The run record: everything that decides the bytes of a mask, as plain values that an output keeps."""

from __future__ import annotations

import logging
from typing import Any

from tilenet import machine
from tilenet.card import DEPTH_CLASSES, parse_scaling
from tilenet.decide import Decision, ObjectRule, relative_spacing
from tilenet.errors import SettingsError
from tilenet.footprint import Footprint
from tilenet.geometry import Box
from tilenet.jobs.job import Job
from tilenet.jobs.network_input import NetworkInput
from tilenet.jobs.options import Options
from tilenet.readers.image import Image
from tilenet.region import roi_to_json

LOG = logging.getLogger("tilenet")


def run_record(
    job: Job, taken: NetworkInput, options: Options, *, precision: str, engine: str, part: Box
) -> dict[str, Any]:
    """Return the run record: everything that decides the bytes, which `Options.filled_from` reads back."""
    return {
        "axes": job.image.axes,
        # The image may have been opened with a pixel size before it was given to the run.
        "pixel_size": list(job.image.given_pixel_size) or None,
        "tile": list(job.plan.tile),
        "block": list(job.plan.block),
        "batch": job.plan.batch,
        "threads": options.threads or machine.current_threads(),
        "output": options.output or "mask",
        "probability_dtype": options.probability_dtype or "float32",
        "missing": options.missing or "error",
        **taken.to_record(),
        "roi": roi_to_json(part, options.roi),
        "device": machine.find_device(job.device).type,
        "precision": precision,
        "engine": engine,
        "tissue": job.search.rule,
        "scaling": dict(options.scaling or parse_scaling(job.card.scaling)),
        "threshold": job.decision.threshold if len(job.card.classes) == 1 else None,
        "least_depth": _least_depth(options, job.decision),
        **_spacing(options, job.image, job.footprint),
        **_link(options, job),
    }


def _least_depth(options: Options, decision: Decision) -> float | None:
    """Return how deep objects must reach; None where the network does not say how deep a pixel lies in one."""
    if not decision.depths:
        if options.least_depth is not None:
            if options.output != "objects":
                raise SettingsError(f"least_depth {options.least_depth} is for objects. Ask for them (--objects), too")
            raise SettingsError(
                f"least_depth {options.least_depth} is for objects of a model whose classes are "
                f"{', '.join(DEPTH_CLASSES)}. Leave it out"
            )
        return None
    rule = ObjectRule() if options.least_depth is None else ObjectRule(least_depth=options.least_depth)
    return float(rule.least_depth)


def _spacing(options: Options, image: Image, footprint: Footprint) -> dict[str, list[float]]:
    """Return the spacing for the record of objects, in which separating them measures; nothing if it is equal."""
    if options.output != "objects":
        return {}
    found = options.spacing
    if found is None:
        sizes = image.pixel_size[-footprint.ndim :]
        found = relative_spacing(sizes)
        if footprint.ndim == 3 and None in sizes:
            axes = ", ".join(axis for axis, size in zip(image.box_axes[-3:], sizes, strict=True) if size is None)
            LOG.warning(
                "%s: the size of its voxels along %s is not known, so they are taken for cubes; in flat ones, objects "
                "are often joined: give --pixel-size Z,Y,X (in Python pixel_size=)",
                *(image.name, axes),
            )
    return {"spacing": list(found)} if found else {}


def _link(options: Options, job: Job) -> dict[str, float]:
    """Return the threshold of links for the record of objects of planes; nothing if they are not to be linked."""
    if options.link is None:
        return {}
    if options.output != "objects":
        raise SettingsError(f"link {options.link} is for objects. Ask for them (--objects), too")
    ObjectRule(link=options.link)
    name, axes = job.image.name, job.image.box_axes
    if job.footprint.ndim > 2:
        raise SettingsError(f"{name}: link is for a 2-D model, and the objects of a 3-D one are volumes. Leave it out")
    if "z" not in axes:
        remedy = "Leave link out" + (", or name one of them z (--axes)" if len(axes) > 2 else "")
        raise SettingsError(f"{name}: link joins objects along z, and its axes are {axes}. {remedy}")
    if job.plan.shape[axes.index("z")] < 2:
        raise SettingsError(f"{name}: link joins objects of several planes, and there is one. Leave link out")
    return {"link": float(options.link)}
