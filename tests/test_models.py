import json
import runpy
from pathlib import Path

import pytest
import torch
from oracles import reference_state
from safetensors import safe_open
from safetensors.torch import save_file

from tilenet.card import PALETTE, ModelCard, colors_of, label_table
from tilenet.errors import ModelError, ModelNotFound, SettingsError, TilenetError
from tilenet.models.saved import convert_model, fingerprint, load_model, packaged_models, save_model
from tilenet.unet import UNet

CARD = ModelCard(
    name="cells",
    classes=("outside", "inside", "rim"),
    mask_of_class=(0, 1, 1),
    scaling={"method": "linear", "subtract": 0, "divide": 255},
    pixel_size=0.5,
    licence="CC0-1.0",
)


def test_the_packaged_model_has_the_card_that_its_pipeline_writes():
    pipeline = runpy.run_path(str(Path(__file__).parent.parent / "pipelines/train_nuclei.py"))
    network = load_model("nuclei")
    said = ("name", "labels", "colors", "training_data", "licence", "notes")
    assert [getattr(network.card, name) for name in said] == [getattr(pipeline["CARD"], name) for name in said]
    assert "Not for diagnosis" in network.card.notes
    recipe = pipeline["RECIPE"]
    assert (network.options["depth"], network.options["wf"]) == (recipe.depth, recipe.wf)
    assert network.card.scaling == recipe.scaling
    assert network.card.metrics["test"]["all"]["images"] == len(pipeline["names"]("nuclei_test.txt"))


def test_a_saved_model_has_the_same_bytes_in_every_process(tmp_path):
    path = save_model(UNet(depth=2, wf=1), tmp_path / "x.safetensors")
    file = path.read_bytes()
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    assert end % 8 == 0 and len(header) > 2
    assert file[8:end].decode().rstrip() == json.dumps(header, sort_keys=True, separators=(",", ":"))


def test_all_weights_are_saved_whatever_a_subclass_lists(tmp_path):
    class Silent(UNet):
        def state_dict(self, *args, **kwargs):
            return {}

    network = Silent(1, 2, 2, 1, batch_norm=True)
    assert fingerprint(load_model(save_model(network, tmp_path / "cells.safetensors"))) == fingerprint(network)


def test_a_saved_model_comes_back_with_its_card(tmp_path):
    network = UNet(3, 3, 2, 1, batch_norm=True, up_mode="upsample", pool_size=(2, 2))
    path = save_model(network, tmp_path / "cells.safetensors", card=CARD)
    back = load_model(path)
    assert back.options == network.options
    assert fingerprint(back) == fingerprint(network)
    assert (back.card.classes, back.card.mask_of_class, back.card.pixel_size) == (CARD.classes, (0, 1, 1), 0.5)
    assert back.card.labels == {"1": "inside, rim"}
    assert not back.training


def test_a_model_may_be_read_by_whom_a_new_file_may(tmp_path):
    path = save_model(UNet(depth=2, wf=1), tmp_path / "x.safetensors")
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["any", "x.safetensors"]


def test_saving_makes_folders_and_touches_no_file_but_its_own(tmp_path):
    (tmp_path / "net.tmp").write_text("mine")
    save_model(UNet(depth=1, wf=1), tmp_path / "net.safetensors")
    save_model(UNet(depth=1, wf=1), tmp_path / "new" / "net.safetensors")
    assert (tmp_path / "net.tmp").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["net.safetensors", "net.safetensors", "net.tmp", "new"]


def test_the_card_lies_in_the_file_itself(tmp_path):
    path = save_model(UNet(depth=2, wf=1), tmp_path / "x.safetensors")
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["tilenet"])["architecture"]["depth"] == 2


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict"])
def test_state_dicts_load_bare_or_nested(tmp_path, nest):
    state = reference_state(depth=2)
    torch.save({nest: state, "epoch": 3} if nest else state, tmp_path / "w.pt")
    assert torch.equal(load_model(tmp_path / "w.pt").state_dict()["last.weight"], state["last.weight"])


