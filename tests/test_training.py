"""Training: targets against slow truth, crops that stay aligned, runs that repeat and resume."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from training_helpers import write_discs

from tilenet.card import ModelCard
from tilenet.errors import EnvironmentFault, ImageError, ModelError, OutputExists, OutputMismatch, SettingsError
from tilenet.models.saved import load_model
from tilenet.training.checkpoint import Folder
from tilenet.training.data import find_pairs, read_pairs, split
from tilenet.training.history import COLOURS, FRAME, GREY, _curves
from tilenet.training.loop import train
from tilenet.training.loss import loss_of, rate_at
from tilenet.training.recipe import Recipe
from tilenet.training.validation import predict_whole
from tilenet.unet import UNet

SMALL = Recipe(
    depth=2,
    wf=2,
    tile=40,
    epochs=5,
    crops=16,
    batch=4,
    rate=1e-2,
    scaling={"method": "linear", "divide": 255},
    elastic=2,
)


@pytest.fixture
def folder(tmp_path):
    return write_discs(tmp_path / "data", [f"cells{k}" for k in range(6)])


def test_the_loss_is_the_weighted_cross_entropy():
    logits = torch.log(torch.tensor([[[[0.25, 0.5]], [[0.75, 0.5]]]]))
    target = torch.tensor([[[[1.0, 0.0]], [[3.0, 1.0]]]])
    expected = -(3 * np.log(0.75) + np.log(0.5)) / 4
    assert loss_of(logits, target, dice=0, class_weights=torch.ones(2)).item() == pytest.approx(expected)
    assert loss_of(logits, target, dice=1, class_weights=torch.ones(2)).item() > expected


def test_a_batch_of_pixels_that_all_weigh_nothing_teaches_nothing():
    logits, target = torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 2, 4, 4)
    loss = loss_of(logits, target, dice=0, class_weights=torch.ones(2))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_the_rate_warms_up_holds_and_falls_to_nothing():
    rates = [rate_at(k, 1000, Recipe(rate=1.0, hold=0.5)) for k in range(1001)]
    assert rates[0] < 0.05
    assert rates[499] == 1
    assert rates[750] == pytest.approx(0.5)
    assert rates[1000] < 1e-9


def test_a_rate_that_is_held_to_the_end_does_not_fall():
    recipe = Recipe(hold=1)
    assert rate_at(500, 1000, recipe) == rate_at(999, 1000, recipe) == recipe.peak_rate


def test_a_network_learns_and_the_better_epoch_is_kept(folder, tmp_path):
    seen = []
    model = train(folder, tmp_path / "m.safetensors", recipe=SMALL, progress=seen.append)
    assert seen[-1].loss < 0.7 * seen[0].loss
    assert seen[-1].best > 0.85
    assert model.card.metrics["validation"]["dice"] == max(p.score for p in seen)
    assert model.card.mask_of_class == (0, 1)
    assert {p.name for p in (tmp_path / "m.training").iterdir()} >= {"history.csv", "history.png"}
    assert len((tmp_path / "m.training/history.csv").read_text().splitlines()) == 6


def test_the_curves_mark_the_best_epoch_on_scales_that_hold_them():
    rows = [{"loss": loss, "score": score} for loss, score in ((4, 0), (2, 1), (1, 0.5))]
    left, top, right, bottom = FRAME
    drawn = _curves(rows)
    centre, middle = (left + right) // 2, (top + bottom) // 2
    assert tuple(drawn[top, centre]) == COLOURS["score"]
    assert tuple(drawn[middle, centre]) == COLOURS["loss"]
    assert tuple(drawn[bottom - 10, centre]) == GREY, "the line at the best epoch"
    assert _curves(rows[:1]).shape == drawn.shape


def test_a_training_that_is_told_where_to_stop_keeps_that_epoch_of_the_same_schedule(folder, tmp_path):
    states = {}

    def remember(progress):
        states[progress.epoch] = torch.load(tmp_path / "whole.training/last.pt", weights_only=True)["average"]

    train(folder, tmp_path / "whole.safetensors", recipe=SMALL, progress=remember)
    recipe, seen = replace(SMALL, stop=2), []
    stopped = train(folder, tmp_path / "stopped.safetensors", recipe=recipe, progress=seen.append)
    assert [p.epoch for p in seen] == [1, 2]
    assert seen[-1].epochs == 2
    assert stopped.card.metrics["epoch"] == 2
    assert all(torch.equal(stopped.state_dict()[name], value) for name, value in states[2].items())
    assert not torch.equal(states[2]["last.weight"], states[5]["last.weight"])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(folder, tmp_path):
    recipe = replace(SMALL, epochs=2, crops=4, dropout=0.2)
    for name, r in (("a", recipe), ("b", recipe), ("c", replace(recipe, seed=1))):
        train(folder, tmp_path / f"{name}.safetensors", recipe=r)
    a, b, c = (load_model(tmp_path / f"{n}.safetensors").state_dict() for n in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["last.weight"], c["last.weight"])


def test_a_killed_training_resumes_to_the_same_bytes(folder, tmp_path):
    recipe = replace(SMALL, epochs=3, crops=4)

    def killed(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    train(folder, tmp_path / "whole.safetensors", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "cut.safetensors", recipe=recipe, progress=killed)
    seen = []
    train(folder, tmp_path / "cut.safetensors", recipe=recipe, resume=True, progress=seen.append)
    assert [p.epoch for p in seen] == [3]
    whole, cut = (torch.load(tmp_path / f"{n}.training/last.pt", weights_only=True) for n in ("whole", "cut"))
    assert all(torch.equal(whole["average"][k], cut["average"][k]) for k in whole["average"])
    assert whole["rows"] == cut["rows"]


def test_an_existing_training_is_neither_overwritten_nor_resumed_otherwise(folder, tmp_path):
    recipe, out = replace(SMALL, epochs=1, crops=4), tmp_path / "m.safetensors"
    train(folder, out, recipe=recipe)
    with pytest.raises(OutputExists, match="Go on with it"):
        train(folder, out, recipe=recipe)
    with pytest.raises(OutputMismatch, match="epochs 1, not 2"):
        train(folder, out, recipe=replace(recipe, epochs=2), resume=True)
    with pytest.raises(OutputMismatch, match="started with images"):
        train(folder, out, recipe=recipe, leave_out={"cells0"}, resume=True)
    with pytest.raises(OutputMismatch, match="started with start None, not "):
        train(folder, out, recipe=recipe, start=out, resume=True)
    with pytest.raises(OutputMismatch, match="started with card's name .*, not another"):
        train(folder, out, recipe=recipe, card=ModelCard(name="another"), resume=True)
    (folder / "images" / "cells0.tif").write_bytes((folder / "images" / "cells1.tif").read_bytes())
    with pytest.raises(OutputMismatch, match="started with images"):
        train(folder, out, recipe=recipe, resume=True)


@pytest.mark.parametrize("left", [[], ["last.pt"]], ids=["no folder", "no recipe"])
def test_a_model_without_the_training_that_made_it_is_not_replaced_by_a_fresh_one(tmp_path, left):
    state = Folder(tmp_path / "m.safetensors")
    state.out.write_bytes(b"a model")
    for name in left:
        state.put(name, lambda part: part.write_bytes(b"a state"))
    with pytest.raises(OutputExists, match=r"m\.safetensors: cannot be resumed without .*m\.training/recipe\.json"):
        state.begin({"seed": 0}, resume=True)
    assert state.out.read_bytes() == b"a model" and not state.recipe.exists()


def test_a_model_alone_is_not_said_to_be_resumable(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"a model")
    with pytest.raises(
        OutputExists, match=r"m\.safetensors: exists already, without its training\. Choose another name$"
    ):
        Folder(tmp_path / "m.safetensors").begin({"seed": 0}, resume=False)


def test_a_full_disk_is_a_fault_of_the_machine_and_the_state_before_is_kept(tmp_path, monkeypatch):
    state = Folder(tmp_path / "m.safetensors")
    state.begin({"seed": 0}, resume=False)
    state.save({"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentFault, match=r"last\.pt: no space left on device.*--resume"):
        state.save({"step": 2})
    monkeypatch.undo()
    assert state.begin({"seed": 0}, resume=True) == {"step": 1}
    assert sorted(path.name for path in state.path.iterdir()) == ["last.pt", "recipe.json"]


def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(folder, tmp_path):
    first = train(folder, tmp_path / "first.safetensors", recipe=replace(SMALL, epochs=1, crops=4))
    train(
        folder,
        tmp_path / "on.safetensors",
        recipe=replace(SMALL, epochs=1, crops=4),
        start=tmp_path / "first.safetensors",
    )
    with pytest.raises(ModelError, match="the model to start from"):
        train(folder, tmp_path / "m.safetensors", recipe=replace(SMALL, depth=3), start=tmp_path / "first.safetensors")
    assert first.depth == 2
    assert not (tmp_path / "m.training").exists()


def test_depth_targets_give_a_model_whose_mask_has_two_values(folder, tmp_path):
    recipe = replace(SMALL, targets="depth", epochs=1, crops=8)
    model = train(folder, tmp_path / "m.safetensors", recipe=recipe)
    assert model.card.classes == ("background", "rim", "body", "centre")
    assert model.card.mask_of_class == (0, 1, 1, 1)
    assert "f1" in model.card.metrics["validation"]


def test_classes_are_the_values_of_the_labels_in_order(folder, tmp_path):
    for path in (folder / "labels").iterdir():
        tifffile.imwrite(path, (tifffile.imread(path) > 0).astype(np.uint8) * 255)
    recipe = replace(SMALL, targets="classes", epochs=2, class_weights=("balanced",))
    model = train(folder, tmp_path / "m.safetensors", recipe=recipe)
    assert model.card.classes == ("class 0", "class 255")
    assert model.card.mask_of_class == (0, 1)


def test_a_whole_prediction_does_not_depend_on_its_tiles(monkeypatch):
    torch.manual_seed(0)
    network = UNet(1, 2, depth=3, wf=2).double().eval()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    image = np.random.default_rng(0).normal(size=(1, 50, 61))
    monkeypatch.setattr("tilenet.training.validation.PREDICTED", {2: 512})
    whole = predict_whole(network, image)
    monkeypatch.setattr("tilenet.training.validation.PREDICTED", {2: 16})
    assert np.allclose(predict_whole(network, image), whole, atol=1e-6)
    assert whole.std() > 1e-3


def test_a_network_that_pools_more_than_a_tile_is_validated():
    network = UNet(1, 2, depth=4, wf=0, ndim=3, pool_size=(1, 4, 4)).eval()
    image = np.random.default_rng(0).normal(size=(1, 7, 70, 66)).astype(np.float32)
    found = predict_whole(network, image)
    assert found.shape == (2, 7, 70, 66)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_a_split_is_drawn_by_seed_and_never_empty(folder):
    pairs = read_pairs(folder, {"method": "none"})
    a, b = split(pairs, 0.3, seed=0)
    assert (len(a), len(b)) == (4, 2)
    assert {p.name for p in a} | {p.name for p in b} == set(find_pairs(folder))
    assert [p.name for p in b] == [p.name for p in split(pairs, 0.3, seed=0)[1]]
    assert len(split(pairs, 0.01, seed=0)[1]) == 1
    with pytest.raises(SettingsError, match="cells0"):
        split(pairs[:1], 0.5, seed=0)


def test_images_that_are_left_out_are_not_trained_on(folder, tmp_path):
    with pytest.raises(SettingsError, match="cells5"):
        train(folder, tmp_path / "m.safetensors", recipe=SMALL, leave_out={f"cells{k}" for k in range(5)})
    with pytest.raises(ImageError, match="cells9: is to be left out, but is not among the data"):
        train(folder, tmp_path / "m.safetensors", recipe=SMALL, leave_out={"cells0", "cells9"})


@pytest.mark.parametrize("option", ["leave_out", "validate_on"])
def test_a_training_without_an_image_to_train_on_is_refused(folder, tmp_path, option):
    with pytest.raises(SettingsError, match="none of 6 images is left to train on"):
        train(folder, tmp_path / "m.safetensors", recipe=SMALL, **{option: {f"cells{k}" for k in range(6)}})
    assert not (tmp_path / "m.training").exists()


def test_bad_data_are_refused_by_file_name(folder, tmp_path):
    label = folder / "labels/cells3.tif"
    good = tifffile.imread(label)
    for wrong, says in (
        (good.astype(np.float32), "cells3.tif: holds float32"),
        (good[:-1], r"cells3.tif: is \(59, 70\), but cells3.tif is \(60, 70\)"),
        (good.astype(np.int16) - 5, "cells3.tif: has labels that are negative"),
    ):
        tifffile.imwrite(label, wrong)
        with pytest.raises(ImageError, match=says):
            train(folder, tmp_path / "m.safetensors", recipe=SMALL)
    label.unlink()
    with pytest.raises(ImageError, match="cells3.tif: has no partner in labels"):
        train(folder, tmp_path / "m.safetensors", recipe=SMALL)
    with pytest.raises(ImageError, match="no such folder"):
        find_pairs(tmp_path / "nowhere")
    assert not (tmp_path / "m.training").exists()


def test_images_of_other_kinds_are_refused_by_file_name(folder, tmp_path):
    image = tifffile.imread(folder / "images/cells3.tif")
    two_channels, volume = np.stack([image] * 2), np.stack([image] * 5)
    for wrong, axes, says in (
        (two_channels, "CYX", "has 1 channels, others have 2"),
        (volume, "ZYX", "cells3.tif: has 3 axes, cells0.tif has 2"),
    ):
        tifffile.imwrite(folder / "images/cells3.tif", wrong, photometric="minisblack", metadata={"axes": axes})
        if axes == "ZYX":
            tifffile.imwrite(folder / "labels/cells3.tif", (volume > 0).astype(np.uint8), metadata={"axes": axes})
        with pytest.raises(ImageError, match=says):
            train(folder, tmp_path / "m.safetensors", recipe=SMALL)


@pytest.mark.parametrize(("value", "says"), [(0, "no label holds an object"), (1, "no label holds background")])
def test_labels_that_can_teach_nothing_are_refused(folder, tmp_path, value, says):
    for path in (folder / "labels").iterdir():
        tifffile.imwrite(path, np.full_like(tifffile.imread(path), value))
    with pytest.raises(ImageError, match=says):
        train(folder, tmp_path / "m.safetensors", recipe=SMALL)
    assert not (tmp_path / "m.training").exists()


@pytest.mark.parametrize("targets", ["mask", "depth", "classes"])
def test_images_in_place_of_labels_are_refused_by_file_name(folder, tmp_path, targets):
    shutil.copy(folder / "images/cells3.tif", folder / "labels/cells3.tif")
    with pytest.raises(ImageError, match=r"labels/cells3.tif: holds \d+ values, most of them in single pixels"):
        train(folder, tmp_path / "m.safetensors", recipe=replace(SMALL, targets=targets))


def test_numbers_of_numpy_and_texts_of_the_command_line_make_the_same_recipe():
    of_numpy = {"epochs": np.int64(5), "w0": np.float32(5), "flips": np.bool_(False), "pool_size": np.array([1, 2, 2])}
    of_numpy |= {"class_weights": np.array([1.0, 2.5]), "shares": {"a": np.float64(2)}}
    said = {
        "epochs": 5,
        "w0": 5.0,
        "flips": False,
        "pool_size": (1, 2, 2),
        "class_weights": "1,2.5",
        "shares": {"a": 2},
    }
    assert Recipe(**of_numpy) == Recipe(**said)
    assert json.loads(json.dumps(Recipe(**of_numpy).identity())) == Recipe(**said).identity()


def test_settings_that_make_no_sense_are_refused(folder, tmp_path):
    numbers = {"rate": float("nan"), "dropout": 2, "workers": -1, "seed": -1, "hold": 7, "elastic": -3, "crops": 0}
    several = ({name: value} for name, value in (numbers | {"depth": 99, "dice": 5}).items())
    others = (
        {"zoom": math.inf},
        {"shares": {"a": 0}},
        {"shares": {"a": -1.0}},
        {"pool_size": (0, 2)},
        {"pool_size": 2},
    )
    others += ({"class_weights": (0, 0)}, {"class_weights": (1, -2)}, {"class_weights": ("equal",)})
    others += ({"class_weights": ("balanced", 1.0)}, {"shares": {"a": 1, "ab": 1}}, {"seed": "5"}, {"rate": "fast"})
    others += ({"epochs": 2.5}, {"validation": "some"}, {"targets": "boxes"}, {"epochs": 0}, {"stop": 0}, {"stop": 61})
    others += ({"validation": 1.0}, {"zoom": 0.5})
    for wrong in (*several, *others):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Recipe(**wrong)
    with pytest.raises(SettingsError, match=r"recipe .*: give a tilenet\.Recipe, such as tilenet\.Recipe\(epochs=1\)"):
        train(folder, tmp_path / "m.safetensors", recipe={"epochs": 1})
    assert Recipe(class_weights=["balanced"]) == Recipe(class_weights="balanced") != Recipe()
    with pytest.raises(SettingsError, match="no such network for images of 2 axes: .*pool"):
        train(folder, tmp_path / "m.safetensors", recipe=replace(SMALL, pool_size=(1, 2, 2)))
    with pytest.raises(ModelError, match="Change the ending"):
        train(folder, tmp_path / "m.pt", recipe=SMALL)
    with pytest.raises(SettingsError, match="class_weights are 3, and there are 2 classes: background, "):
        train(folder, tmp_path / "m.safetensors", recipe=replace(SMALL, class_weights=(1, 2, 3)))


def test_pairs_may_be_zarr_as_well_as_files(folder, tmp_path):
    for part in ("images", "labels"):
        path = folder / part / "cells1.tif"
        zarr.save_array(folder / part / "cells1.zarr", tifffile.imread(path))
        path.unlink()
    same = read_pairs(folder, SMALL.scaling)
    assert [p.name for p in same] == [f"cells{k}" for k in range(6)]
    assert same[1].label.max() == 6
    assert train(folder, tmp_path / "m.safetensors", recipe=replace(SMALL, epochs=1)).n_classes == 2


def test_a_3d_network_learns_nuclei_from_a_volume(shared_data, tmp_path):
    image = tifffile.imread(shared_data("volumes/plant_nuclei_1135_image.tif"))
    label = tifffile.imread(shared_data("volumes/plant_nuclei_1135_label.tif"))
    for part, array in (("images", image), ("labels", label)):
        (tmp_path / part).mkdir()
        # Two volumes that share no plane; the gap is more than the network sees.
        tifffile.imwrite(tmp_path / part / "low.tif", array[:48])
        tifffile.imwrite(tmp_path / part / "high.tif", array[64:])
    recipe = replace(SMALL, wf=3, tile=24, epochs=3, crops=24, targets="mask")
    seen = []
    model = train(
        tmp_path, tmp_path / "m.safetensors", recipe=recipe, axes="zyx", validate_on=["high"], progress=seen.append
    )
    assert model.ndim == 3
    assert seen[-1].loss < seen[0].loss
    assert seen[-1].best > 0.6
