"""Describe what tilenet takes a file for: a mask, a model or an image."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from tilenet.address import without_name
from tilenet.errors import OutputError, TilenetError
from tilenet.readers import open_image
from tilenet.readers.calibrated import overruled_size
from tilenet.readers.guards import PiecesMissing
from tilenet.readers.image import Image

MODEL_SUFFIXES = (".safetensors", ".pt", ".pth")


def describe(file: str, *, axes: str | None = None, pixel_size: Any = None, model: str = "nuclei") -> dict[str, Any]:
    """Return what `tilenet info` prints of a file, or of a packaged model by its name, ready for JSON.

    `axes` and `pixel_size` are those of an image, as for `open_image`; for an image, `model` is the one for which to
    describe what `segment` would read.
    """
    from tilenet.models.saved import packaged_models

    if file in packaged_models() or Path(file).suffix in MODEL_SUFFIXES:
        return _model(file)
    return _mask(file) or _unfinished(file) or _image(file, model, axes=axes, pixel_size=pixel_size)


def _model(file: str) -> dict[str, Any]:
    from tilenet.models.saved import fingerprint, load_model

    network = load_model(file)
    assert network.card is not None
    footprint = network.footprint
    facts = {"kind": "model", **network.card.to_dict(), "sha256": fingerprint(network)}
    return facts | {"step": footprint.step, "lost": footprint.lost, "margin": footprint.margin}


def _mask(file: str) -> dict[str, Any] | None:
    from tilenet.masks.tiff_mask import open_mask

    try:
        mask = open_mask(file)
    except OutputError:
        return None
    with mask:
        facts = {
            "kind": "mask",
            "axes": mask.axes,
            "shape": mask.shape,
            "origin": mask.origin,
            "pixel_size_um": mask.pixel_size,
            "dtype": str(mask.dtype),
            "levels": [level.shape for level in mask.levels],
            "labels": mask.info["card"]["labels"],
        }
        facts |= {"objects": mask.info["objects"]} if mask.has_objects else {}
    made = {n: mask.info[n] for n in ("version", "image", "model", "record", "scaling", "tissue") if n in mask.info}
    return facts | {"probabilities": mask.probabilities is not None} | made


def _unfinished(file: str) -> dict[str, Any] | None:
    from tilenet.masks.label_target import LABELS, open_target
    from tilenet.masks.tiff_store import is_tiff, store_beside
    from tilenet.runs.object_outputs import DEPTHS, making_of
    from tilenet.runs.object_shares import how_far
    from tilenet.runs.shares import how_to_go_on, written_of
    from tilenet.store import is_complete, is_ours
    from tilenet.store.metadata import MAKING

    kind, path, target = {"kind": "mask, not complete"}, Path(file.rstrip("/").removesuffix(MAKING)), None
    if not path.name:  # the folder that the command runs in
        return None
    if path.parent.name == LABELS:
        with suppress(TilenetError):
            target = open_target(path.parent.parent)
    if target is None and is_tiff(path) and not path.exists():
        path = store_beside(path)
    if is_ours(path) and not is_complete(path):  # a complete one may be replaced by what is described here
        written, total = written_of(path)
        counts = {"blocks": f"{written} of {total} are written", "written": written, "total": total}
        return kind | counts | _at_work(path, how_to_go_on(path))
    if found := how_far(path, target):
        counts = {"blocks": str(found), "written": found.written, "total": found.blocks}
        return kind | counts | _at_work(making_of(path, target) / DEPTHS, found.to_do)
    return None


def _at_work(store: Path, to_do: str) -> dict[str, Any]:
    """Return whether a store is being written, and by whom; what to do, unless one process writes the whole of it."""
    from tilenet.store import held_whole, writers_of

    writers = ", ".join(writers_of(store))
    said = [f"Is being written by {writers}"] if writers else []
    if not (writers and held_whole(store)):
        said.append(to_do)
    return {"running": bool(writers), "segment": ". ".join(said)}


def _image(file: str, model: str, **how: Any) -> dict[str, Any]:
    image, refused = _opened(file, **how)
    with image:
        facts = {
            "kind": "image",
            "reader": image.reader,
            "axes": image.axes,
            **({"axes_in_file": image.stated_axes} if image.stated_axes not in ("", image.axes) else {}),
            "shape": image.shape,
            "dtype": str(image.dtype),
            "levels": [level.shape for level in image.levels],
            "pixel_size_um": image.pixel_size,
            "pixel_sizes_um": [level.pixel_size for level in image.levels],
            **({"pixel_size_in_file_um": image.stated_pixel_size} if overruled_size(image) else {}),
            "channels": image.channel_names,
            "colour": image.is_color,
        }
        if image.drops_alpha:
            facts["alpha"] = "not read"
        if image.n_missing:
            facts["missing_tiles"] = image.n_missing
        return facts | {"segment": f"{model}: {refused}{_reading(image, model)}"}


def _opened(file: str, **how: Any) -> tuple[Image, str]:
    """Return an image and, if it lacks pieces, the error that `segment` gives without ``--missing fill``."""
    try:
        return open_image(file, **how), ""
    except PiecesMissing as error:
        refused = without_name(str(error), file)
        return open_image(file, **how, missing="fill"), f"refused: {refused}. With that: "


def _reading(image: Image, model: str) -> str:
    """Return what a model would be given of an image, or why the image would be refused."""
    from tilenet.jobs.options import Options
    from tilenet.jobs.setup import make_job

    try:
        job = make_job(image, model, Options())
    except TilenetError as error:
        return f"refused: {str(error).removeprefix(f'{image.name}: ')}"
    planes = f", {image.box_axes} plane by plane" if len(image.box_axes) > job.footprint.ndim else ""
    what = "red, green and blue" if image.is_color else f"{image.n_channels} channels"
    if image.n_channels == 1:
        what = "one channel" if job.image.n_channels == 1 else "one channel, for every input"
    return f"{job.resolution.text}; {what}{planes}"
