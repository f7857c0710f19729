"""The state from which a killed training resumes as if nothing had happened."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tilenet.errors import OutputExists, OutputMismatch
from tilenet.store.files import RESUME
from tilenet.store.place import put_whole

State = dict[str, Tensor]


class Folder:
    """The folder beside the model: recipe, last state, best weights, history.

    Examples
    --------
    >>> Folder(Path("cells.safetensors")).path.name
    'cells.training'
    """

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out.with_suffix(".training")
        self.last, self.recipe = self.path / "last.pt", self.path / "recipe.json"

    def begin(self, identity: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """Return the state to resume from, or None for a fresh start; raise if a result would be lost.

        `identity` is everything that decides the result; a training resumes only with the same identity.
        """
        text = json.dumps(identity, indent=1, sort_keys=True)
        if not resume and self.path.exists():
            raise OutputExists(f"{self.path}: exists already. Go on with it (--resume), or choose another name")
        if not resume and self.out.exists():
            raise OutputExists(f"{self.out}: exists already. Choose another name")
        if not self.recipe.is_file():
            if self.out.exists():  # the first epoch would replace it
                raise OutputExists(
                    f"{self.out}: cannot be resumed without {self.recipe}, which is gone. Put that back, or choose "
                    f"another name"
                )
            self.put("recipe.json", lambda part: part.write_text(text))
            return None
        if (before := self.recipe.read_text()) != text:
            old, new = json.loads(before), json.loads(text)
            name = next(k for k in {**old, **new} if old.get(k) != new.get(k))
            raise OutputMismatch(
                f"{self.path}: was started with {name} {old.get(name)}, not {new.get(name)}. Give the same, or choose "
                f"another name"
            )
        # To the CPU first: the device that saved it may not be here, and the training may go on with another.
        return torch.load(self.last, map_location="cpu", weights_only=True) if self.last.is_file() else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state."""
        content = io.BytesIO()  # writing to a file itself, torch reports a full disk by an error of no specific type
        torch.save(state, content)
        self.put("last.pt", lambda part: part.write_bytes(content.getbuffer()))

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace a file by an atomic rename: if the process is killed, the old file remains.

        Raises
        ------
        EnvironmentFault
            If it cannot be written.
        """
        with put_whole(self.path / name, again=RESUME) as part:
            write(part)


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