def test_a_network_of_one_output_is_a_sigmoid(tmp_path):
    torch.save(reference_state(depth=2, n_classes=1), tmp_path / "w.pt")
    card = load_model(tmp_path / "w.pt").card
    assert (card.output, card.mask_of_class, card.threshold) == ("sigmoid", (1,), 0.5)


@pytest.mark.parametrize("wrapped", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_weights_of_a_wrapped_network_load(tmp_path, wrapped):
    state = {f"{wrapped}{key}": value for key, value in reference_state(depth=2).items()}
    torch.save(state, tmp_path / "w.pt")
    assert load_model(tmp_path / "w.pt").depth == 2


def test_volumes_and_their_pooling_are_read_off_the_keys(tmp_path):
    network = UNet(depth=3, wf=1, ndim=3, pool_size=(1, 2, 2))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert load_model(tmp_path / "w.pt").options == network.options


def test_an_option_that_agrees_with_the_card_may_be_given(tmp_path):
    path = save_model(UNet(ndim=3, depth=2, wf=1, pool_size=(1, 2, 2)), tmp_path / "x.safetensors")
    for given in ((1, 2, 2), [1, 2, 2]):
        assert load_model(path, pool_size=given).pool_size == (1, 2, 2)
    with pytest.raises(ModelError, match=r"its card says pool_size is \[1, 2, 2\], not \(2, 2, 2\)"):
        load_model(path, pool_size=(2, 2, 2))


def _with(state, **changes):
    return {k: v for k, v in (state | {k.replace("__", "."): v for k, v in changes.items()}).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"last__bias": None}, r"missing key last\.bias"),
        ({"extra__weight": torch.zeros(2)}, r"unexpected key extra\.weight"),
        ({"last__bias": torch.zeros(7)}, r"key last\.bias has shape \(7,\), not \(2,\)"),
        ({"last__bias": torch.tensor([0.0, float("nan")])}, r"key last\.bias has values that are not finite"),
        ({"down_path__0__block__0__weight": None}, "these are not the weights of a U-Net: no 'down_path.0"),
        ({"last__weight": torch.tensor(1.0)}, "these are not the weights of a U-Net: other numbers or shapes in its"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(tmp_path, changes, message):
    torch.save(_with(reference_state(depth=2), **changes), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=f"w.pt: {message}"):
        load_model(tmp_path / "w.pt")


def test_an_unknown_model_is_refused_with_the_known_names():
    with pytest.raises(ModelNotFound, match="nucleii: no such model.*packaged name: .*nuclei"):
        load_model("nucleii")
    assert "nuclei" in packaged_models()


def test_an_option_that_contradicts_the_card_is_refused(tmp_path):
    path = save_model(UNet(depth=2, wf=1), tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="its card says padding is False, not True"):
        load_model(path, padding=True)


def test_a_card_with_absurd_options_costs_nothing(tmp_path):
    state = UNet(depth=2, wf=1).state_dict()
    card = ModelCard(architecture={"depth": 2, "wf": 20})
    save_file(state, tmp_path / "big.safetensors", metadata={"tilenet": card.to_json()})
    with pytest.raises(ModelError, match="has shape"):
        load_model(tmp_path / "big.safetensors")


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (3, 1, 0, 2), (0, 7, 9, 200)])
def test_every_mask_value_has_a_colour_of_its_own(values):
    own = {str(max(values)): list(PALETTE[0])}
    table = label_table(ModelCard(classes=tuple("abcd"), mask_of_class=values, colors=own))
    colors = {value: color for value, (_, color) in table.items()}
    assert set(colors) == set(values) - {0} and len(set(colors.values())) == 3
    assert colors[max(values)] == PALETTE[0]


def test_more_values_than_the_palette_has_colours_have_one_too():
    assert len(colors_of({"mask_of_class": list(range(30)), "colors": {}})) == 29


