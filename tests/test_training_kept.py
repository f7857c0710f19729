"""What a training keeps beside its model, and what becomes of it: the picture, the state, resuming, replacing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from imagecodecs import imread
from training_helpers import write_discs

from tilenet.card import DEPTH_CLASSES, PALETTE
from tilenet.errors import OutputError, OutputExists, SettingsError
from tilenet.models.saved import fingerprint, load_model
from tilenet.training import loop
from tilenet.training.checkpoint import Folder
from tilenet.training.data import Pair, read_pairs, split
from tilenet.training.history import GAP, LINE, SIDE, WIDTH, Examples, middle_of
from tilenet.training.loop import train
from tilenet.training.recipe import Recipe
from tilenet.training.targets import depth_classes
from tilenet.training.validation import predict_whole

SMALL = Recipe(depth=2, wf=2, tile=40, epochs=3, crops=4, scaling="linear:0,255", rate=1e-2)


@pytest.fixture
def data(tmp_path):
    return write_discs(tmp_path, "01")


@pytest.fixture
def scored(monkeypatch):
    """Let the epochs of a training score as given."""

    def give(*scores):
        rest = iter(scores)
        monkeypatch.setattr(loop, "validate", lambda *_: {"dice": (score := next(rest)), "score": score})

    return give


@pytest.fixture
def shown(monkeypatch):
    """Collect what each picture of a training shows: the epoch, and the predicted classes of the first image."""
    seen = []
    draw = loop.write_picture

    def note(rows, examples, path):
        seen.append((examples.epoch, examples._predicted[0]))
        draw(rows, examples, path)

    monkeypatch.setattr(loop, "write_picture", note)
    return seen


def held_of(data):
    return split(read_pairs(data, SMALL.scaling), SMALL.validation, seed=SMALL.seed)[1][0]


def assert_predicted(classes, model, data):
    np.testing.assert_array_equal(classes, predict_whole(model, held_of(data).image).argmax(axis=0))


def test_the_picture_shows_what_the_network_that_is_kept_predicts(data, scored, shown):
    scored(0.2, 0.9, 0.1)
    model = train(data, data / "m.safetensors", recipe=SMALL)
    assert [epoch for epoch, _ in shown] == [1, 2, 2]
    assert_predicted(shown[-1][1], model, data)
    assert imread(data / "m.training" / "history.png").shape[1] == WIDTH


def test_the_picture_of_a_resumed_training_shows_the_network_that_was_kept_before(data, scored, shown):
    def killed(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    scored(0.9, 0.2, 0.1)
    with pytest.raises(KeyboardInterrupt):
        train(data, data / "m.safetensors", recipe=SMALL, progress=killed)
    model = train(data, data / "m.safetensors", recipe=SMALL, resume=True)
    assert [epoch for epoch, _ in shown] == [1, 1, 1]
    assert_predicted(shown[-1][1], model, data)


def test_the_picture_of_a_training_that_is_told_where_to_stop_shows_the_last_epoch(data, scored, shown):
    scored(0.9, 0.2)
    model = train(data, data / "m.safetensors", recipe=replace(SMALL, stop=2))
    assert [epoch for epoch, _ in shown] == [1, 2]
    assert_predicted(shown[-1][1], model, data)


@pytest.mark.parametrize(("shape", "times"), [((60, 50), 3), ((9, 60, 50), 3), ((300, 250), 1), ((20, 7), 10)])
def test_small_images_are_enlarged_by_whole_numbers_and_truths_have_the_colours_of_predictions(shape, times):
    labels = np.zeros(shape, np.int32)
    labels[(..., slice(2, shape[-2] // 2), slice(1, -1))] = 7
    image = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    examples = Examples([Pair("a", image, labels)], Recipe(targets="depth"), (), DEPTH_CLASSES)
    classes = depth_classes(labels)
    examples._predicted, examples.epoch = [classes], 4
    legend, strip = examples.strips()
    height, width = (min(SIDE, n) for n in shape[-2:])
    assert legend.shape[1] == strip.shape[1] == WIDTH
    assert strip.shape[0] == LINE + times * height + GAP
    columns = [strip[LINE:-GAP, k * (SIDE + GAP) :][:, : times * width] for k in range(3)]
    expected = np.array([(0, 0, 0), *(c[:3] for c in PALETTE)])[middle_of(classes, len(shape))]
    for column in columns[1:]:
        np.testing.assert_array_equal(column[::times, ::times], expected)
    grey = columns[0][::times, ::times, 0].astype(float)
    assert np.corrcoef(grey.ravel(), middle_of(image[0], len(shape)).ravel())[0, 1] > 0.99


def test_a_training_is_replaced_where_that_is_asked_for(data, tilenet_command):
    out, small = data / "m.safetensors", ("--depth", 2, "--wf", 2, "--tile", 40, "--crops", 4, "--epochs", 1)
    words = ("train", data, "--out", out, *small)
    assert tilenet_command(*words, "--seed", 1)[0] == 0
    first = fingerprint(load_model(out))
    code, _, err = tilenet_command(*words)
    assert code == 2 and "m.training: exists already" in err and "m.safetensors (--overwrite)" in err
    (data / "m.training" / "notes.txt").write_text("the user's")
    code, _, err = tilenet_command(*words, "--overwrite")
    assert (code, err.splitlines()[0][:40]) == (0, f"tilenet: {data}: 2-D network over yx"[:40])
    assert fingerprint(load_model(out)) != first
    assert len((data / "m.training" / "history.csv").read_text().splitlines()) == 2
    assert (data / "m.training" / "notes.txt").exists()


def test_only_a_training_that_tilenet_wrote_is_replaced(data):
    out = data / "m.safetensors"
    out.write_bytes(b"another's")
    with pytest.raises(OutputExists, match="without its training. Choose another name"):
        train(data, out, recipe=SMALL, overwrite=True)
    (data / "m.training").mkdir()
    with pytest.raises(OutputExists, match=r"m\.training: exists, and is no training of tilenet"):
        train(data, out, recipe=SMALL, overwrite=True)
    assert out.read_bytes() == b"another's"
    with pytest.raises(SettingsError, match="resume and overwrite"):
        train(data, out, recipe=SMALL, overwrite=True, resume=True)
    with pytest.raises(SettingsError, match="is the model to start from"):
        train(data, out, recipe=SMALL, overwrite=True, start=out)


def test_a_training_whose_model_was_moved_is_not_resumed_for_nothing(data, scored):
    def killed(_):
        raise KeyboardInterrupt

    scored(0.9, 0.5, 0.4)
    out = data / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(data, out, recipe=SMALL, progress=killed)
    out.rename(data / "moved.safetensors")
    with pytest.raises(OutputError, match=r"m\.safetensors: is gone, and .*m\.training has no copy of it"):
        train(data, out, recipe=SMALL, resume=True)
    (data / "moved.safetensors").rename(out)
    assert train(data, out, recipe=SMALL, resume=True).card.metrics["epoch"] == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [("last.pt", lambda content: content[:99]), ("recipe.json", lambda _: b""), ("recipe.json", lambda _: b"[1]")],
)
def test_a_damaged_state_is_named(data, name, change):
    recipe, file = replace(SMALL, epochs=1), data / "m.training" / name
    train(data, data / "m.safetensors", recipe=recipe)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(OutputError, match=rf"{name}: is damaged .*--overwrite"):
        train(data, data / "m.safetensors", recipe=recipe, resume=True)


def test_a_recipe_that_an_editor_ended_with_a_newline_is_resumed(data):
    recipe, file = replace(SMALL, epochs=1), data / "m.training" / "recipe.json"
    train(data, data / "m.safetensors", recipe=recipe)
    file.write_text(file.read_text() + "\n")
    assert train(data, data / "m.safetensors", recipe=recipe, resume=True)


def test_a_state_is_resumed_where_the_device_that_saved_it_is_missing(tmp_path, monkeypatch):
    state = Folder(tmp_path / "m.safetensors")
    state.begin({"seed": 0}, resume=False)
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:77")
        state.save({"network": {"weight": torch.ones(3)}})
    found = state.begin({"seed": 0}, resume=True)["network"]["weight"]
    assert found.device.type == "cpu" and found.tolist() == [1, 1, 1]
