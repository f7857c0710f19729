"""The command line: parses, calls, prints. Nothing is computed here.

Heavy modules are imported inside the commands, so that ``tilenet --help`` is immediate.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any, NoReturn

import click

import tilenet
from tilenet.cli import batch, export, pictures, plan, segment, training, tuning
from tilenet.cli.options import AXES, FILE, JSON, NUMBERS, PIXEL_SIZE, QUIET, Finite
from tilenet.cli.output import plain, print_nothing_more, progress_bar, reader_has_gone, remarks, say, show, tell
from tilenet.errors import TilenetError, counted, first_line, refuse_windows
from tilenet.interrupts import Interrupted, interruptible

# Entries of a description that are printed under another name than JSON has, which would be taken for something else.
SAID = {("record", "pixel_size"): "given_pixel_size"}
# Entries of a description that repeat, as numbers, what others tell people.
FOR_PROGRAMS = ("written", "total", "running")
# The most characters of a line of notes.
WIDTH = 100
# Removed from the command line before it is parsed, so that it may follow any command.
DEBUG = "--debug"


class Commands(click.Group):
    """Commands that the help lists in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names; click would sort them."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; refuse an option with a value that is given twice, of which click takes the last."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            here = click.Context(command, parent=ctx, info_name=name)
            given = command.make_parser(here).parse_args([*rest])[2]
            for option in given:
                if isinstance(option, click.Option) and not option.is_flag and given.count(option) > 1:
                    raise click.UsageError(f"{option.opts[0]} is given twice, and takes one value. Give it once", here)
        return name, command, rest


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tilenet.__version__, message="tilenet %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error; it may stand anywhere on the line.")
def cli(debug: bool) -> None:
    """Segment images of any size, exactly: no seams, whatever the tile size."""
    refuse_windows()


