"""`tilenet train` and `tilenet evaluate`, as a user types them."""

import json

import numpy as np
import pytest
import tifffile
from contents import lines_of
from training_helpers import write_pair

import tilenet


def discs(seed):
    """Return an image of bright discs in noise, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((96, 96), np.uint16)
    y, x = np.mgrid[:96, :96]
    for k, (cy, cx) in enumerate([(20, 20), (20, 70), (70, 25), (65, 70)], start=1):
        cy, cx = cy + rng.integers(-5, 6), cx + rng.integers(-5, 6)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.integers(60, 160)] = k
    image = (30 + 150 * (labels > 0) + rng.normal(0, 10, labels.shape)).clip(0, 255)
    return image.astype(np.uint8), labels


@pytest.fixture
def data(tmp_path):
    (tmp_path / "found").mkdir()
    for seed in range(6):
        write_pair(tmp_path, seed, *discs(seed))
    return tmp_path


SMALL = ("--depth", 2, "--wf", 3, "--tile", 48, "--epochs", 4, "--batch", 2, "--crops", 24, "--elastic", 2)


def test_a_model_trained_by_the_command_segments_and_scores(data, tilenet_command):
    model = data / "discs.safetensors"
    code, out, err = tilenet_command("train", data, "--out", model, *SMALL, "--json")
    assert code == 0, err
    assert err.count("epoch ") == 4
    facts, history = json.loads(out), lines_of(data / "discs.training" / "history.csv")
    best = max(history, key=lambda line: float(line["score"]))
    assert (facts["out"], facts["epochs"], facts["epoch"]) == (str(model), 4, int(best["epoch"]))
    assert facts["validation"] == {name: float(best[name]) for name in ("dice", "score")} and facts["seconds"] > 0
    (said,) = facts["remarks"]
    assert said.startswith(f"{data}: 2-D network over yx of 1 channel: 5 images to train on, 1 image for validation;")
    assert err.startswith(f"tilenet: {said}\nepoch 1/4")
    assert facts["sha256"] == json.loads(tilenet_command("info", model, "--json")[1])["sha256"]
    code, out, err = tilenet_command("train", data, "--out", model, *SMALL, "--resume")
    assert (code, err, out.splitlines()[0]) == (
        0,
        "",
        str(model),
    ) and f"  epoch                    {best['epoch']}\n" in out
    for seed in range(6):
        target = data / "found" / f"{seed}.zarr"
        assert tilenet_command("segment", data / "images" / f"{seed}.tif", "-m", model, "-o", target)[0] == 0
    code, out, _ = tilenet_command("evaluate", data / "found", data / "labels", "--json")
    scores = json.loads(out)
    assert (code, scores["images"]) == (0, 6)
    assert scores["dice"]["1"] > 0.8
    assert tilenet.load_model(model).card.metrics


def test_perfect_predictions_score_one_and_a_missing_pair_is_an_error(data, tilenet_command):
    code, out, _ = tilenet_command("evaluate", data / "labels", data / "labels")
    assert code == 0
    assert "mean_ap" in out
    assert "rand                     1.0000  of pairs of pixels: 1 minus the adapted Rand error" in out
    assert "1.0000" in out
    code, out, err = tilenet_command("evaluate", data / "images", data / "labels")
    assert (code, err.count("\n")) == (0, 1)
    assert "0.tif: is scored as labels, but most of its values are in single pixels" in err
    code, out, err = tilenet_command("evaluate", data / "images", data / "labels", "--json")
    assert (code, err, len(json.loads(out)["remarks"])) == (0, "", 1)
    (data / "labels" / "3.tif").rename(data / "found" / "other.tif")
    code, _, err = tilenet_command("evaluate", data / "labels", data / "images")
    assert code == 2
    assert "3.tif" in err


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda d: (d / "labels" / "3.tif").unlink(), "3"),
        (lambda d: tifffile.imwrite(d / "labels" / "2.tif", np.zeros((5, 5), np.uint16)), "2.tif"),
        (lambda d: tifffile.imwrite(d / "labels" / "1.tif", np.zeros((96, 96), np.float32)), "1.tif"),
        (lambda d: [p.unlink() for p in (d / "images").iterdir()], "images"),
    ],
)
def test_bad_data_are_refused_by_file_name(data, tilenet_command, break_it, words):
    break_it(data)
    code, _, err = tilenet_command("train", data, "--out", data / "m.safetensors", *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err
    assert not (data / "m.safetensors").exists()


def test_a_precision_that_is_undefined_is_printed_as_a_dash_and_is_null_in_json(tmp_path, tilenet_command):
    tifffile.imwrite(tmp_path / "found.tif", np.zeros((20, 20), np.uint8))
    tifffile.imwrite(tmp_path / "true.tif", np.kron([[0, 1], [2, 0]], np.ones((10, 10), int)).astype(np.uint8))
    line = "evaluate", tmp_path / "found.tif", tmp_path / "true.tif"
    code, out, err = tilenet_command(*line)
    assert (code, err) == (0, "") and ["precision", "-"] in map(str.split, out.splitlines())
    assert ["recall", "0.0000"] in map(str.split, out.splitlines())
    _, out, _ = tilenet_command(*line, "--json")
    assert json.loads(out)["objects"]["0.5"] == {"f1": 0.0, "precision": None, "recall": 0.0}


def test_the_help_names_every_option_of_the_recipe_and_its_default(tilenet_command):
    _, out, _ = tilenet_command("train", "--help")
    text = " ".join(out.split())
    recipe = tilenet.Recipe()
    for name, value in vars(recipe).items():
        if name not in ("scaling", "shares"):  # a rule of its own; for scripts
            assert f"--{name.replace('_', '-')}" in text
        if name == "scaling":
            rule = "{method}:{low},{high}, cut off at {clip[0]} and {clip[1]}".format(**value)
            assert f"[default: {rule}]" in text
        if isinstance(value, float):
            assert f"[default: {value}]" in text


def test_weights_that_are_no_numbers_are_refused(data, tilenet_command):
    code, _, err = tilenet_command("train", data, "--out", data / "m.safetensors", "--class-weights", "1,heavy")
    assert (code, err.count("\n")) == (2, 1)
    assert "1,heavy" in err
