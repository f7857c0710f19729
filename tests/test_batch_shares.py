"""A batch in shares, one a job of an array; and the batch of all images, which collects what they made."""

import json
import os
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tifffile
from contents import lines_of
from store_helpers import tree
from stub import Bright
from workers import Cluster, write_image

import tilenet
from tilenet.batches import image_runs
from tilenet.errors import SettingsError
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs.outputs import open_store

HOW = {"model": Bright(), "threads": 1, "tile": 64}
NAMES = "abcde"


@pytest.fixture
def images(tmp_path):
    """Return five images with one to five bright squares."""
    for n, name in enumerate(NAMES, start=1):
        pixels = np.zeros((130, 140), np.uint8)
        for k in range(n):
            pixels[10 : 20 + k, 25 * k + 2 : 25 * k + 16] = 200
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, tile=(64, 64), photometric="minisblack")
    return [tmp_path / f"{name}.tif" for name in NAMES]


def names_of(results):
    return "".join(result.slide for result in results)


@pytest.mark.parametrize("objects", [False, True], ids=["classes", "objects"])
@pytest.mark.parametrize("cluster", [None, Cluster(workers=2)], ids=["one process", "workers"])
def test_the_shares_make_the_masks_tables_and_polygons_of_one_batch_and_that_of_all_then_computes_nothing(
    images, tmp_path, monkeypatch, cluster, objects
):
    how = HOW | {"table": True, "polygons": True, "objects": objects, "client": cluster}
    tilenet.batch(images, tmp_path / "alone", **how)
    parts = [tilenet.batch(images, tmp_path / "masks", shard=(i, 2), **how) for i in (2, 1)]
    assert [names_of(part) for part in parts] == ["bd", "ace"]
    assert [line["slide"] for line in lines_of(tmp_path / "masks" / "summary-2-of-2.csv")] == ["b", "d"]
    assert [row["slide"] for row in json.loads((tmp_path / "masks" / "summary-1-of-2.json").read_text())] == [*"ace"]
    assert [line["count"] for line in lines_of(tmp_path / "masks" / "counts-1-of-2.csv")] == ["1", "3", "5"]
    assert not [*(tmp_path / "masks").glob("summary.*"), *(tmp_path / "masks").glob("counts.csv")]

    def computed(*_, **__):
        raise AssertionError("something is computed")

    for name in ("store_objects", "open_store"):
        monkeypatch.setattr(image_runs, name, computed)
    results = tilenet.batch(images, tmp_path / "masks", **how)
    assert [(result.slide, result.status) for result in results] == [(name, "skipped") for name in NAMES]
    for name in NAMES:
        assert tree(tmp_path / "masks" / f"{name}.zarr") == tree(tmp_path / "alone" / f"{name}.zarr")
    for file in ("counts.csv", *(f"{name}.{ending}" for name in NAMES for ending in ("csv", "geojson"))):
        assert (tmp_path / "masks" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


def test_a_share_that_was_killed_goes_on_where_it_stopped(images, tmp_path, monkeypatch):
    real, begun = image_runs.fill_pending, []

    def killed(store, job):
        begun.append(job)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(store, job)

    monkeypatch.setattr(image_runs, "fill_pending", killed)
    with pytest.raises(KeyboardInterrupt):
        tilenet.batch(images, tmp_path / "masks", shard=(1, 2), **HOW)
    monkeypatch.undo()
    results = tilenet.batch(images, tmp_path / "masks", shard=(1, 2), **HOW)
    assert names_of(results) == "ace" and {result.status for result in results} <= {"done", "skipped"}
    tilenet.batch(images, tmp_path / "alone", **HOW)
    assert [name for name in NAMES if (tmp_path / "masks" / f"{name}.zarr").exists()] == [*"ace"]
    for name in "ace":
        assert tree(tmp_path / "masks" / f"{name}.zarr") == tree(tmp_path / "alone" / f"{name}.zarr")


@pytest.mark.parametrize("objects", [False, True])
def test_an_image_that_another_process_is_writing_is_tried_again_after_all_others(images, tmp_path, objects):
    def tell(result):
        told.append(result.status)
        store.close()
        job.close()

    masks, told = tmp_path / "masks", []
    place = masks / ("a.zarr.making/depths.zarr" if objects else "a.zarr")
    options = Options(tile=64, threads=1, output="objects" if objects else None)
    store, job = open_store(place, Request(images[0], Bright(), options))
    results = tilenet.batch(images, masks, objects=objects, tell=tell, **HOW)
    assert [result.status for result in results] == told == ["done"] * len(images)


def test_a_share_without_images_is_done(images, tmp_path):
    # Also if it had one in an earlier, longer list: whoever joins the tables of all shares must not count that.
    assert len(tilenet.batch(images[:3], tmp_path / "masks", shard=(3, 3), table=True, **HOW)) == 1
    assert lines_of(tmp_path / "masks" / "counts-3-of-3.csv")
    assert tilenet.batch(images[:2], tmp_path / "masks", shard=(3, 3), table=True, **HOW) == []
    assert lines_of(tmp_path / "masks" / "summary-3-of-3.csv") == []
    assert lines_of(tmp_path / "masks" / "counts-3-of-3.csv") == []


def test_each_image_of_a_share_has_the_options_of_its_line(images, tmp_path):
    (tmp_path / "list.csv").write_text("image,name,tile\na.tif,one,\nb.tif,two,128\nc.tif,three,\nd.tif,four,32\n")
    results = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", shard=(2, 2), **HOW)
    tiles = [tilenet.open_mask(tmp_path / "masks" / f"{r.slide}.zarr").info["record"]["tile"] for r in results]
    assert (names_of(results), tiles) == ("twofour", [[128, 128], [32, 32]])


def test_what_is_wrong_with_an_image_of_another_share_is_refused_before_work(images, tmp_path):
    (tmp_path / "other").mkdir()
    twin = write_image(tmp_path / "other" / "A.tif", sides=(64, 64))
    with pytest.raises(SettingsError, match=r"both would be A\.zarr"):
        tilenet.batch([*images[:3], twin], tmp_path / "masks", shard=(2, 2), **HOW)
    own = images[0].rename(tmp_path / "Counts-1-of-2.tif")
    with pytest.raises(SettingsError, match=r"its table would be Counts-1-of-2\.csv, which is that of the whole batch"):
        tilenet.batch([own, images[1]], tmp_path / "masks", shard=(2, 2), table=True, **HOW)
    for shard in ((0, 2), (3, 2), "1/2"):
        with pytest.raises(SettingsError, match="shar[de]"):
            tilenet.batch(images[1:], tmp_path / "masks", shard=shard, **HOW)
    assert not (tmp_path / "masks").exists()


def test_the_command_names_the_share_and_its_summary(shared_data, tilenet_command, tmp_path):
    real = [shared_data(f"small_fluo/{name}_image.tif") for name in ("mitocheck_t1", "nup_nuclei_2ch")]
    command = ("batch", *real, "--out", tmp_path / "masks", "--threads", 1, "--channels", 0, "--shard")
    code, out, _ = tilenet_command(*command, "1/2")
    assert code == 0 and "1 done, 0 skipped, 0 failed; see summary-1-of-2.csv" in out
    code, out, _ = tilenet_command(*command, "2/2", "--json")
    assert code == 0 and (json.loads(out)["share"], len(json.loads(out)["slides"])) == ("2/2", 1)
    assert tilenet_command(*command, "3/2")[0] == 2
    code, out, _ = tilenet_command(*command[:-1])
    assert code == 0 and "0 done, 2 skipped, 0 failed; see summary.csv" in out


def test_the_job_script_gives_each_job_of_an_array_its_share_and_is_that_of_the_page(tmp_path):
    root = Path(__file__).parent.parent
    script = root / "pipelines" / "array_slurm.sh"
    assert textwrap.indent(script.read_text(), "    ") in (root / "docs" / "cluster.md").read_text()
    (tmp_path / "tilenet").write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    (tmp_path / "tilenet").chmod(0o755)

    def said(**environ):
        environ |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        run = [script, "my slides/*.svs", "--out", "m"]
        done = subprocess.run(run, env=environ, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else done.stderr

    assert said() == "batch|my slides/*.svs|--out|m|"
    again = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1"}  # sbatch --array=3
    assert said(**again, SHARES="8") == "batch|my slides/*.svs|--out|m|--shard|3/8|"
    assert "SHARES: say how many there are: export SHARES=8" in said(**again)
