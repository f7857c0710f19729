"""docs/json.md names what `--json` prints: all of it, and nothing else."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "json.md").read_text()
SIZE = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}


def fields_of(section):
    """Return the names in the first column of a section's table."""
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


OF_ALL_COMMANDS = fields_of(PAGE.partition("\n## ")[0])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder with a colour slide, a model, and masks of classes and of objects."""
    folder = tmp_path_factory.mktemp("json")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 110, 3), np.uint8)
    tifffile.imwrite(folder / "slide.tif", pixels, tile=(32, 32), photometric="rgb", **SIZE)
    alpha = np.full((90, 110, 1), 255, np.uint8)
    tifffile.imwrite(folder / "rgba.tif", np.append(pixels, alpha, -1), photometric="rgb", extrasamples=["unassalpha"])
    tilenet.save_model(random_network(in_channels=3, depth=2, wf=1), folder / "m.safetensors")
    for name, objects in (("mask", False), ("objects", True)):
        tilenet.segment(
            folder / "slide.tif",
            folder / f"{name}.zarr",
            model=folder / "m.safetensors",
            objects=objects,
            tissue=not objects or None,
        )
    tilenet.segment(folder / "slide.tif", folder / "begun.zarr", model=folder / "m.safetensors", tile=16, shard=(1, 2))
    tifffile.imwrite(folder / "stack.ome.tif", pixels[..., 0].reshape(2, 45, 110), metadata={"axes": "CYX"})
    for name, seen in (("images", pixels[..., 0]), ("labels", np.arange(90 * 110).reshape(90, 110) // 1000)):
        (folder / "pairs" / name).mkdir(parents=True)
        for stem in "ab":
            tifffile.imwrite(folder / "pairs" / name / f"{stem}.tif", seen.astype(np.uint8))
    tile = np.ones((64, 64), np.uint8)
    tifffile.imwrite(folder / "sparse.tif", iter([tile, None]), shape=(64, 128), dtype="u1", tile=(64, 64))
    return folder


COMMANDS = {
    "segment": [
        "segment slide.tif -m m.safetensors --out a.zarr --tissue=auto --profile --overview",
        "segment slide.tif -m m.safetensors --out b.zarr --objects",
        "segment slide.tif -m m.safetensors --out c.zarr --tile 16 --shard 1/2",
        "segment slide.tif -m m.safetensors --out d.zarr --tile 16 --objects --shard 1/2",
    ],
    "plan": ["plan slide.tif -m m.safetensors --tissue=auto", "plan slide.tif rgba.tif -m m.safetensors"],
    "info": [
        *("info slide.tif", "info rgba.tif", "info stack.ome.tif --axes zyx", "info sparse.tif"),
        "info slide.tif --pixel-size 2",
        *("info nuclei", "info mask.zarr", "info objects.zarr", "info begun.zarr"),
    ],
    "verify": ["verify mask.zarr"],
    "overlay": ["overlay slide.tif mask.zarr --out mask.png"],
    "export": ["export mask.zarr --csv mask.csv --geojson mask.geojson --tiff mask.ome.tif"],
    "batch": ["batch slide.tif rgba.tif -m m.safetensors --out masks --shard 1/2"],
    "train": ["train pairs --out trained.safetensors --depth 2 --wf 1 --epochs 1 --crops 2 --batch 1 --tile 16"],
    "evaluate": ["evaluate objects.zarr objects.zarr"],
    "finish": ["finish mask.zarr"],
    "tune": ["tune slide.tif -m m.safetensors --seconds 1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_names_every_field_and_no_other(command, work, tilenet_command, monkeypatch):
    monkeypatch.chdir(work)
    printed = set()
    for line in COMMANDS[command]:
        code, out, err = tilenet_command(*line.split(), "--json")
        assert code == 0, err
        printed |= json.loads(out).keys()
    assert printed == OF_ALL_COMMANDS | fields_of(re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)[1])


def test_the_pages_name_every_column_of_a_table_and_no_other(work, tilenet_command, monkeypatch):
    monkeypatch.chdir(work)
    line = "batch slide.tif -m m.safetensors --out counted --objects --csv --shapes --tissue=auto"
    assert tilenet_command(*line.split())[0] == 0
    told = {
        "slide.csv": (DOCS / "tables.md").read_text().split("\n## Columns\n")[1],
        "counts.csv": (DOCS / "cluster.md").read_text().split("\n`counts.csv` has one line")[1],
    }
    for name, text in told.items():
        columns = (work / "counted" / name).read_text().splitlines()[0].split(",")
        assert set(columns) == fields_of(text.split("\n## ")[0]), name


def test_every_command_with_json_is_on_the_page():
    from tilenet.cli.main import cli

    with_json = {name for name, command in cli.commands.items() if any("--json" in p.opts for p in command.params)}
    assert with_json == set(COMMANDS)
