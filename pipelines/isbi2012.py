"""The paper's own task: neuronal membranes in electron microscopy (ISBI 2012 challenge).

    python pipelines/isbi2012.py DATA OUT [--epochs 60] [--resume]

DATA holds image/ and label/ with the slices 00.png to 23.png of the labelled stack (label: 0 membrane, 255 cell
interior). Consecutive slices are nearly the same image, so the test slices are not drawn at random: they are the last
ones, 20-23, separated from the others in z. A first network is trained on 00-16. Slices 17-18 choose its epoch, and
17-19 choose the levels and the size. The network that is scored is then trained on 00-18, up to that epoch; 19 is never
trained on, as a gap. The scores are those of the mean of its output over turned and mirrored versions of a slice. Cells
are grown by watershed until they meet, so that their Rand and information scores are those of thinned borders, the
challenge's final form (Arganda-Carreras et al. 2015, https://doi.org/10.3389/fnana.2015.00142). The plain form, in
which the membranes are a segment like any other, is scored too. With `OMP_NUM_THREADS=1`, a repeated run gives the same
bytes.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from scipy import ndimage as ndi
from skimage.io import imread, imsave
from skimage.measure import label
from skimage.segmentation import find_boundaries, watershed

import tilenet
from tilenet import metrics
from tilenet.training.loop import Progress, train
from tilenet.training.recipe import Recipe

VALIDATION = ("17", "18")
GAP = ("19",)
CHOOSING = (*VALIDATION, *GAP)
TEST = ("20", "21", "22", "23")
# Thresholds of the interior probability, which trade split against merged cells; chosen with the first network.
LEVELS = tuple(round(0.02 * k, 2) for k in range(15, 49))
SIZES = (1, 30, 100)

# Plain cross entropy, because it gives calibrated probabilities, which the pixel error needs. (The paper's border
# weights are `w0=10`.)
RECIPE = Recipe(
    targets="mask",
    depth=4,
    wf=4,
    dropout=0.2,
    w0=0,
    dice=0,
    tile=244,
    zoom=1.1,
    elastic=4,
    elastic_grid=6,
    turns="right",
    intensity=0.2,
    noise=0.2,
    batch=4,
    crops=192,
    epochs=60,
    rate=3e-3,
    average=0.99,
    precision="bf16",
)
# The labels lie half a pixel above and a quarter of a pixel to the left of the structures that they label: on each
# training slice, the correlation of image and label is highest when the image is moved by this offset.
OFFSET = (-0.5, -0.25)
CARD = tilenet.ModelCard(
    name="isbi2012",
    classes=("membrane", "interior"),
    mask_of_class=(0, 1),
    labels={"1": "cell interior"},
    training_data="ISBI 2012 EM segmentation challenge, slices 00-18",
    licence="challenge data, for research",
    pixel_size=0.004,
)


def interior(network: tilenet.UNet, image: np.ndarray) -> np.ndarray:
    """Return the probability (y, x) that a pixel is cell interior: the mean over turns and mirrors."""
    found = []
    for turns, flip in product(range(4), (False, True)):
        seen = np.rot90(image, turns)[:, :: -1 if flip else 1]
        inside = np.asarray(tilenet.segment(seen, model=network, output="probabilities"))[1]
        found.append(np.rot90(inside[:, :: -1 if flip else 1], -turns))
    return np.mean(found, axis=0)


def cells(found: np.ndarray, level: float, size: int) -> np.ndarray:
    """Return numbered cells: connected regions above that level, of at least that size, grown until they meet."""
    seeds = label(found > level, connectivity=1)
    seeds[(np.bincount(seeds.ravel()) < size)[seeds]] = 0
    return watershed(-found, seeds)


def pixel_error(found: np.ndarray, truth: np.ndarray, level: float) -> float:
    return metrics.pixel_error(found > level, truth > 0)


def rand(found: np.ndarray, truth: np.ndarray, level: float, size: int) -> float:
    return metrics.rand_scores(cells(found, level, size), truth).f_score


def information(found: np.ndarray, truth: np.ndarray, level: float, size: int) -> float:
    return metrics.information_scores(cells(found, level, size), truth).f_score


def plain_rand(found: np.ndarray, truth: np.ndarray, level: float) -> float:
    return metrics.rand_scores(label(found > level, connectivity=1), truth).f_score


def picture(image: np.ndarray, truth: np.ndarray, numbered: np.ndarray) -> np.ndarray:
    """Return a slice beside its true and its found cells (y, 3 x, 3) uint8; a found cell has its true cell's colour."""
    overlap = np.zeros((numbered.max() + 1, truth.max() + 1), int)
    np.add.at(overlap, (numbered, truth), 1)
    found = np.where(find_boundaries(numbered), 0, overlap[:, 1:].argmax(axis=1)[numbered] + 1)
    colours = np.random.default_rng(0).integers(60, 255, (truth.max() + 1, 3), np.uint8)
    colours[0] = 0
    return np.concatenate([np.stack([image] * 3, axis=-1), colours[truth], colours[found]], axis=1)