@click.command()
@click.argument("file")
@AXES
@PIXEL_SIZE
@click.option("--model", "-m", default="nuclei", show_default=True, help="For an image: what this model would see.")
@JSON
def info(file: str, as_json: bool, **how: Any) -> None:
    """Show what FILE is understood to be: an image, a mask or a model."""
    from tilenet.describe import describe

    # Warnings alone: what a run would remark is among the facts.
    with remarks(shown=not as_json, level=logging.WARNING) as said:
        result = describe(file, **how)
    told = {name: value for name, value in result.items() if name not in FOR_PROGRAMS}
    width = max(map(len, told))
    text = "\n".join(f"{name:<{width}}  {fact}" for name, fact in _facts(told))
    show(result | {"remarks": said}, text, as_json=as_json)


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines of a description: a name, and a fact; a mapping has a line for each of its entries."""
    for name, value in result.items():
        if not isinstance(value, dict):
            yield from zip_longest([name], wrap(value, WIDTH) if name == "notes" else [plain(value)], fillvalue="")
            continue
        # What a user's model answers to a small input is for tilenet alone.
        entries = [f"{SAID.get((name, key), key)}: {plain(entry)}" for key, entry in value.items() if key != "answer"]
        yield from zip_longest([name], entries, fillvalue="")


@click.command()
@click.argument("out", type=FILE)
@click.option("--image", help="The image, if it is no longer where it was.")
@click.option("--model", "-m", help="The model, if it is no longer where it was.")
@click.option("--windows", type=click.IntRange(0), default=8, show_default=True, help="Windows to recompute.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Chooses the windows.")
@JSON
@QUIET
def verify(
    out: Path, image: str | None, model: str | None, windows: int, seed: int, as_json: bool, quiet: bool
) -> None:
    """Check the files of the mask OUT, and recompute parts of it."""
    from tilenet import verification

    with progress_bar("windows", out, shown=not quiet) as progress, remarks(shown=not (quiet or as_json)) as said:
        found = verification.verify(out, image, model=model, windows=windows, seed=seed, progress=progress)
    result = {"ok": found.ok, "damage": found.damage, "not_recomputed": found.not_recomputed}
    result |= {"windows": found.windows, "pixels": found.pixels}
    result |= {"ties": found.ties, "differences": [{"box": str(b), "pixels": n} for b, n in found.differences]}
    result["remarks"] = said
    text = (
        f"{out}: files as written; {counted(found.windows, 'window')} ({found.pixels} px) as the network gives, "
        f"{counted(found.ties, 'tie')}"
    )
    if found.not_recomputed:
        text = f"{out}: files as written; nothing was recomputed: {found.not_recomputed}"
    wrong = [*found.damage, *(f"{count} of {box.size} px at {box} differ" for box, count in found.differences)]
    show(result, text if found.ok else "\n".join(wrong), as_json=as_json, quiet=quiet)
    found.raise_if_failed(out)


@click.command()
@click.argument("weights")
@click.option("--out", "-o", required=True, type=FILE, help="A .safetensors file.")
@click.option("--padding/--no-padding", default=None, help="Whether the network pads its convolutions with zeros.")
@click.option("--pooling", type=click.Choice(["max", "avg"]), help="[default: max]")
@click.option("--scaling", help="none, linear:SUBTRACT,DIVIDE or percentile:LOW,HIGH.  [default: none]")
@click.option("--pixel-size", type=Finite(), help="Micrometres per pixel of the training images.")
@click.option("--classes", help="Names of the outputs, commas between them.")
@click.option("--mask-of-class", type=NUMBERS, help="Mask value of each output.")
@click.option("--colors", help="Colours of mask values, such as 1=00c864,2=ffd600.  [default: from a palette]")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
def convert(weights: str, out: Path, **options: Any) -> None:
    """Write WEIGHTS as one .safetensors file with a model card."""
    from tilenet.models.saved import convert_model

    with remarks(shown=True):
        convert_model(weights, out, **{k: v for k, v in options.items() if v is not None})
    say(f"{out}")


@click.command()
@click.argument("out", type=FILE)
def sample(out: Path) -> None:
    """Write a slide to try tilenet on.

    It has 4096 x 4096 px: one photograph of 512 px, mirrored over and over. It has no pixel size.
    """
    from tilenet.sample import write_sample

    say(f"{write_sample(out)}")


# In the order in which a user comes to need them.
LOOK_AND_RUN = (info, plan.plan, segment.segment, batch.batch, segment.finish)
USE = (verify, pictures.overlay, export.export)
MODELS_AND_MORE = (training.train, training.evaluate, convert, tuning.tune, sample)
for command in LOOK_AND_RUN + USE + MODELS_AND_MORE:
    cli.add_command(command)


# Exit code of a program that SIGPIPE (13) ended: 128 + 13.
CLOSED_PIPE = 141


def main() -> None:
    """Run the command, and turn every error into one line and an exit code."""
    with interruptible(_say_interrupted):
        try:
            _run()
        except Interrupted as error:
            _say_interrupted()
            # Not sys.exit, which would wait for a thread whose read hangs.
            os._exit(error.exit_code)


def _run() -> None:
    try:
        with cli.make_context("tilenet", [word for word in sys.argv[1:] if word != DEBUG]) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.MissingParameter as error:
        # --tissue takes the next word as its mask, even if that was meant to be the image.
        hint = " --tissue takes the next word as its mask: put it last" if "--tissue" in sys.argv else ""
        _give_up(error.format_message() + hint, error, error.exit_code)
    except click.NoSuchOption as error:
        _give_up(_option_elsewhere(error.option_name) or error.format_message(), error, error.exit_code)
    except click.ClickException as error:
        _give_up(error.format_message() + _instead(error), error, error.exit_code)
    except TilenetError as error:
        _give_up(str(error), error, error.exit_code)
    except PermissionError as error:
        _give_up(f"{error.filename or first_line(error)}: permission denied. Check who may read and write it", error, 4)
    except MemoryError as error:
        _give_up("out of memory. Run again with a smaller --tile, --batch or --memory", error, 4)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_has_gone():  # and it was not a worker's pipe that broke
            print_nothing_more()
            sys.exit(CLOSED_PIPE)
        if said := _impossible_path(error):
            _give_up(f"{said}. Give another path", error, 2)
        _give_up(f"unexpected {type(error).__name__}: {error}. Run again with {DEBUG}, and report it", error, 1)


def _impossible_path(error: Exception) -> str:
    """Return what is wrong with a path that no file can have; empty for any other error."""
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{error.filename}: {(error.strerror or '').lower()}"
    # As pathlib says it before Python 3.13.
    loop = re.fullmatch("Symlink loop from '(.*)'", str(error)) if isinstance(error, RuntimeError) else None
    return f"{loop[1]}: is a symbolic link that leads to itself" if loop else ""


def _instead(error: click.ClickException) -> str:
    """Return what to write instead, if click refuses a number with a decimal comma, or more files than are taken."""
    message = error.format_message()
    if message.startswith("Got unexpected extra argument") and isinstance(error, click.UsageError) and error.ctx:
        command = error.ctx.command
        taken = " and ".join(str(known.name).upper() for known in command.params if isinstance(known, click.Argument))
        others = "; tilenet batch takes several images" if command is segment.segment else ""
        return f". Give one {taken} at a time{others}"
    said = re.search(r"'(-?\d*),(\d+)' is not a valid float", message)
    return f" Write {said[1]}.{said[2]}, with a point" if said else ""


def _option_elsewhere(option: str) -> str:
    """Return which other commands have an option; empty if none has it."""
    have = [name for name, command in cli.commands.items() if any(option in known.opts for known in command.params)]
    return f"No such option '{option}' here: it is one of tilenet {', '.join(sorted(have))}" if have else ""


def _give_up(message: str, error: BaseException, code: int) -> NoReturn:
    if DEBUG in sys.argv and not isinstance(error, click.ClickException):
        raise error
    _say(message)
    sys.exit(code)


def _say_interrupted() -> None:
    resumes = not {"segment", "train"}.isdisjoint(sys.argv)
    again = "To go on, run the same command with --resume" if resumes else "Run it again"
    shard = any(word.startswith("--shard") for word in sys.argv)
    _say(f"interrupted. {'To go on, run the same command' if shard else again}")


def _say(message: str) -> None:
    tell(f"tilenet: error: {' '.join(message.split())}")
