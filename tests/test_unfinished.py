"""What a mask lacks is background to whoever reads it as an image: so one that is not whole is read as none."""

import json

import numpy as np
import pytest
import tifffile
from killing import lose_a_file
from oracles import random_network

import tilenet
from tilenet.errors import BlocksFailed, OutputExists, OutputIncomplete
from tilenet.sample import write_sample

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
NETWORK = random_network(depth=2, wf=1)


def leave_unfinished(mask):
    document = json.loads((mask / "zarr.json").read_text())
    document["attributes"]["tilenet"]["complete"] = False
    (mask / "zarr.json").write_text(json.dumps(document))


def score(mask, whole):
    return tilenet.evaluate(mask, whole)


def be_scored_against(mask, whole):
    return tilenet.evaluate(whole, mask)


def skip_glass(mask, whole):
    return tilenet.segment(IMAGE, model=NETWORK, tissue=mask)


def segment(mask, whole):
    return tilenet.segment(mask, model=NETWORK)


@pytest.fixture
def masks(tmp_path):
    """Return two whole masks."""
    for name in "ab":
        tilenet.segment(IMAGE, tmp_path / name, model=NETWORK)
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize("use", [score, be_scored_against, skip_glass, segment])
@pytest.mark.parametrize("harm, error", [(lose_a_file, BlocksFailed), (leave_unfinished, OutputIncomplete)])
def test_a_mask_that_is_not_whole_is_used_for_nothing(masks, use, harm, error):
    use(*masks)
    harm(masks[0])
    with pytest.raises(error, match="with --resume"):
        use(*masks)


def test_nothing_is_trained_on_labels_that_are_not_whole(masks, tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for stem in "ab":
        tifffile.imwrite(tmp_path / "data" / "images" / f"{stem}.tif", IMAGE)
        (tmp_path / stem).rename(tmp_path / "data" / "labels" / stem)
    lose_a_file(tmp_path / "data" / "labels" / "b")
    with pytest.raises(BlocksFailed, match="b: .* is not as it was written"):
        tilenet.train(tmp_path / "data", tmp_path / "model.safetensors")


def test_no_mask_is_made_inside_another(masks):
    with pytest.raises(OutputExists, match=r"inside the mask .*a\. Choose another path"):
        tilenet.segment(IMAGE, masks[0] / "new" / "c", model=NETWORK)
    (masks[0].parent / "link").symlink_to(masks[0])
    with pytest.raises(OutputExists, match="inside the mask"):
        tilenet.segment(IMAGE, masks[0].parent / "link" / "c", model=NETWORK)
    for out in (masks[0], masks[0] / "b"):
        with pytest.raises(OutputExists, match="inside the mask"):
            tilenet.batch([masks[0].parent / "i.tif"], out, model=NETWORK)
    with pytest.raises(OutputExists, match="inside the mask"):
        write_sample(masks[0] / "s.tif")
    tilenet.segment(IMAGE, masks[0], model=NETWORK, overwrite=True)


def test_what_overwrite_refuses_to_lose_verify_tells_of(masks):
    (masks[0] / "notes.txt").write_text("mine")
    assert tilenet.verify(masks[0], IMAGE, model=NETWORK).damage == ["notes.txt is extra: tilenet did not write it"]
    assert tilenet.write_table(masks[0], masks[0].parent / "a.csv").path.exists(), "its files are as written"
    with pytest.raises(OutputExists, match="notes.txt"):
        tilenet.segment(IMAGE, masks[0], model=NETWORK, overwrite=True)
