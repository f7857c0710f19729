"""What type checkers see of the package: mypy accepts the lines of the pages, and finds what is wrong in others."""

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_overloads

import pytest

import tilenet
from tilenet.api import SegmentSettings
from tilenet.jobs.options import BatchSettings, LazySettings, Options

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "python.md")
# What the lines of the pages need: the names that they take for granted. Functions there stand for a user's own, which
# need no annotations; PyTorch takes attributes that a network does not declare for tensors.
GIVEN = """\
# mypy: allow-untyped-defs
import numpy as np
import torch
from numpy.typing import NDArray

import tilenet

array: NDArray[np.uint8]
volume: NDArray[np.uint8]
network: torch.nn.Module


class MyPaddedNetwork(torch.nn.Module):
    footprint: tilenet.Footprint
    card: tilenet.ModelCard


class MyValidNetwork(torch.nn.Module): ...


"""
RIGHT = """\
from typing import Any, assert_type

labels = tilenet.segment(volume, axes="zyx", roi=np.s_[10:20, ...], tile=(32, 256, 256), missing="fill")
assert_type(labels, NDArray[Any])
mask = tilenet.segment("slide.svs", "mask.zarr", output="both", memory="4GB", scaling="linear:0,255")
assert_type(mask, tilenet.Mask | tilenet.TiffMask)
assert_type(tilenet.segment("i.zarr", into="i.zarr", objects=True), tilenet.Mask)
assert_type(tilenet.segment("s.svs", "m.zarr", shard=(1, 2)), tilenet.Mask | tilenet.TiffMask | None)
print(labels.max(), mask.pixel_size, tilenet.lazy(array, tile=64).chunksize)
tilenet.write_geojson(mask, "mask.geojson", kind="annotation")
tilenet.evaluate(mask, "truth.tif")
tilenet.objects(tilenet.segment(volume, output="probabilities"), spacing=(2, 0.4, 0.4))
tilenet.Recipe(scaling="linear:0,255", turns="any", up_mode="upsample")
tilenet.ModelCard(scaling="linear:0,255", output="sigmoid")
tilenet.UNet(up_mode="upsample", pooling="avg")
tilenet.batch("*.svs", "masks", output="both", mpp=0.5)
"""
WRONG = """\
tilenet.segment(array, output="probs")
tilenet.segment(array, output="both")
tilenet.segment(array, "mask.zarr", output="logits")
tilenet.segment(array, tiles=3)
tilenet.segment(array, engine="quick")
tilenet.segment(array, "mask.zarr").max()
tilenet.segment(array, "mask.zarr", shard=(1, 2)).pixel_size
tilenet.lazy(array, tiles=3)
tilenet.lazy(array).chunk_size
tilenet.batch("*.svs", "masks", precision="fp8")
tilenet.open_image(array, missing="skip")
tilenet.write_geojson("mask.zarr", "mask.geojson", kind="cell")
tilenet.Recipe(turns="righ")
tilenet.ModelCard(output="logits")
tilenet.UNet(up_mode="up")
"""


def test_every_option_has_a_type():
    options = set(inspect.signature(tilenet.segment).parameters)
    for seen in get_overloads(tilenet.segment):
        named = {name for name, p in inspect.signature(seen).parameters.items() if p.kind is not p.VAR_KEYWORD}
        assert named | SegmentSettings.__optional_keys__ == options
        assert not named & SegmentSettings.__optional_keys__
    follow = {"block", "factor", "spacing"}  # from others, or from the image
    assert BatchSettings.__optional_keys__ == {option.name for option in fields(Options)} - follow
    assert LazySettings.__optional_keys__ < BatchSettings.__optional_keys__


@pytest.mark.slow
def test_a_type_checker_accepts_the_lines_of_the_pages_and_finds_what_is_wrong(tmp_path, monkeypatch):
    mypy = pytest.importorskip("mypy.api", reason="mypy is not installed")
    texts = {f"{page.stem}_{k}": block for page in PAGES for k, block in enumerate(python_blocks(page))}
    assert len(texts) > 5
    for name, text in {**texts, "right": RIGHT, "wrong": WRONG}.items():
        (tmp_path / f"{name}.py").write_text(GIVEN + text)
    monkeypatch.chdir(ROOT)  # where pyproject.toml and the cache of mypy are
    said, _, _ = mypy.run(["--strict", str(tmp_path)])
    found = re.findall(r"(\w+)\.py:(\d+): error: (.*)", said)
    assert [error for error in found if error[0] != "wrong"] == []
    lines = range(GIVEN.count("\n") + 1, (GIVEN + WRONG).count("\n") + 1)
    assert {int(line) for _, line, _ in found} == set(lines)


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
