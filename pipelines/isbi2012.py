"""The paper's own task: neuronal membranes in electron microscopy (ISBI 2012 challenge).

    python pipelines/isbi2012.py DATA OUT [--epochs 30] [--resume]

DATA holds image/ and label/ with the slices 00.png to 23.png of the labelled stack (label: 0 membrane, 255 cell
interior). Consecutive slices are nearly the same image, so the test slices are the last ones, apart by z, and
not drawn at random: 00-16 train, 17-18 choose the epoch, 20-23 are scored; 19 is left out, as a gap. Trains,
segments the test slices with `tilenet.segment`, and prints pixel error and foreground-restricted Rand and
information scores (Arganda-Carreras et al. 2015, https://doi.org/10.3389/fnana.2015.00142).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from skimage.io import imread
from skimage.measure import label

import tilenet
from tilenet import metrics
from tilenet.training import Progress, Recipe, train

VALIDATION = ("17", "18")
GAP = ("19",)
TEST = ("20", "21", "22", "23")
# Cutting at other levels trades split against merged cells; chosen on the validation slices alone.
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

RECIPE = Recipe(
    targets="classes",
    depth=4,
    wf=4,
    class_weights=(1.5, 1.0),  # membranes are a fifth of the pixels
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


def interior(model: Path, image: Path) -> np.ndarray:
    """Return the probability (y, x) that a pixel is cell interior."""
    return np.asarray(tilenet.segment(image, model=model, output="probabilities"))[1]


def rand_at(level: float, found: np.ndarray, truth: np.ndarray) -> float:
    """Return the foreground-restricted Rand F-score of the cells cut at a level."""
    return metrics.rand_scores(label(found > level, connectivity=1), label(truth, connectivity=1)).f_score


def score(model: Path, data: Path) -> dict[str, float]:
    """Choose the level on the validation slices, then score the test slices."""
    truths = {stem: imread(data / "label" / f"{stem}.png") > 0 for stem in (*VALIDATION, *TEST)}
    found = {stem: interior(model, data / "image" / f"{stem}.png") for stem in truths}
    means = {cut: np.mean([rand_at(cut, found[stem], truths[stem]) for stem in VALIDATION]) for cut in LEVELS}
    level = max(means, key=lambda cut: means[cut])
    cells = [(label(found[s] > level, connectivity=1), label(truths[s], connectivity=1)) for s in TEST]
    return {
        "level": level,
        "pixel_error": float(np.mean([metrics.pixel_error(found[s] > 0.5, truths[s]) for s in TEST])),
        "rand_f_score": float(np.mean([metrics.rand_scores(a, b).f_score for a, b in cells])),
        "information_f_score": float(np.mean([metrics.information_scores(a, b).f_score for a, b in cells])),
    }


def show(p: Progress) -> None:
    """Print one line per epoch."""
    print(f"epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, score {p.score:.4f} (best {p.best:.4f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="a folder for the model and the scores")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = args.out / "data"
    pairs.mkdir(exist_ok=True)
    for name, there in (("images", "image"), ("labels", "label")):
        if not (pairs / name).exists():
            (pairs / name).symlink_to((args.data / there).absolute())
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
