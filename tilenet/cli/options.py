"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # which takes no types before click 8.4
    ParamType = click.ParamType


class Parsed(ParamType):
    """A text that a function of tilenet parses, which is imported when it is needed: --help must be quick."""

    def __init__(self, name: str, module: str, function: str) -> None:
        self.name, self._module, self._function = name, module, function

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the function makes of a text."""
        from tilenet.errors import SettingsError

        try:
            return getattr(import_module(f"tilenet.{self._module}"), self._function)(value)
        except SettingsError as error:
            self.fail(str(error), param, ctx)


class Finite(click.types.FloatParamType):
    """A number other than inf and nan, which float() takes, and which would compare with limits as nobody expects."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number of a text."""
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is not a finite number. Give one", param, ctx)
        return number


class FiniteRange(Finite, click.FloatRange):
    """Such a number between limits."""


FILE = click.Path(path_type=Path)
PART = Parsed("Y0:Y1,X0:X1", "region", "parse_roi")
NUMBERS = Parsed("N,N,...", "jobs.options", "parse_integers")
MICROMETRES = Parsed("UM or Z,Y,X", "readers.calibrated", "parse_pixel_size")
SHARE = Parsed("I/N", "runs.shares", "parse_share")


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options to a command, in the order in which its help lists them."""

    def add(command: Any) -> Any:
        return reduce(lambda command, option: option(command), reversed(options), command)

    return add


AXES = click.option(
    "--axes", help="Letters of tczyx, one per array axis, where the file does not say, or to rename t, z, c."
)
PIXEL_SIZE = click.option(
    "--pixel-size",
    type=MICROMETRES,
    help="Micrometres per pixel at level 0, where the file does not say, or in place of what it says.",
)
CHANNELS = click.option(
    "--channels",
    type=Parsed("N or NAME,...", "jobs.options", "parse_channels"),
    help="Channels the network sees, in its order, by number or name.",
)
# How to read an image and cut it into tiles.
image_options = with_options(
    click.option(
        "--model",
        "-m",
        default="nuclei",
        show_default=True,
        help="A name, a file, or MODULE:FUNCTION of your own.",
    ),
    click.option("--level", type=int, help="Pyramid level, 0 the finest.  [default: by --mpp]"),
    click.option(
        "--mpp", type=Finite(), help="Micrometres per pixel the network sees.  [default: the model's, else level 0]"
    ),
    AXES,
    PIXEL_SIZE,
    CHANNELS,
    click.option("--roi", type=PART, help="The part to take, in px of what the network sees.  [default: all]"),
    click.option(
        "--tissue",
        type=Parsed("MASK", "jobs.options", "parse_tissue"),
        is_flag=False,
        flag_value="auto",
        help="Skip blocks without tissue. auto, or no value at the end of the line: find it on a coarse level. "
        "MASK: a picture or zarr of the whole image, 0 on glass, or a .geojson of regions drawn in QuPath.  [default: "
        "nothing is skipped]",
    ),
    click.option(
        "--tile",
        type=Parsed("PX or Z,Y,X", "jobs.options", "parse_sides"),
        help="Side in px of what a tile writes, or one per axis.  [default: chosen by cost and memory]",
    ),
    click.option("--batch", type=int, help="Most tiles per forward pass."),
    click.option(
        "--memory", type=Parsed("BYTES", "byte_counts", "parse_bytes"), help="Memory for the run.  [default: 4GB]"
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="CPU threads for the network.  [default: OMP_NUM_THREADS, or the cores that this process may use; with "
        "--workers, each worker's part of these]",
    ),
    click.option("--device", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]"),
    click.option("--precision", help="auto (fp32), fp32, bf16, fp16 or fp64.  [default: auto]"),
    click.option(
        "--engine", help="auto (the fastest with the same logits), plain, or fast (else an error).  [default: auto]"
    ),
    click.option("--scaling", help="none, linear:SUBTRACT,DIVIDE or percentile:LOW,HIGH.  [default: the model's]"),
    click.option("--threshold", type=Finite(), help="For a model of one output.  [default: the model's, or 0.5]"),
    click.option("--output", type=click.Choice(["mask", "both"]), help="both adds probabilities.  [default: mask]"),
    click.option(
        "--probability-dtype", type=click.Choice(["float16", "float32", "float64"]), help="[default: float32]"
    ),
    click.option(
        "--missing",
        type=click.Choice(["error", "fill"]),
        help="What to do about missing tiles in the file.  [default: error]",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help="Refuse a model that makes seams, or was not checked for them.  [default: warn]",
    ),
)
objects_options = with_options(
    click.option("--objects", is_flag=True, help="Number the objects, 1..n, instead of writing classes."),
    click.option(
        "--least-depth",
        type=FiniteRange(0, 1),
        help="With --objects: leave out objects that are nowhere this deep, 0 to 1.  [default: 0.75]",
    ),
    click.option(
        "--link",
        type=Finite(),
        help="With --objects, a stack and a 2-D model: join objects of neighbouring planes whose overlap (IoU) is at "
        "least this, such as 0.25.  [default: none]",
    ),
)
OVERVIEW = click.option(
    "--overview", is_flag=True, help="Draw the mask over the image, in NAME.overview.png beside it."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
