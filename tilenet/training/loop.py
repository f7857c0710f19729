"""Training a U-Net on a folder of pairs.

References
----------
O. Ronneberger, P. Fischer, T. Brox: U-Net: Convolutional Networks for Biomedical Image
Segmentation. MICCAI 2015, https://doi.org/10.1007/978-3-319-24574-4_28
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tilenet.arguments import known_options
from tilenet.card import ModelCard, parse_scaling
from tilenet.errors import ModelError, OutputError, SettingsError
from tilenet.machine import current_threads, find_device, threads
from tilenet.models.saved import fingerprint, load_model, save_model
from tilenet.training.checkpoint import Average, Folder
from tilenet.training.crops import Crops
from tilenet.training.data import Pair, chosen_of, describe_training, digest_of, read_pairs
from tilenet.training.history import Examples, write_csv, write_picture
from tilenet.training.loss import class_weights, loss_of, optimizer_of, rate_at
from tilenet.training.network import add_dropout, build, completed
from tilenet.training.recipe import Recipe
from tilenet.training.targets import check_objects, class_values
from tilenet.training.validation import validate
from tilenet.unet import UNet

LOG = logging.getLogger("tilenet")
# Longer gradients are shortened to this norm.
GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Progress:
    """The progress of a training after an epoch."""

    # Epochs done, and in total.
    epoch: int
    epochs: int
    # Mean training loss of the epoch; validation score, and the best so far.
    loss: float
    score: float
    best: float
    # Estimate from the pace of this run.
    seconds_left: float


@known_options(hints={name: f"Give recipe=tilenet.Recipe({name}=...)" for name in Recipe.__dataclass_fields__})
def train(
    data: str | Path,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    start: str | Path | None = None,
    card: ModelCard | None = None,
    axes: str | None = None,
    channels: int | str | Sequence[int | str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    leave_out: Collection[str] = (),
    validate_on: Collection[str] = (),
    progress: Callable[[Progress], None] | None = None,
) -> UNet:
    """Train a network and write it, at its best epoch (or at `Recipe.stop`), to one file.

    Parameters
    ----------
    data : str or path
        A folder with ``images/`` and ``labels/``, each with one file per stem.
    out : str or path
        The model, ``.safetensors``. Beside it, a folder with the ending ``.training`` gets
        ``history.csv``, ``history.png`` and what a resume needs.
    recipe : Recipe, optional
        All options; the default suits objects in a few dozen images.
    start : str or path, optional
        A model of the same architecture whose weights to start from; by default He initialisation.
    card : ModelCard, optional
        Entries of the model's card that do not follow from the recipe.
    axes : str, optional
        Axes of the images, for files that do not state them (``"zyx"``). Apart from channels and time, images
        of two axes train a 2-D network, those of three a 3-D one; frames along ``t`` are images of their own.
    channels : int, str or sequence of them, optional
        The channels of every image that the network sees, in its order, by number or name; by default all. A run
        of the model on images with more channels needs the same choice.
    resume : bool
        Resume after the last finished epoch of a killed training, or start a new one.
    overwrite : bool
        Replace `out` and the training beside it, if tilenet wrote them.
    leave_out : collection of str
        Stems that are not used at all, such as a test set.
    validate_on : collection of str
        Stems that choose the best epoch; by default a share drawn by seed.
    progress : callable, optional
        Called after each epoch, with what has the attributes ``epoch`` and ``epochs`` (done, and in total), ``loss``,
        ``score`` and ``best`` (of this epoch, and the best score so far) and ``seconds_left``.

    Returns
    -------
    UNet
        The best network, in eval mode, with its card.

    Raises
    ------
    ImageError, ImageNotFound
        If the data are not pairs that can be trained on; if a stem of `leave_out` or `validate_on` is not there.
    SettingsError
        If no image is left to train on; if the loss of an epoch is not finite.
    OutputExists, OutputMismatch, OutputError
        If `out` exists; if the training to be resumed had another recipe; if its files are damaged or gone.
    """
    if not isinstance(recipe, Recipe | None):
        raise SettingsError(f"recipe {recipe!r}: give a tilenet.Recipe, such as tilenet.Recipe(epochs=1)")
    recipe, out = recipe or Recipe(), Path(out)
    _check_place(out, start, resume=resume, overwrite=overwrite)
    scaling = parse_scaling(recipe.scaling)
    chosen = chosen_of(read_pairs(data, scaling, axes=axes, channels=channels), recipe, leave_out, validate_on)
    run = _Run(recipe, Folder(out), chosen, card or ModelCard())
    begun = {"images": digest_of(chosen), "start": None, **{f"card's {k}": v for k, v in run.card.to_dict().items()}}
    if start is not None:
        model = load_model(start)
        run.start_from(model)
        begun["start"] = f"weights {fingerprint(model)[:12]}"
    state = run.folder.begin(recipe.identity() | begun, resume=resume, overwrite=overwrite)
    if state is not None:
        run.restore(state)
        run.refuse_lost_model()
    if len(run.rows) < recipe.last_epoch:
        LOG.info("%s: %s", data, describe_training(chosen, scaling))
    with threads(current_threads()):
        run.to_the_end(progress or (lambda _: None))
    return load_model(out)


def _check_place(out: Path, start: str | Path | None, *, resume: bool, overwrite: bool) -> None:
    if out.suffix != ".safetensors":
        raise ModelError(f"{out}: models are written as .safetensors. Change the ending")
    if resume and overwrite:
        raise SettingsError("resume and overwrite: give only one of them")
    if overwrite and start is not None and Path(start).resolve() == out.resolve():
        raise SettingsError(f"{out}: is the model to start from, so it cannot be replaced. Choose another name")


class _Run:
    """One training: its network, its optimizer and all that changes from step to step."""

    # Each line needs some of those above it.
    def __init__(self, recipe: Recipe, folder: Folder, pairs: tuple[list[Pair], list[Pair]], card: ModelCard) -> None:
        self.recipe, self.folder, self.held = recipe, folder, pairs[1]
        self.examples: Examples | None = None
        labels = [p.label for p in (*pairs[0], *pairs[1])]
        if recipe.targets != "classes":
            check_objects(labels, recipe.targets)  # type: ignore[arg-type]
        self.values = class_values(labels) if recipe.targets == "classes" else ()  # type: ignore[arg-type]
        self.card = completed(card, recipe, self.values)
        if recipe.class_weights not in ((), ("balanced",)) and len(recipe.class_weights) != len(self.card.classes):
            count, classes = len(recipe.class_weights), ", ".join(self.card.classes)
            raise SettingsError(f"class_weights are {count}, and there are {len(self.card.classes)} classes: {classes}")
        self.device = find_device(recipe.device)
        channels, ndim = len(pairs[0][0].image), pairs[0][0].label.ndim
        try:
            self.network = build(recipe, channels, len(self.card.classes), ndim).to(self.device)
        except ValueError as error:
            raise SettingsError(f"no such network for images of {ndim} axes: {error}") from error
        self.network.to(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)  # type: ignore[call-overload]
        if recipe.dropout:
            add_dropout(self.network, recipe)
        self.forward = torch.compile(self.network) if recipe.compiled else self.network
        self.crops = Crops(pairs[0], recipe, self.network.footprint, self.values)
        self.optimizer = optimizer_of(self.network, recipe)
        self.average = Average(self.network, recipe.average)
        self.class_weights = class_weights(self.crops.targets, recipe, len(self.card.classes)).to(self.device)
        self.rows: list[dict[str, float]] = []

    def start_from(self, model: UNet) -> None:
        if model.options != self.network.options:
            wanted = self.network.options
            differs = ", ".join(f"{k} {v}, not {wanted[k]}" for k, v in model.options.items() if v != wanted[k])
            raise ModelError(
                f"the model to start from has {differs}. Train such a network, or start from another model"
            )
        self.network.load_state_dict(model.state_dict())
        self.average = Average(self.network, self.recipe.average)

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.state = {name: value.to(self.device) for name, value in state["average"].items()}
        self.average.step = state["step"]
        self.rows = state["rows"]

    def refuse_lost_model(self) -> None:
        """Raise `OutputError` if the best network so far is gone: no later epoch may be better."""
        if not self.folder.out.exists() and (not self.recipe.stop or len(self.rows) >= self.recipe.stop):
            raise OutputError(
                f"{self.folder.out}: is gone, and {self.folder.path} has no copy of it. Put it back, or start again "
                f"with --overwrite"
            )

    def to_the_end(self, progress: Callable[[Progress], None]) -> None:
        began, first = time.monotonic(), len(self.rows)
        last = self.recipe.last_epoch
        for epoch in range(first, last):
            torch.manual_seed(self.recipe.seed * 1_000_003 + epoch)  # dropout
            loss = self._epoch(epoch)
            if not isfinite(loss):
                raise SettingsError(
                    f"{self.folder.out}: the loss of epoch {epoch + 1} is {loss}, so its weights are of no use. Start "
                    f"again (--overwrite), with a --rate below {self.recipe.peak_rate:g} or with --precision fp32"
                )
            self._finish(epoch, loss)
            pace = (time.monotonic() - began) / (epoch + 1 - first)
            scores = [row["score"] for row in self.rows]
            left = pace * (last - epoch - 1)
            progress(Progress(epoch + 1, last, loss, scores[-1], max(scores), left))

    def _epoch(self, epoch: int) -> float:
        self.network.train()
        losses = []
        per_epoch = max(1, len(self.crops) // self.recipe.batch)
        for k, (x, y) in enumerate(self.crops.batches(epoch)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(epoch * per_epoch + k, self.recipe.epochs * per_epoch, self.recipe)
            losses.append(self._step(x.to(self.device), y.to(self.device)))
        return float(torch.stack(losses).mean())

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        bf16 = self.recipe.precision == "bf16" or (self.recipe.precision == "auto" and self.device.type == "cuda")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = self.forward(x)
        loss = loss_of(logits.float(), y, dice=self.recipe.dice, class_weights=self.class_weights)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.average.update(self.network)
        return loss.detach()

    def _finish(self, epoch: int, loss: float) -> None:
        """Validate the averaged weights, write the model if they are the ones to keep, and save the state."""
        network = build(self.recipe, self.network.in_channels, self.network.n_classes, self.network.ndim)
        network.load_state_dict(self.average.state)
        network.to(self.device).eval()
        scores = validate(network, self.held, self.recipe, self.values)
        if kept := self._is_kept(epoch, scores["score"]):
            metrics = {"validation": scores, "epoch": epoch + 1}
            save_model(network, self.folder.out, card=replace(self.card, metrics=self.card.metrics | metrics))
        self.rows.append({"epoch": epoch + 1, "loss": loss, **scores})
        self.folder.put("history.csv", lambda part: write_csv(self.rows, part))
        examples = self._examples(network, epoch, kept=kept)
        self.folder.put("history.png", lambda part: write_picture(self.rows, examples, part))
        self.folder.save(
            {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state,
                "step": self.average.step,
                "rows": self.rows,
            }
        )

    def _examples(self, network: UNet, epoch: int, *, kept: bool) -> Examples:
        """Return what the network that is kept predicts, or this one where the last epoch will be kept."""
        if not self.examples:
            self.examples = Examples(self.held, self.recipe, self.values, self.card.classes)
        if kept or self.recipe.stop:
            self.examples.predict(network, epoch + 1)
        elif not self.examples.epoch:  # the training was resumed after the best epoch
            best = load_model(self.folder.out)
            self.examples.predict(best.to(self.device), int(best.card.metrics["epoch"]))  # type: ignore[union-attr]
        return self.examples

    def _is_kept(self, epoch: int, score: float) -> bool:
        if self.recipe.stop:
            return epoch + 1 == self.recipe.stop
        return not self.rows or score > max(row["score"] for row in self.rows)
