"""The commands ``tilenet train`` and ``tilenet evaluate``: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tilenet.training import Progress

# Name, type and help of the options that go to the recipe; unsaid ones keep its defaults.
RECIPE: tuple[tuple[str, Any, str], ...] = (
    ("depth", int, "Resolutions of the network."),
    ("wf", int, "The first block has 2**wf channels."),
    ("padding", bool, "Pad convolutions with zeros (true or false)."),
    ("batch_norm", bool, "Normalise after each ReLU (true or false)."),
    ("up_mode", click.Choice(["upconv", "upsample"]), "How the network upsamples."),
    ("dropout", float, "Share of features dropped at the bottom."),
    (
        "targets",
        click.Choice(["mask", "depth", "classes"]),
        "Objects or not; how deep inside one; the labels as classes.",
    ),
    ("w0", float, "Height of the weight between near objects (the paper's: 10)."),
    ("sigma", float, "Its width in pixels (the paper's: 5)."),
    ("tile", int, "Side of the network's output in training."),
    ("zoom", float, "Crops are enlarged or reduced by up to this factor."),
    ("elastic", float, "Standard deviation of the displacements, in pixels (the paper's: 10)."),
    ("elastic_grid", int, "Points per side of their grid (the paper's: 3)."),
    ("flips", bool, "Mirror crops (true or false)."),
    ("turns", click.Choice(["none", "right", "any"]), "Turn crops by no, right or any angles."),
    ("intensity", float, "Strength of random gamma, gain and offset."),
    ("stain", float, "Strength of random mixing of colour channels."),
    ("noise", float, "Share of crops that are blurred or noisy."),
    ("optimizer", click.Choice(["adamw", "sgd"]), "Both with a cosine schedule."),
    ("rate", float, "Learning rate."),
    ("momentum", float, "Of sgd (the paper's: 0.99)."),
    ("epochs", int, "How often the images are gone through."),
    ("crops", int, "Crops per epoch."),
    ("batch", int, "Crops per step."),
    ("validation", float, "Share of the images that choose the best epoch."),
    ("seed", int, "Decides split, weights and crops."),
    ("precision", click.Choice(["auto", "fp32", "bf16"]), "auto is bf16 on a GPU, fp32 elsewhere."),
    ("device", str, "auto, cpu or cuda."),
    ("workers", int, "Processes that make crops."),
)


def recipe_options(command: Any) -> Any:
    """Add an option for each entry of `RECIPE`."""
    for name, kind, text in reversed(RECIPE):
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=text)(command)
    return command


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The model: a .safetensors file.")
@click.option("--start", help="A model whose weights to start from.")
@click.option("--axes", help="Letters of tczyx, one per array axis, where the files do not say.")
@click.option("--scaling", help="none, linear:SUBTRACT,DIVIDE or percentile:LOW,HIGH.")
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch, or start.")
@recipe_options
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def train(
    data: Path,
    out: Path,
    start: str | None,
    axes: str | None,
    scaling: str | None,
    resume: bool,
    quiet: bool,
    **said: Any,
) -> None:
    """Train a U-Net on DATA: a folder with images/ and labels/, files of one stem in each."""
    from tilenet.predict import keep_freed_memory
    from tilenet.scaling import parse_rule
    from tilenet.training import Recipe
    from tilenet.training import train as train_network

    keep_freed_memory()
    chosen = {name: value for name, value in said.items() if value is not None}
    if scaling is not None:
        chosen["scaling"] = parse_rule(scaling)
    recipe = Recipe(**chosen)
    show = None if quiet else _show
    network = train_network(data, out, recipe=recipe, start=start, axes=axes, resume=resume, progress=show)
    if not quiet:
        click.echo("\n".join([f"{out}", *_rows(network.card.metrics if network.card else {}, "  ")]))


@click.command()
@click.argument("prediction", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option("--classes", is_flag=True, help="The labels are classes, not objects.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(prediction: Path, truth: Path, classes: bool, as_json: bool) -> None:
    """Score PREDICTION against TRUTH: two files, or two folders of files of one stem."""
    from tilenet.evaluation import evaluate as score

    scores = score(prediction, truth, classes=classes)
    click.echo(json.dumps(scores) if as_json else "\n".join(_rows(scores)))


def _show(p: Progress) -> None:
    left = f"{p.seconds_left / 60:.1f} min left"
    click.echo(
        f"epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, score {p.score:.4f} (best {p.best:.4f}), {left}", err=True
    )
    sys.stderr.flush()


def _rows(scores: dict[str, Any], indent: str = "") -> list[str]:
    rows = []
    for name, value in scores.items():
        if isinstance(value, dict):
            rows += [f"{indent}{name}", *_rows(value, indent + "  ")]
        else:
            rows.append(
                f"{indent}{name:<24} {value:.4f}" if isinstance(value, float) else f"{indent}{name:<24} {value}"
            )
    return rows
