"""Training: pairs of images and labels in, a model file out.

data.py        pairs from a folder, split by seed
targets.py     what each pixel is to become, and how much it counts
augment.py     crops, deformed and recoloured at random
stain.py       blue and brown, painted onto purple images
loss.py        what is made small, and at what pace
recipe.py      every option, in one place
validation.py  whole images through the network, scored
history.py     the curves, as CSV and as a picture
checkpoint.py  what a killed training needs to go on
loop.py        `train`
"""

from typing import TYPE_CHECKING, Any

from tilenet.training.recipe import Recipe

if TYPE_CHECKING:
    from tilenet.training.loop import Progress, train

__all__ = ["Progress", "Recipe", "train"]


def __getattr__(name: str) -> Any:
    # The recipe is needed for the command's help, PyTorch is not.
    if name in ("Progress", "train"):
        from tilenet.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'tilenet.training' has no attribute {name!r}")
