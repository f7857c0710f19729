"""The crops of an epoch: each is drawn from its own seed, whichever worker makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tilenet.errors import SettingsError
from tilenet.footprint import Footprint
from tilenet.training.augment import draw_crop
from tilenet.training.data import Pair
from tilenet.training.recipe import Recipe
from tilenet.training.stain import modality_of
from tilenet.training.targets import make_targets

# Default side of the network's output in training, by number of axes.
TILE = {2: 196, 3: 28}
# Most that a large image is drawn, relative to one of median size.
LARGEST_SHARE = 3.0


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """The crops of an epoch; item i is an image (C, *input) and its target (2, *output).

    The random numbers of item i come from (seed, epoch, i) alone, so that they are the same for
    any number of workers, and after a resume.
    """

    def __init__(self, pairs: Sequence[Pair], recipe: Recipe, footprint: Footprint, values: tuple[int, ...]) -> None:
        self.recipe, self.lost, self.epoch = recipe, footprint.lost, 0
        side = recipe.tile or TILE[footprint.ndim]
        lengths = [min(side, max(p.label.shape[k] for p in pairs)) for k in range(footprint.ndim)]
        self.shape = tuple(a.legal_at_least(n + 2 * a.lost) for a, n in zip(footprint.axes, lengths, strict=True))
        # Writable copies: a grey image broadcast to three channels is a read-only view.
        self.images = [torch.from_numpy(np.array(p.image, np.float32)) for p in pairs]
        self.targets = [torch.from_numpy(make_targets(p.label, recipe, values)) for p in pairs]
        self.looks = [modality_of(*pair) for pair in zip(self.images, (t[0] for t in self.targets), strict=True)]
        if (recipe.dab or recipe.dyed or recipe.holes) and {*self.looks} == {"other"}:
            raise SettingsError("dab, dyed and holes are for planes of three channels, stained or fluorescent ones")
        self.probabilities = draw_probabilities(pairs, recipe)
        output = np.prod(footprint.output_shape(self.shape))
        self.count = recipe.crops or int(np.ceil(sum(p.label.size for p in pairs) / output))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.recipe.seed, self.epoch, index])
        k = int(rng.choice(len(self.images), p=self.probabilities))
        return draw_crop(
            self.images[k],
            self.targets[k],
            shape=self.shape,
            lost=self.lost,
            recipe=self.recipe,
            rng=rng,
            look=self.looks[k],
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch: (N, C, *input) and (N, 2, *output)."""
        self.epoch = epoch
        loader = DataLoader(
            self, self.recipe.batch, num_workers=self.recipe.workers, drop_last=len(self) > self.recipe.batch
        )
        yield from loader


def draw_probabilities(pairs: Sequence[Pair], recipe: Recipe) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the probability of drawing each pair.

    It grows with the square root of an image's size, up to `LARGEST_SHARE` times the median, so that
    a few large images do not dominate. If `recipe.shares` names groups, this holds within each group.
    """
    sizes = np.sqrt([p.label.size for p in pairs])
    weight = np.minimum(sizes / np.median(sizes), LARGEST_SHARE)
    for start, share in recipe.shares.items():
        group = np.array([p.name.startswith(start) for p in pairs])
        if not group.any():
            raise SettingsError(f"shares: no training image has a name that starts with {start!r}")
        weight[group] *= share / weight[group].sum()
    if recipe.shares:
        weight[[not p.name.startswith(tuple(recipe.shares)) for p in pairs]] = 0
    return np.asarray(weight / weight.sum(), np.float64)
