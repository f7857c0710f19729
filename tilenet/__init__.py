"""Exact, seamless segmentation of images too large for memory.

Segment           `segment`, `lazy`, `batch`, `plan_tiles`
Read and write    `open_image`, `open_mask`, `overlay`, `write_geojson`, `write_table`, `write_tiff`
Networks          `UNet`, `load_model`, `save_model`, `ModelCard`, `Footprint`, `measure_footprint`, `train`, `Recipe`
Check             `verify`, `objects`, `evaluate`, `metrics`

All names are imported on first use, so that ``import tilenet`` takes almost no time.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tilenet import metrics
    from tilenet.api import segment
    from tilenet.batches.run import batch
    from tilenet.batches.summary import Result
    from tilenet.card import ModelCard
    from tilenet.errors import (
        BlocksFailed,
        EnvironmentFault,
        ImageError,
        ImageNotFound,
        ModelError,
        ModelNotFound,
        OutputError,
        OutputExists,
        OutputIncomplete,
        OutputLocked,
        OutputMismatch,
        OutputNotFound,
        SettingsError,
        TilenetError,
        UnknownOption,
        VerifyFailed,
    )
    from tilenet.evaluation.scoring import evaluate
    from tilenet.export.geojson import Outlined, write_geojson
    from tilenet.export.table import write_table
    from tilenet.export.totals import Measured
    from tilenet.footprint import AxisFootprint, Footprint
    from tilenet.geometry import Box
    from tilenet.instances.in_memory import objects
    from tilenet.lazy_array import lazy
    from tilenet.masks.tiff_export import write_tiff
    from tilenet.masks.tiff_mask import TiffMask, open_mask
    from tilenet.models.saved import load_model, save_model
    from tilenet.pictures.overlays import overlay
    from tilenet.plan import Block, Plan, Tile
    from tilenet.probe.measuring import measure_footprint
    from tilenet.readers import open_image
    from tilenet.readers.image import Image
    from tilenet.runner import Report
    from tilenet.sizes import plan_tiles
    from tilenet.store import Mask
    from tilenet.training.loop import train
    from tilenet.training.recipe import Recipe
    from tilenet.unet import UNet
    from tilenet.verification import Verification, verify

_HOMES = {
    "api": ("segment",),
    "batches.run": ("batch",),
    "card": ("ModelCard",),
    "verification": ("Verification", "verify"),
    "errors": (
        "BlocksFailed",
        "EnvironmentFault",
        "ImageError",
        "ImageNotFound",
        "ModelError",
        "ModelNotFound",
        "OutputError",
        "OutputExists",
        "OutputIncomplete",
        "OutputLocked",
        "OutputMismatch",
        "OutputNotFound",
        "SettingsError",
        "TilenetError",
        "UnknownOption",
        "VerifyFailed",
    ),
    "evaluation.scoring": ("evaluate",),
    "footprint": ("AxisFootprint", "Footprint"),
    "export.geojson": ("Outlined", "write_geojson"),
    "geometry": ("Box",),
    "instances.in_memory": ("objects",),
    "lazy_array": ("lazy",),
    "probe.measuring": ("measure_footprint",),
    "export.totals": ("Measured",),
    "export.table": ("write_table",),
    "models.saved": ("load_model", "save_model"),
    "pictures.overlays": ("overlay",),
    "plan": ("Block", "Plan", "Tile"),
    "readers": ("open_image",),
    "readers.image": ("Image",),
    "runner": ("Report",),
    "sizes": ("plan_tiles",),
    "store": ("Mask",),
    "masks.tiff_export": ("write_tiff",),
    "batches.summary": ("Result",),
    "masks.tiff_mask": ("TiffMask", "open_mask"),
    "training.loop": ("train",),
    "training.recipe": ("Recipe",),
    "unet": ("UNet",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AxisFootprint",
    "Block",
    "BlocksFailed",
    "Box",
    "EnvironmentFault",
    "Footprint",
    "Image",
    "ImageError",
    "ImageNotFound",
    "Mask",
    "Measured",
    "ModelCard",
    "ModelError",
    "ModelNotFound",
    "Outlined",
    "OutputError",
    "OutputExists",
    "OutputIncomplete",
    "OutputLocked",
    "OutputMismatch",
    "OutputNotFound",
    "Plan",
    "Recipe",
    "Report",
    "Result",
    "SettingsError",
    "TiffMask",
    "Tile",
    "TilenetError",
    "UNet",
    "UnknownOption",
    "Verification",
    "VerifyFailed",
    "batch",
    "evaluate",
    "lazy",
    "load_model",
    "measure_footprint",
    "metrics",
    "objects",
    "open_image",
    "open_mask",
    "overlay",
    "plan_tiles",
    "save_model",
    "segment",
    "train",
    "verify",
    "write_geojson",
    "write_table",
    "write_tiff",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"tilenet.{_HOME_OF[name]}"), name)
    missing = AttributeError(f"module 'tilenet' has no attribute {name!r}")
    if name.startswith("_") or not name.isidentifier() or not find_spec(f"tilenet.{name}"):
        raise missing
    try:
        return import_module(f"tilenet.{name}")
    except ImportError as error:  # it needs a package that only some machines have
        raise missing from error


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