def score(first: tilenet.UNet, final: tilenet.UNet, data: Path, out: Path) -> dict[str, float]:
    """Choose levels and size with the first network, then score the final one and draw a picture of each test slice."""
    stems = (*CHOOSING, *TEST)
    found = {
        stem: interior(final if stem in TEST else first, read_image(data / "image" / f"{stem}.png")) for stem in stems
    }
    truths = {stem: label(imread(data / "label" / f"{stem}.png") > 0, connectivity=1) for stem in stems}

    def mean(scored: Callable[..., float], stems: tuple[str, ...], *cut: float) -> float:
        return float(np.mean([scored(found[stem], truths[stem], *cut) for stem in stems]))

    scores: dict[str, float] = {}
    level = min(LEVELS, key=lambda level: mean(pixel_error, CHOOSING, level))
    scores |= {"pixel_level": level, "pixel_error": mean(pixel_error, TEST, level)}
    level, size = max(product(LEVELS, SIZES), key=lambda cut: mean(rand, CHOOSING, *cut))
    scores |= {"cell_level": level, "cell_size": size, "rand_f_score_thinned": mean(rand, TEST, level, size)}
    scores["information_f_score_thinned"] = mean(information, TEST, level, size)
    for stem in TEST:
        image, numbered = read_image(data / "image" / f"{stem}.png"), cells(found[stem], level, size)
        imsave(out / f"slice{stem}.png", picture(image, truths[stem], numbered), check_contrast=False)
    level = max(LEVELS, key=lambda level: mean(plain_rand, CHOOSING, level))
    return scores | {"plain_level": level, "rand_f_score_plain": mean(plain_rand, TEST, level)}


def read_image(path: Path) -> np.ndarray:
    """Return a slice (y, x) uint8, moved so that it lies on its label."""
    moved = ndi.shift(imread(path).astype(np.float32), OFFSET, order=3, mode="mirror")
    return moved.round().clip(0, 255).astype(np.uint8)


def make_pairs(data: Path, pairs: Path) -> None:
    """Write the training data: images moved onto their labels, and labels with one object per connected interior."""
    for part in ("images", "labels"):
        (pairs / part).mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "label").glob("*.png")):
        imsave(pairs / "images" / path.name, read_image(data / "image" / path.name), check_contrast=False)
        numbered = label(imread(path) > 0, connectivity=1).astype(np.uint16)
        imsave(pairs / "labels" / f"{path.stem}.tif", numbered, check_contrast=False)


def show(p: Progress) -> None:
    """Print one line per epoch."""
    print(f"epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, score {p.score:.4f} (best {p.best:.4f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="a folder for the models and the scores")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    make_pairs(options.data, options.out / "data")
    recipe, how = replace(RECIPE, epochs=options.epochs), {"card": CARD, "resume": options.resume, "progress": show}
    first = train(
        options.out / "data",
        options.out / "first.safetensors",
        recipe=recipe,
        leave_out=(*GAP, *TEST),
        validate_on=VALIDATION,
        **how,
    )
    assert first.card is not None
    final = train(
        options.out / "data",
        options.out / "isbi2012.safetensors",
        recipe=replace(recipe, stop=first.card.metrics["epoch"]),
        leave_out=TEST,
        validate_on=GAP,
        **how,
    )
    scores = score(first, final, options.data, options.out)
    (options.out / "scores.json").write_text(json.dumps(scores, indent=1))
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
