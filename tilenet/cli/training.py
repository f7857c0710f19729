"""The commands ``tilenet train`` and ``tilenet evaluate``: parse, call, print."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from tilenet.cli.options import CHANNELS, FILE, JSON, MICROMETRES, NUMBERS, QUIET, Finite, Parsed, with_options
from tilenet.cli.output import remarks, show, tell
from tilenet.training.recipe import RATES, Recipe

if TYPE_CHECKING:
    from tilenet.training.loop import Progress


# What `evaluate` says behind its scores.
MEANINGS = {
    "pixel_error": "share of wrong pixels",
    "dice": "of each class",
    "iou": "of each class",
    "objects": "that match one of the truth by more than this IoU",
    "panoptic_quality": "mean IoU of matched objects times f1, at IoU 0.5",
    "mean_ap": "matched objects, as a share of all found or missed; mean over IoU 0.5 to 0.95",
    "rand": "of pairs of pixels: 1 minus the adapted Rand error (ISBI 2012)",
    "information": "the same by mutual information",
    "rand_thinned": "as rand, with the borders between objects thinned",
    "information_thinned": "as information, with the borders between objects thinned",
}


# Name, type and help text of the options of the recipe; those not given keep the recipe's defaults.
RECIPE: tuple[tuple[str, Any, str], ...] = (
    ("depth", int, "Resolutions of the network."),
    ("wf", int, "The first block has 2**wf channels."),
    ("padding", bool, "Pad convolutions with zeros (true or false)."),
    ("batch_norm", bool, "Normalise after each ReLU (true or false)."),
    ("up_mode", click.Choice(["upconv", "upsample"]), "How the network upsamples."),
    ("pool_size", NUMBERS, "Pooling per axis, such as 1,2,2 for a thin stack."),
    ("dropout", Finite(), "Share of features dropped at the bottom (the paper's: 0.5)."),
    (
        "targets",
        click.Choice(["mask", "depth", "classes"]),
        "What is learned: object or not; how deep inside one; the labels as classes.",
    ),
    ("class_weights", Parsed("W,W,...", "training.recipe", "parse_weights"), "Weight of each class, or balanced."),
    ("small", Finite(), "Objects of fewer pixels than this count more."),
    ("w0", Finite(), "Height of the weight between near objects (the paper's: 10)."),
    ("sigma", Finite(), "Width of that weight in pixels (the paper's: 5)."),
    ("dice", Finite(), "Factor of the added soft Dice loss."),
    ("tile", int, "Side of the network's output in training."),
    ("zoom", Finite(), "Crops are enlarged or reduced by up to this factor."),
    ("stretch", Finite(), "Crops are lengthened along one direction by up to this factor."),
    ("elastic", Finite(), "Standard deviation of the displacements, in pixels (the paper's: 10)."),
    ("elastic_grid", int, "Points per side of their grid (the paper's: 3)."),
    ("flips", bool, "Mirror crops (true or false)."),
    ("turns", click.Choice(["none", "right", "any"]), "Turn crops: not at all, by right angles, or by any angle."),
    ("intensity", Finite(), "Strength of random gamma, gain and offset."),
    ("stain", Finite(), "Strength of random mixing of colour channels."),
    ("noise", Finite(), "Share of crops that are blurred or noisy."),
    ("invert", Finite(), "Share of grey crops that are inverted."),
    ("tint", Finite(), "Share of crops shown in some channels only."),
    ("swap", Finite(), "Share of crops whose channels change places."),
    ("grey", Finite(), "Share of crops that lose their colour."),
    ("dab", Finite(), "Share of colour crops repainted brown and blue (labels must be nuclei)."),
    ("dyed", Finite(), "Share of fluorescence crops repainted brown and blue."),
    ("holes", Finite(), "Share of crops in colour with white holes outside of nuclei (labels must be nuclei)."),
    ("optimizer", click.Choice(["adamw", "sgd"]), "Both with a cosine schedule."),
    ("rate", Finite(), "Learning rate."),
    ("momentum", Finite(), "Of sgd (the paper's: 0.99)."),
    ("weight_decay", Finite(), "Of adamw."),
    ("hold", Finite(), "Share of the training before the rate falls."),
    ("average", Finite(), "Decay per step of the averaged weights, which are kept; 0 for none."),
    ("epochs", int, "Number of epochs."),
    ("stop", int, "Epoch to end after, keeping its network and not the best one."),
    ("crops", int, "Crops per epoch."),
    ("batch", int, "Crops per step."),
    ("validation", Finite(), "Share of the images set aside to choose the best epoch."),
    ("seed", int, "Decides split, weights and crops."),
    ("precision", click.Choice(["auto", "fp32", "bf16"]), "auto is bf16 on a GPU, fp32 elsewhere."),
    ("device", str, "auto, cpu or cuda."),
    ("workers", int, "Processes that make crops."),
    ("compiled", bool, "Have PyTorch compile the network first (true or false)."),
)


# Help text for the defaults that are None or empty in the recipe.
DEFAULT_TEXTS = {
    "pool_size": "2 along each axis",
    "class_weights": "1 each",
    "tile": "196, in a volume 28",
    "rate": ", ".join(f"{rate:g} for {name}" for name, rate in RATES.items()),
    "stop": "none",
    "crops": "as many as cover the images once",
}


def _default(name: str) -> str:
    value = getattr(Recipe(), name)
    return DEFAULT_TEXTS.get(name, "") if value in (None, ()) else str(value).lower()


recipe_options = with_options(
    *(
        click.option(f"--{name.replace('_', '-')}", name, type=kind, help=f"{text}  [default: {_default(name)}]")
        for name, kind, text in RECIPE
    )
)


@click.command()
@click.argument("data", type=FILE)
@click.option("--out", "-o", required=True, type=FILE, help="The model: a .safetensors file.")
@click.option("--start", help="A model whose weights to start from.")
@click.option(
    "--axes",
    help="Letters of tczyx, one per array axis, where the files do not say. Frames along t are images of their own; "
    "yx then makes a 2-D network, zyx a 3-D one.",
)
@CHANNELS
@click.option(
    "--scaling",
    help="How the intensities of each file are scaled, in training and in each use of the model: none, "
    "linear:SUBTRACT,DIVIDE or percentile:LOW,HIGH.  [default: percentile:1,99.8, cut off at -0.5 and 1.5]",
)
@click.option("--resume", is_flag=True, help="Continue after the last finished epoch, or start.")
@click.option("--overwrite", is_flag=True, help="Replace OUT and the training beside it.")
@recipe_options
@JSON
@QUIET
def train(
    data: Path,
    out: Path,
    start: str | None,
    axes: str | None,
    channels: Sequence[int | str] | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **said: Any,
) -> None:
    """Train a U-Net on the images and labels in DATA.

    DATA is a folder with images/ and labels/, in which files that belong together have the same stem.
    """
    from tilenet.machine import keep_freed_memory
    from tilenet.models.saved import fingerprint
    from tilenet.training.loop import train as train_network

    keep_freed_memory()
    recipe = Recipe(**{name: value for name, value in said.items() if value is not None})
    progress, began = None if quiet else _tell_epoch, time.perf_counter()
    how: dict[str, Any] = {"start": start, "axes": axes, "channels": channels}
    how |= {"resume": resume, "overwrite": overwrite}
    with remarks(shown=not quiet) as remarked:
        network = train_network(data, out, recipe=recipe, progress=progress, **how)
    scores = network.card.metrics if network.card else {}
    facts = {"out": str(out), "sha256": fingerprint(network), "epochs": recipe.last_epoch, **scores}
    facts |= {"seconds": round(time.perf_counter() - began, 2), "remarks": remarked}
    show(facts, "\n".join([f"{out}", *_rows(scores, "  ")]), as_json=as_json, quiet=quiet)


@click.command()
@click.argument("prediction", type=FILE)
@click.argument("truth", type=FILE)
@click.option("--classes", is_flag=True, help="The labels are classes, not objects.")
@click.option(
    "--axes",
    help="Letters of tczyx, one per array axis, where the files do not say. Frames along t are scored one by one.",
)
@click.option(
    "--pixel-size",
    type=MICROMETRES,
    help="Micrometres per pixel, for masks that are split into objects, where the files do not say.",
)
@JSON
def evaluate(prediction: Path, truth: Path, as_json: bool, **options: Any) -> None:
    """Score PREDICTION against TRUTH.

    These are two files, or two folders of files with the same stems.
    """
    from tilenet.evaluation.scoring import evaluate as score

    with remarks(shown=not as_json) as said:
        scores = score(prediction, truth, **options)
    show({**scores, "remarks": said}, "\n".join(_rows(scores, meanings=MEANINGS)), as_json=as_json)


def _tell_epoch(p: Progress) -> None:
    left = f"{p.seconds_left / 60:.1f} min left"
    tell(f"epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, score {p.score:.4f} (best {p.best:.4f}), {left}")


def _rows(scores: dict[str, Any], indent: str = "", meanings: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    rows = []
    for name, value in scores.items():
        meaning = f"  {meanings[name]}" if name in meanings else ""
        if isinstance(value, dict):
            rows += [f"{indent}{name}{meaning}", *_rows(value, indent + "  ")]
        else:
            said = f"{value:.4f}" if isinstance(value, float) else "-" if value is None else value
            rows.append(f"{indent}{name:<24} {said}{meaning}")
    return rows
