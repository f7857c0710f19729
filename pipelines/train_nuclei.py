"""Train the packaged model `nuclei`: nuclei in fluorescence, grey and H&E-like images.

    python pipelines/train_nuclei.py DATA OUT.safetensors [--epochs 32] [--start MODEL]

DATA is the stage 1 training set of the 2018 Data Science Bowl (BBBC038v1, CC0, Caicedo et al. 2019,
with the community's corrected labels) as a folder of images/ and labels/, the names beginning with
the kind: fluo_, colour_, bfgray_. The images of nuclei_test.txt, a fifth of each kind, are never
read; those of nuclei_validation.txt choose the epoch. Prints the scores of both at the end.
"""

import argparse
from pathlib import Path

from tilenet import ModelCard
from tilenet.training import Progress, Recipe, train
from tilenet.training.validation import score_pairs

HERE = Path(__file__).parent
KINDS = ("fluo", "colour", "bfgray")

RECIPE = Recipe(
    targets="depth",  # rim, body and centre tell touching nuclei apart; a seed lies in each centre
    class_weights=(1.0, 1.5, 1.5, 1.5),
    small=300,  # half of all nuclei are smaller: pooled scores count objects, not pixels
    w0=5,
    tile=244,
    zoom=1.7,  # pixel sizes are unknown and mixed, in training and in use
    elastic=3,
    elastic_grid=8,
    turns="any",
    intensity=0.3,
    noise=0.35,
    invert=0.12,
    tint=0.08,
    stain=0.1,
    swap=0.12,
    grey=0.1,
    dab=0.4,
    shares={"fluo": 0.55, "colour": 0.37, "bfgray": 0.08},
    batch=8,
    crops=800,
    rate=3e-3,
    average=0.998,
    hold=0.45,
    precision="bf16",
    workers=1,
    compiled=True,
)

CARD = ModelCard(
    name="nuclei",
    labels={"1": "nucleus"},
    colors={"1": [0, 200, 80, 255]},
    training_data="BBBC038v1 (2018 Data Science Bowl, stage 1): fluorescence, grey and purple-stained images",
    licence="CC0-1.0",
)


def names(file: str) -> list[str]:
    """Return the stems listed in a file beside this one."""
    return (HERE / file).read_text().split()


def show(p: Progress) -> None:
    """Print one line per epoch."""
    left = f"{p.seconds_left / 60:.0f} min left"
    print(f"epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, score {p.score:.4f} (best {p.best:.4f}), {left}", flush=True)


def main() -> None:
    """Train, then score the best epoch on the images that were held back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--start", type=Path, help="a model whose weights to start from")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    recipe = Recipe(**{**vars(RECIPE), "epochs": args.epochs})
    model = train(
        args.data,
        args.out,
        recipe=recipe,
        card=CARD,
        start=args.start,
        resume=args.resume,
        leave_out=names("nuclei_test.txt"),
        validate_on=names("nuclei_validation.txt"),
        progress=show,
    )
    for part in ("validation", "test"):
        stems = names(f"nuclei_{part}.txt")
        for kind in ("", *KINDS):
            scores = score_pairs(model, args.data, [s for s in stems if s.startswith(kind)])
            print(part, kind or "all", {k: round(v, 3) for k, v in scores.items()})


if __name__ == "__main__":
    main()
