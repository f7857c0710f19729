"""Train the packaged model `nuclei`: nuclei in fluorescence, grey and H&E-like images.

    python pipelines/train_nuclei.py DATA OUT.safetensors [--epochs 32] [--start MODEL]

The packaged model was trained for 20 epochs (`--epochs 20 --start`) from its previous weights, which had 48 epochs
behind them, the first 32 from random weights.

DATA is the stage 1 training set of the 2018 Data Science Bowl (BBBC038v1, CC0, Caicedo et al. 2019, with the
community's corrected labels), as a folder of images/ and labels/ in which each name begins with its kind: fluo_,
colour_, bfgray_. The images listed in nuclei_test.txt, a fifth of each kind, are never trained on; those in
nuclei_validation.txt choose the epoch. The scores of both, by kind, are written on the model card.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from tilenet import ModelCard, UNet, metrics, objects, save_model
from tilenet.training.data import find_pairs, read_pair
from tilenet.training.loop import Progress, train
from tilenet.training.recipe import Recipe
from tilenet.training.validation import predict_whole

HERE = Path(__file__).parent
KINDS = ("fluo", "colour", "bfgray")

RECIPE = Recipe(
    targets="depth",  # rim, body and centre separate touching nuclei; each centre holds a seed
    class_weights=(1.0, 1.5, 1.5, 1.5),
    small=300,  # half of all nuclei are smaller, and pooled scores count objects, not pixels
    w0=5,
    tile=244,
    zoom=1.7,  # pixel sizes are unknown and mixed, in training and in use
    stretch=2.5,
    elastic=3,
    elastic_grid=8,
    turns="any",
    intensity=0.3,
    noise=0.35,
    invert=0.12,
    tint=0.08,
    stain=0.12,
    swap=0.12,
    grey=0.1,
    dab=0.6,
    dyed=0.6,
    holes=0.4,  # otherwise white holes in tissue are taken for bright nuclei of fluorescence
    shares={"fluo": 0.58, "colour": 0.36, "bfgray": 0.06},
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
    notes=(
        "Trained by pipelines/train_nuclei.py, seed 0: 20 epochs from the weights before, which had 48, the first 32 "
        "from random weights. The validation images chose "
        "the epoch, and the defaults of tilenet.objects, by which the objects of the scores were made. Counts are "
        "pooled over images, mean_ap is the mean of images. Pixel sizes of the training images are unknown "
        "and mixed; nuclei of about 10 to 40 px across are known. Looked at: fluorescence (DAPI, H2B; good where "
        "nuclei lie apart; in dense, bright clusters many are missed, more so with one channel of a colour file), Ki67 "
        "with haematoxylin at about 0.35 um/px (good; faint blue nuclei are partly missed), H&E at 0.25 to "
        "0.5 um/px (dark and middling nuclei found, large pale ones partly; false pieces in dense purple cytoplasm, "
        "at flakes of keratin and in some white holes; at 0.25 um/px many specks: leave out what is under 12 um2; on "
        "twelve tiles of another H&E set mean Dice is 0.78 at 0.5 um/px and 0.80 at 0.25), brown DAB epithelium (most "
        "nuclei found, some pale and crowded ones missed, or several as one). Not for stains of the nuclear "
        "envelope (rims alone are found), nor electron microscopy. Weak on grey bright-field smears, and on a piece of "
        "glass without tissue cut out by itself, whose noise the scaling enlarges. Not for diagnosis."
    ),
)


def names(file: str) -> list[str]:
    """Return the stems listed in a file beside this one."""
    return (HERE / file).read_text().split()


def score_pairs(network: UNet, folder: Path, stems: list[str]) -> dict[str, float | None]:
    """Score a network on some pairs of a folder, comparing its objects with instance labels.

    Counts are summed over the images; ``mean_ap`` is the mean of the images' values.
    """
    assert network.card is not None
    pixels, found, precisions = metrics.PixelCounts(), metrics.ObjectCounts(), []
    paths = find_pairs(folder)
    for stem in stems:
        [pair] = read_pair(stem, *paths[stem], scaling=network.card.scaling)
        image = np.broadcast_to(pair.image, (network.in_channels, *pair.label.shape))
        probabilities = predict_whole(network, image)
        labels = objects(probabilities)
        foreground = np.take(network.card.mask_of_class, probabilities.argmax(axis=0)) > 0
        pixels += metrics.count_pixels(foreground, pair.label > 0).get(1, metrics.PixelCounts())
        found += metrics.count_objects(labels, pair.label, thresholds=(0.5,))[0.5]
        precisions.append(metrics.mean_average_precision(labels, pair.label))
    return {
        "images": len(stems),
        "dice": pixels.dice,
        "f1": found.f1,
        "precision": found.precision,
        "recall": found.recall,
        "panoptic_quality": found.panoptic_quality,
        "mean_ap": float(np.mean(precisions)) if precisions else 1.0,
    }


def scores_by_kind(model: UNet, data: Path, stems: list[str]) -> dict[str, dict[str, float | None]]:
    """Return the scores of all images together, and of each kind."""
    by_kind = {kind or "all": [s for s in stems if s.startswith(kind)] for kind in ("", *KINDS)}
    scores = {kind: score_pairs(model, data, some) for kind, some in by_kind.items()}
    return {kind: {k: v and round(v, 3) for k, v in values.items()} for kind, values in scores.items()}


def show(p: Progress) -> None:
    """Print one line per epoch."""
    left = f"{p.seconds_left / 60:.0f} min left"
    print(f"epoch {p.epoch}/{p.epochs}: loss {p.loss:.4f}, score {p.score:.4f} (best {p.best:.4f}), {left}", flush=True)


def main() -> None:
    """Train, then score the best epoch on the images that were held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--start", type=Path, help="a model whose weights to start from")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    recipe = replace(RECIPE, epochs=options.epochs)
    model = train(
        options.data,
        options.out,
        recipe=recipe,
        card=CARD,
        start=options.start,
        resume=options.resume,
        leave_out=names("nuclei_test.txt"),
        validate_on=names("nuclei_validation.txt"),
        progress=show,
    )
    scored = {part: scores_by_kind(model, options.data, names(f"nuclei_{part}.txt")) for part in ("validation", "test")}
    for part, scores in scored.items():
        for kind, values in scores.items():
            print(part, kind, values)
    assert model.card is not None
    save_model(model, options.out, card=replace(model.card, metrics=scored))


if __name__ == "__main__":
    main()
