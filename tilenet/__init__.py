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
    from tilenet import metrics as metrics
    from tilenet.api import segment as segment
    from tilenet.batches.run import batch as batch
    from tilenet.batches.summary import Result as Result
    from tilenet.card import ModelCard as ModelCard
    from tilenet.errors import BlocksFailed as BlocksFailed
    from tilenet.errors import EnvironmentFault as EnvironmentFault
    from tilenet.errors import ImageError as ImageError
    from tilenet.errors import ImageNotFound as ImageNotFound
    from tilenet.errors import ModelError as ModelError
    from tilenet.errors import ModelNotFound as ModelNotFound
    from tilenet.errors import OutputError as OutputError
    from tilenet.errors import OutputExists as OutputExists
    from tilenet.errors import OutputIncomplete as OutputIncomplete
    from tilenet.errors import OutputLocked as OutputLocked
    from tilenet.errors import OutputMismatch as OutputMismatch
    from tilenet.errors import OutputNotFound as OutputNotFound
    from tilenet.errors import SettingsError as SettingsError
    from tilenet.errors import TilenetError as TilenetError
    from tilenet.errors import UnknownOption as UnknownOption
    from tilenet.errors import VerifyFailed as VerifyFailed
    from tilenet.evaluation.scoring import evaluate as evaluate
    from tilenet.export.geojson import write_geojson as write_geojson
    from tilenet.export.table import write_table as write_table
    from tilenet.export.totals import Measured as Measured
    from tilenet.export.totals import Outlined as Outlined
    from tilenet.footprint import AxisFootprint as AxisFootprint
    from tilenet.footprint import Footprint as Footprint
    from tilenet.geometry import Box as Box
    from tilenet.instances.in_memory import objects as objects
    from tilenet.lazy_array import lazy as lazy
    from tilenet.masks.tiff_export import write_tiff as write_tiff
    from tilenet.masks.tiff_mask import TiffMask as TiffMask
    from tilenet.masks.tiff_mask import open_mask as open_mask
    from tilenet.models.saved import load_model as load_model
    from tilenet.models.saved import save_model as save_model
    from tilenet.pictures.overlays import overlay as overlay
    from tilenet.plan import Block as Block
    from tilenet.plan import Plan as Plan
    from tilenet.plan import Tile as Tile
    from tilenet.probe.measuring import measure_footprint as measure_footprint
    from tilenet.readers import open_image as open_image
    from tilenet.readers.image import Image as Image
    from tilenet.runner import Report as Report
    from tilenet.sizes import plan_tiles as plan_tiles
    from tilenet.store import Mask as Mask
    from tilenet.training.loop import train as train
    from tilenet.training.recipe import Recipe as Recipe
    from tilenet.unet import UNet as UNet
    from tilenet.verification import Verification as Verification
    from tilenet.verification import verify as verify

# The module of each public name.
_HOMES = {
    "api": "segment",
    "batches.run": "batch",
    "batches.summary": "Result",
    "card": "ModelCard",
    "evaluation.scoring": "evaluate",
    "export.geojson": "write_geojson",
    "export.table": "write_table",
    "export.totals": "Measured Outlined",
    "footprint": "AxisFootprint Footprint",
    "geometry": "Box",
    "instances.in_memory": "objects",
    "lazy_array": "lazy",
    "masks.tiff_export": "write_tiff",
    "masks.tiff_mask": "TiffMask open_mask",
    "models.saved": "load_model save_model",
    "pictures.overlays": "overlay",
    "plan": "Block Plan Tile",
    "probe.measuring": "measure_footprint",
    "readers": "open_image",
    "readers.image": "Image",
    "runner": "Report",
    "sizes": "plan_tiles",
    "store": "Mask",
    "training.loop": "train",
    "training.recipe": "Recipe",
    "unet": "UNet",
    "verification": "Verification verify",
    "errors": "BlocksFailed EnvironmentFault ImageError ImageNotFound ModelError "
    "ModelNotFound OutputError OutputExists OutputIncomplete OutputLocked "
    "OutputMismatch OutputNotFound SettingsError TilenetError UnknownOption VerifyFailed",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = [*_HOME_OF, "metrics"]


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
