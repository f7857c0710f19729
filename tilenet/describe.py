"""What a file is understood to be: a mask, a model or an image, in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilenet.errors import OutputError
from tilenet.readers import open_image

MODEL_SUFFIXES = (".safetensors", ".pt", ".pth")


def describe(file: str, *, axes: str | None = None) -> dict[str, Any]:
    """Return what `tilenet info` prints, ready for JSON.

    Parameters
    ----------
    file : str
        A path, or the name of a packaged model.
    axes : str, optional
        For an image whose file does not say.
    """
    from tilenet.models import packaged_models

    if file in packaged_models() or Path(file).suffix in MODEL_SUFFIXES:
        return _model(file)
    return _mask(file) or _image(file, axes)


def _model(file: str) -> dict[str, Any]:
    from tilenet.models import fingerprint, load_model

    network = load_model(file)
    assert network.card is not None
    footprint = network.footprint
    facts = {"kind": "model", **network.card.to_dict(), "sha256": fingerprint(network)}
    return facts | {"step": footprint.step, "lost": footprint.lost, "margin": footprint.margin}


def _mask(file: str) -> dict[str, Any] | None:
    from tilenet.tiff_mask import open_mask

    try:
        mask = open_mask(file)
    except OutputError:
        return None
    facts = {
        "kind": "mask",
        "axes": mask.axes,
        "shape": mask.shape,
        "origin": mask.origin,
        "pixel_size_um": mask.pixel_size,
    }
    facts |= {
        "dtype": str(mask.dtype),
        "levels": [level.shape for level in mask.levels],
        "labels": mask.info["card"]["labels"],
    }
    made = {name: mask.info[name] for name in ("version", "image", "model", "record", "scaling")}
    return facts | {"probabilities": mask.probabilities is not None} | made


def _image(file: str, axes: str | None) -> dict[str, Any]:
    with open_image(file, axes=axes) as image:
        return {
            "kind": "image",
            "reader": image.reader,
            "axes": image.axes,
            "shape": image.shape,
            "dtype": str(image.dtype),
            "levels": [level.shape for level in image.levels],
            "pixel_size_um": image.pixel_size,
            "channels": image.channel_names,
        }
