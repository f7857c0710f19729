"""The paper's own task: neuronal membranes in electron microscopy (ISBI 2012 challenge).

    python pipelines/isbi2012.py DATA OUT [--epochs 120] [--resume]

DATA holds image/ and label/ with the slices 00.png to 23.png of the labelled stack (label: 0 membrane, 255 cell
interior). Consecutive slices are nearly the same image, so the test slices are the last ones, apart by z, and
not drawn at random: 00-16 train, 17-18 choose the epoch and the cut, 20-23 are scored; 19 is left out, as a gap.
As in the paper, cells are objects and the membranes between them weigh more (w0 = 10, sigma = 5 px), and what is
scored is the mean over turned and mirrored versions of a slice. Prints pixel error and foreground-restricted
Rand and information scores (Arganda-Carreras et al. 2015, https://doi.org/10.3389/fnana.2015.00142).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from skimage.io import imread, imsave
from skimage.measure import label

import tilenet
from tilenet import metrics
from tilenet.training import Progress, Recipe, train

VALIDATION = ("17", "18")
GAP = ("19",)
TEST = ("20", "21", "22", "23")
# Cutting at other levels trades split against merged cells; chosen on the validation slices alone.
LEVELS = tuple(round(0.05 * k, 2) for k in range(4, 20))

RECIPE = Recipe(
    targets="mask",
    depth=4,
    wf=4,
    w0=10,
    sigma=5,
    tile=244,
    zoom=1.15,
    elastic=5,
    elastic_grid=6,
    turns="right",
    intensity=0.25,
    noise=0.2,
    batch=4,
    crops=128,
    rate=3e-3,
    average=0.99,
    hold=0.4,
    precision="bf16",
)
CARD = tilenet.ModelCard(
    name="isbi2012",
    classes=("membrane", "interior"),
    mask_of_class=(0, 1),
    labels={"1": "cell interior"},
    training_data="ISBI 2012 EM segmentation challenge, slices 00-16",
    licence="challenge data, for research",
    pixel_size=0.004,
)


def interior(model: tilenet.UNet, image: np.ndarray) -> np.ndarray:
    """Return the probability (y, x) that a pixel is cell interior, averaged over the eight turns and mirrors."""
    found = []
    for turns in range(4):
        for flip in (False, True):
            seen = np.rot90(image, turns)[:, :: -1 if flip else 1]
            inside = np.asarray(tilenet.segment(seen, model=model, output="probabilities"))[1]
            found.append(np.rot90(inside[:, :: -1 if flip else 1], -turns))
    return np.mean(found, axis=0)


def cells(found: np.ndarray, level: float) -> np.ndarray:
    """Return the connected cells cut at a level, numbered."""
    return label(found > level, connectivity=1)


def score(model: Path, data: Path) -> dict[str, float]:
    """Choose the two cuts on the validation slices, then score the test slices."""
    truths = {stem: imread(data / "label" / f"{stem}.png") > 0 for stem in (*VALIDATION, *TEST)}
    network = tilenet.load_model(model)
    found = {stem: interior(network, imread(data / "image" / f"{stem}.png")) for stem in truths}

    def error(stem: str, level: float) -> float:
        return metrics.pixel_error(found[stem] > level, truths[stem])

    def rand(stem: str, level: float) -> float:
        return metrics.rand_scores(cells(found[stem], level), label(truths[stem], connectivity=1)).f_score

    def information(stem: str, level: float) -> float:
        return metrics.information_scores(cells(found[stem], level), label(truths[stem], connectivity=1)).f_score

    pixel_level = min(LEVELS, key=lambda level: np.mean([error(s, level) for s in VALIDATION]))
    cell_level = max(LEVELS, key=lambda level: np.mean([rand(s, level) for s in VALIDATION]))
    return {
        "pixel_level": pixel_level,
        "cell_level": cell_level,
        "pixel_error": float(np.mean([error(s, pixel_level) for s in TEST])),
        "rand_f_score": float(np.mean([rand(s, cell_level) for s in TEST])),
        "information_f_score": float(np.mean([information(s, cell_level) for s in TEST])),
    }


def make_pairs(data: Path, pairs: Path) -> None:
    """Lay the stack out for training: the images as they are, each connected interior as one object."""
    (pairs / "labels").mkdir(parents=True, exist_ok=True)
    if not (pairs / "images").exists():
        (pairs / "images").symlink_to((data / "image").absolute())
    for path in sorted((data / "label").glob("*.png")):
        numbered = label(imread(path) > 0, connectivity=1).astype(np.uint16)
        imsave(pairs / "labels" / f"{path.stem}.tif", numbered, check_contrast=False)


def show(p: Progress) -> None:
    """Print one line per epoch."""
    print(f"epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, score {p.score:.4f} (best {p.best:.4f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="a folder for the model and the scores")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    pairs = args.out / "data"
    make_pairs(args.data, pairs)
    recipe = Recipe(**{**vars(RECIPE), "epochs": args.epochs})
    model = args.out / "isbi2012.safetensors"
    left_out = (*GAP, *TEST)
    train(
        pairs,
        model,
        recipe=recipe,
        card=CARD,
        leave_out=left_out,
        validate_on=VALIDATION,
        resume=args.resume,
        progress=show,
    )
    scores = score(model, args.data)
    (args.out / "scores.json").write_text(json.dumps(scores, indent=1))
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