def test_new_classes_do_not_get_the_colours_of_the_old_ones(tmp_path):
    convert_model("nuclei", tmp_path / "m.safetensors", mask_of_class=(0, 1, 2, 3), colors="1=0000ff, 3=#FF0000")
    card = load_model(tmp_path / "m.safetensors").card
    assert card.colors == {"1": [0, 0, 255, 255], "3": [255, 0, 0, 255]}
    assert card.labels == {"1": "rim", "2": "body", "3": "centre"}
    convert_model("nuclei", tmp_path / "same.safetensors", pixel_size=0.5)
    assert load_model(tmp_path / "same.safetensors").card.colors == load_model("nuclei").card.colors != {}


@pytest.mark.parametrize("said", ["", "red", "1=red", "1=00ff0", "1:00ff00", "x=00ff00", "300=00ff00"])
def test_colours_that_are_none_are_refused(tmp_path, said):
    with pytest.raises(TilenetError, match="colors"):
        convert_model("nuclei", tmp_path / "m.safetensors", colors=said)


def test_converting_adds_what_keys_cannot_say(tmp_path):
    torch.save(reference_state(depth=2, n_classes=3), tmp_path / "w.pth")
    convert_model(
        tmp_path / "w.pth",
        tmp_path / "m.safetensors",
        padding=True,
        pooling="avg",
        scaling="linear:0,255",
        classes="out,in,rim",
        mask_of_class=(0, 1, 1),
    )
    network = load_model(tmp_path / "m.safetensors")
    assert (network.padding, network.pooling) == (True, "avg")
    assert network.card.scaling == {"method": "linear", "subtract": 0.0, "divide": 255.0}
    assert network.card.labels == {"1": "in, rim"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask_of_class": (0, 1)}, ModelError, "mask_of_class names 2, the network has 3"),
        ({"classes": "a,b"}, ModelError, "classes names 2, the network has 3"),
        ({"mask_of_class": (0, 1, 300)}, ModelError, "leaves 0 to 255"),
        ({"scaling": "zscore"}, SettingsError, "'zscore': give linear"),
    ],
)
def test_a_conversion_that_does_not_fit_is_refused(tmp_path, options, error, message):
    torch.save(reference_state(depth=2, n_classes=3), tmp_path / "w.pth")
    with pytest.raises(error, match=message):
        convert_model(tmp_path / "w.pth", tmp_path / "m.safetensors", **options)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_model_is_written_as_safetensors_alone(tmp_path):
    with pytest.raises(ModelError, match=r"models are written as \.safetensors"):
        save_model(UNet(depth=1, wf=1), tmp_path / "x.pt")


def test_weights_that_do_not_say_whether_their_network_pads_are_told_of_until_they_do(
    tmp_path, tilenet_command, caplog
):
    network = UNet(depth=2, wf=1, padding=True)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    load_model(tmp_path / "w.pt")
    assert "w.pt: does not say whether its network pads with zeros" in caplog.text
    assert "taken for one that does not. Say which: tilenet convert " in caplog.text
    caplog.clear()
    assert load_model(tmp_path / "w.pt", padding=True).options["padding"] is True
    for flag, pads in (("--padding", True), ("--no-padding", False)):
        command = ("convert", tmp_path / "w.pt", "-o", tmp_path / "w.safetensors", flag, "--overwrite")
        assert tilenet_command(*command)[::2] == (0, "")
        assert load_model(tmp_path / "w.safetensors").options["padding"] is pads
    assert caplog.text == ""


def test_a_card_takes_the_text_of_a_scaling_rule_as_segment_does():
    card = ModelCard(scaling="percentile:1,99.8")
    assert card.scaling == {"method": "percentile", "low": 1.0, "high": 99.8}
    assert ModelCard.from_json(card.to_json()) == card
    with pytest.raises(
        SettingsError, match="'percentile:1': give linear:SUBTRACT,DIVIDE, percentile:LOW,HIGH, or none"
    ):
        ModelCard(scaling="percentile:1")
