"""The state from which a killed training resumes as if nothing had happened."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tilenet.errors import OutputError, OutputExists, OutputMismatch, one_line
from tilenet.store.destination import put_whole
from tilenet.store.file_system import faults_named, remove_file, remove_parts

State = dict[str, Tensor]


class Folder:
    """The folder beside the model, ``cells.training`` of ``cells.safetensors``: recipe, last state, history."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out.with_suffix(".training")
        self.last, self.recipe = self.path / "last.pt", self.path / "recipe.json"

    def begin(
        self, identity: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> dict[str, Any] | None:
        """Return the state to resume from, or None for a fresh start; raise if a result would be lost.

        `identity` is everything that decides the result; a training resumes only with the same identity. With
        `overwrite`, the files of a training that is there are removed first, and the model.
        """
        text = json.dumps(identity, indent=1, sort_keys=True)
        if overwrite and self.recipe.is_file():
            self._remove()
        elif not resume:
            self._refuse_existing()
        if not self.recipe.is_file():
            if self.out.exists():  # the first epoch would replace it
                raise OutputExists(
                    f"{self.out}: cannot be resumed without {self.recipe}, which is gone. Put that back, or choose "
                    f"another name"
                )
            self.put("recipe.json", lambda part: part.write_text(text))
            return None
        try:
            old, new = dict(json.loads(self.recipe.read_text())), json.loads(text)
        except (ValueError, TypeError) as error:
            raise _damaged(self.recipe, error) from error
        if name := next((k for k in {**old, **new} if old.get(k) != new.get(k)), ""):
            raise OutputMismatch(
                f"{self.path}: was started with {name} {old.get(name)}, not {new.get(name)}. Give the same, or choose "
                f"another name"
            )
        return self._state() if self.last.is_file() else None

    def _state(self) -> dict[str, Any]:
        try:
            # To the CPU first: the device that saved it may not be here, and the training may go on with another.
            state: dict[str, Any] = torch.load(self.last, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch has many kinds of errors for a damaged file
            raise _damaged(self.last, error) from error
        return state

    def _refuse_existing(self) -> None:
        if self.path.exists():
            if not self.recipe.is_file():
                raise OutputExists(f"{self.path}: exists, and is no training of tilenet. Choose another name")
            raise OutputExists(
                f"{self.path}: exists already. Go on with it (--resume), replace it and {self.out.name} (--overwrite), "
                f"or choose another name"
            )
        if self.out.exists():
            raise OutputExists(f"{self.out}: exists already, without its training. Choose another name")

    def _remove(self) -> None:
        """Remove a training and its model, the recipe last: a removal that was killed can be repeated."""
        with faults_named(self.path, resumes=False):
            remove_parts(self.path)
            for path in (self.last, self.out, self.path / "history.csv", self.path / "history.png", self.recipe):
                remove_file(path)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state."""
        content = io.BytesIO()  # writing to a file itself, torch reports a full disk by an error of no specific type
        torch.save(state, content)
        self.put("last.pt", lambda part: part.write_bytes(content.getbuffer()))

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace a file by an atomic rename: if the process is killed, the old file remains."""
        with put_whole(self.path / name, resumes=True) as part:
            write(part)


def _damaged(file: Path, error: Exception) -> OutputError:
    return OutputError(f"{file}: is damaged ({one_line(error)}). Put a copy back, or start again with --overwrite")


class Average:
    """Exponential moving average of a network's weights and statistics.

    Late weights count most. Early in training the average follows the weights closely, because
    the decay starts low and reaches `decay` only after many steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.state: State = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Include the network's weights after a step."""
        self.step += 1
        decay = min(self.decay, self.step / (self.step + 20))
        for key, value in network.state_dict().items():
            if value.dtype.is_floating_point and self.decay:
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)
