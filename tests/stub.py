"""Predictors that workers import by their names: pickled they are a few hundred bytes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy import ndimage as ndi

from tilenet.card import DEPTH_CLASSES, ModelCard
from tilenet.footprint import Footprint

# Pixels that are trouble.
DEADLY, BAD = 253, 254
# Variable of the environment: for how many seconds `bright` sleeps in each call, so that a run lasts.
SLEEP = "TILENET_TEST_SLEEP"


def sum_of_nine(batch):
    """Return the sums of the 3 x 3 pixels around each, where those beyond the border count nothing."""
    padded = np.pad(batch.astype(np.float32), [(0, 0), (0, 0), (1, 1), (1, 1)])
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


@dataclass(frozen=True)
class Bright:
    """Tells whether the 3 x 3 pixels around one are bright; pixels of certain values kill the process, or fail."""

    footprint: ClassVar = Footprint.same(2, reach=1)
    sleep: float = 0.0
    bright: int = 900
    deaths: str = ""  # a file that gets a byte for each

    def __call__(self, batch):
        if (batch == DEADLY).any():
            if self.deaths:
                with Path(self.deaths).open("ab") as file:
                    file.write(b".")
            os.kill(os.getpid(), signal.SIGKILL)
        if (batch == BAD).any():
            raise ValueError("the lamp went out")
        time.sleep(self.sleep)
        total = sum_of_nine(batch)
        return np.concatenate([np.full_like(total, self.bright), total], axis=1)


class Threshold:
    """Tells whether a pixel is brighter than 100; of one that is just as bright both logits are equal."""

    footprint: ClassVar = Footprint.same(2, reach=0)

    def __call__(self, batch):
        seen = np.asarray(batch, np.float32)
        return np.concatenate([np.full_like(seen, 100), seen], axis=1)


class Dark:
    """Tells whether a pixel is dark in green."""

    footprint: ClassVar = Footprint.same(2, reach=0)

    def __call__(self, batch):
        green = batch[:, 1:2].astype(np.float32)
        return np.concatenate([np.full_like(green, 170), 340 - green], axis=1)


class Bright3D:
    """Tells whether a voxel is bright."""

    footprint: ClassVar = Footprint.same(3, reach=0, step=1)

    def __call__(self, batch):
        return np.asarray(batch, np.float32) - 100


class Deep:
    """Says of bright pixels that they lie deep, of those beside others less so."""

    footprint: ClassVar = Footprint.same(2, reach=1)
    card = ModelCard(name="deep", classes=DEPTH_CLASSES, mask_of_class=(0, 1, 1, 1))

    def __call__(self, batch):
        inside = batch[:, 0] > 100
        beside = ndi.minimum_filter(inside, size=(1, 3, 3), mode="constant") != inside
        return 9 * np.eye(4, dtype=np.float32)[np.where(inside, np.where(beside, 1, 3), 0)].transpose(0, 3, 1, 2)


def bright():
    """Return the predictor, as a worker asks for it by the name ``stub:bright``; `SLEEP` makes it slow."""
    return Bright(sleep=float(os.environ.get(SLEEP, 0)))


def shades(batch):
    """Tell dark, grey and bright pixels apart."""
    x = np.asarray(batch, np.float32)
    return np.concatenate([-abs(x), -abs(x - 100), -abs(x - 200)], axis=1)


shades.footprint = Footprint.same(2, reach=0, step=1)
shades.card = ModelCard(
    name="shades", classes=("dark", "grey", "bright"), mask_of_class=(0, 1, 2), colors={"2": [230, 30, 60, 255]}
)
