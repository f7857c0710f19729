"""Many images, one mask each: what is complete is skipped, and one bad image stops no other."""

import csv
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
import zarr
from oracles import random_network
from store_helpers import tree
from stub import BAD, Bright
from workers import Cluster, write_image

import tilenet
from tilenet.batches import summary
from tilenet.batches.image_list import read_image_list
from tilenet.batches.summary import Result
from tilenet.cli.batch import _line
from tilenet.errors import BlocksFailed, EnvironmentFault, ImageError, SettingsError
from tilenet.jobs.options import Options
from tilenet.jobs.request import Request
from tilenet.runs import outputs
from tilenet.runs.outputs import open_store
from tilenet.workers import worker

TILES = {"tile": 512, "threads": 1}


@pytest.fixture
def images(tmp_path):
    """Return three images; the one in the middle has a block that cannot be computed."""
    (tmp_path / "slides").mkdir()
    sides = [(600, 1100), (1536, 2048), (700, 700)]
    paths = [write_image(tmp_path / "slides" / f"{n}.ome.tif", seed=i, sides=sides[i]) for i, n in enumerate("abc")]
    pixels = tifffile.imread(paths[1])
    pixels[600, 600] = BAD
    tifffile.imwrite(paths[1], pixels, tile=(256, 256))
    return paths


@pytest.mark.parametrize("cluster", [None, Cluster(workers=4)], ids=["one process", "workers"])
def test_one_bad_image_stops_no_other_and_the_next_call_goes_on(images, tmp_path, cluster):
    told = []
    options = {"model": Bright(), "client": cluster, **TILES}
    results = tilenet.batch([tmp_path / "slides" / "*.tif"], tmp_path / "masks", tell=told.append, **options)
    assert [(r.slide, r.status) for r in results] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert sorted(r.slide for r in told) == ["a", "b", "c"]
    assert "1 of 12 blocks failed; block 5" in results[1].error and "the lamp went out" in results[1].error
    for name, image in zip("ac", images[::2], strict=True):
        tilenet.segment(image, tmp_path / "alone.zarr", model=Bright(), overwrite=True, **TILES)
        assert tree(tmp_path / "masks" / f"{name}.zarr") == tree(tmp_path / "alone.zarr")
    before = tree(tmp_path / "masks" / "a.zarr")
    pixels = tifffile.imread(images[1])
    pixels[600, 600] = 7
    tifffile.imwrite(images[1], pixels, tile=(256, 256))
    results = tilenet.batch(images, tmp_path / "masks", **options)
    assert [(r.slide, r.status) for r in results] == [("a", "skipped"), ("b", "done"), ("c", "skipped")]
    tilenet.segment(images[1], tmp_path / "alone.zarr", model=Bright(), overwrite=True, **TILES)
    assert tree(tmp_path / "masks" / "b.zarr") == tree(tmp_path / "alone.zarr")
    assert tree(tmp_path / "masks" / "a.zarr") == before
    worker.close_all()


def test_the_summary_says_what_became_of_each_image(images, tmp_path):
    images.append(tmp_path / "gone.tif")
    tilenet.batch(images, tmp_path / "masks", model=Bright(), **TILES)
    rows = list(csv.DictReader((tmp_path / "masks" / "summary.csv").read_text().splitlines()))
    assert [row["slide"] for row in rows] == ["a", "b", "c", "gone"]
    assert [row["status"] for row in rows] == ["done", "failed", "done", "failed"]
    assert rows[0]["pixels"] == str(600 * 1100) and float(rows[0]["seconds"]) > 0
    assert "does not exist" in rows[3]["error"] and rows[3]["pixels"] == "0"
    listed = json.loads((tmp_path / "masks" / "summary.json").read_text())
    assert [row["error"] for row in listed] == [row["error"] for row in rows]


def test_names_that_collide_are_refused_before_work(images, tmp_path):
    (tmp_path / "other").mkdir()
    twin = write_image(tmp_path / "other" / "A.tif")
    with pytest.raises(SettingsError, match=r"a\.ome\.tif and .*A\.tif: both would be A\.zarr.*column name"):
        tilenet.batch([*images, twin], tmp_path / "masks", model=Bright())
    with pytest.raises(SettingsError, match=r"client 'tcp://1\.2\.3\.4' .* Give client=distributed.Client\('tcp"):
        tilenet.batch(images, tmp_path / "masks", client="tcp://1.2.3.4")
    assert not (tmp_path / "masks").exists()


def test_an_image_is_not_overwritten_by_its_mask(tmp_path):
    import zarr

    zarr.save_array(str(tmp_path / "a.zarr"), np.zeros((64, 64), np.uint8))
    (result,) = tilenet.batch([tmp_path / "a.zarr"], tmp_path, model=Bright())
    assert result.status == "failed" and "is the image" in result.error


@pytest.mark.parametrize("out", [".", "masks", "day/masks"])
def test_what_a_batch_wrote_is_no_image_when_it_is_run_again(tmp_path, out, caplog):
    from PIL import Image as Pillow

    (tmp_path / "day").mkdir()
    for name in ("a.png", "day/b.png", "c.overview.png"):  # the last one is a picture of somebody else's
        Pillow.fromarray(np.full((64, 64), 200, np.uint8)).save(tmp_path / name)
    patterns, masks = [tmp_path / "**" / "*.png", tmp_path / "day" / "m*", tmp_path / "**" / "*.zarr"], tmp_path / out
    first = tilenet.batch(patterns[:1], masks, model=Bright(), overview=True, table=True)
    assert [(r.slide, r.status) for r in first] == [("a", "done"), ("c.overview", "done"), ("b", "done")]
    assert not caplog.messages
    counts = (masks / "counts.csv").read_bytes()
    (tmp_path / "day" / "mine").symlink_to(tmp_path / "a.png")
    again = tilenet.batch(patterns, masks, model=Bright(), overview=True, table=True)
    assert [(r.slide, r.status) for r in again[:3]] == [(r.slide, "skipped") for r in first]
    assert [r.slide for r in again[3:]] == ["mine"]
    assert any("is taken for a result of tilenet (the first of " in said for said in caplog.messages)
    assert counts.splitlines()[:4] == (masks / "counts.csv").read_bytes().splitlines()[:4]
    elsewhere = tilenet.batch(tmp_path / "**" / "*.png", tmp_path / "other", model=Bright())
    assert [r.slide for r in elsewhere] == [r.slide for r in first]


def test_a_batch_whose_folder_is_that_of_its_images_is_run_again(tmp_path, caplog):
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full((64, 64), 200, np.uint8))
    how = {"model": Bright(), "objects": True, "table": True, "polygons": True, "overview": True}
    for status in ("done", "skipped"):
        results = tilenet.batch(tmp_path / "*", tmp_path, **how)
        assert [(r.slide, r.status) for r in results] == [("a", status), ("b", status)]
        (tmp_path / "c.zarr.making").mkdir(exist_ok=True)  # another share is at work
    written = len(list(tmp_path.iterdir())) - 2
    assert f"is taken for a result of tilenet (the first of {written} such)" in caplog.text
    elsewhere = read_image_list([tmp_path / "*.geojson"], model="nuclei", options=Options(), out=tmp_path / "masks")
    assert [item.name for item in elsewhere] == ["a", "b"], "which are refused when they are opened"


def test_the_folder_of_a_batch_is_no_image_while_it_is_empty_either(tmp_path):
    names = [write_image(tmp_path / f"{name}.tif").stem for name in "anz"]
    (tmp_path / "masks").mkdir()
    found = read_image_list([tmp_path / "*"], model="nuclei", options=Options(), out=tmp_path / "masks")
    assert [item.name for item in found] == names


def test_an_image_is_not_taken_for_the_folder_of_the_batch(tmp_path, caplog):
    image = zarr.create_array(tmp_path / "a.zarr", data=np.full((64, 64), 200, np.uint8), chunks=(64, 64))
    tifffile.imwrite(tmp_path / "b.tif", image[...])
    for status in ("done", "skipped"):
        results = tilenet.batch([tmp_path / "a.zarr", tmp_path / "b.tif"], tmp_path / "a.zarr", model=Bright())
        assert [(r.slide, r.status) for r in results] == [("a", "failed"), ("b", status)]
        assert "is the image" in results[0].error and "taken for a result" not in caplog.text


def test_what_lines_advise_is_said_with_the_first_image_alone(tmp_path, tilenet_command):
    size = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    for name in "abc":
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full((90, 90), 40, np.uint8), **size)
    code, _, err = tilenet_command("batch", tmp_path / "*.tif", "--out", tmp_path / "masks", "--tile", "64")
    said = "level 0 (0.5 um/px) as stored: nuclei asks for no pixel size"
    first, *others = err.splitlines()
    assert code == 0 and first.endswith(f"a.tif: {said}. To resample, give --mpp")
    assert others == [f"tilenet: {tmp_path / name}.tif: {said}" for name in "bc"]


def test_a_store_that_another_batch_makes_meanwhile_is_gone_on_with_or_said_to_be_written(tmp_path, monkeypatch):
    image = write_image(tmp_path / "a.tif", sides=(300, 200))
    real = outputs.check_free

    def slow(out, **options):
        real(out, **options)
        monkeypatch.undo()
        other.append(open_store(out, Request(image, Bright(), Options(threads=1)), resume=True))

    other = []
    monkeypatch.setattr(outputs, "check_free", slow)
    (result,) = tilenet.batch([image], tmp_path / "masks", model=Bright(), threads=1)
    assert result.status == "failed" and "is being written by process" in result.error
    store, job = other[0]
    store.close()
    job.close()
    (result,) = tilenet.batch([image], tmp_path / "masks", model=Bright(), threads=1)
    assert result.status == "done"


def test_an_image_is_named_after_its_own_folder_and_never_hidden(tmp_path, monkeypatch):
    (tmp_path / "stack").mkdir()
    monkeypatch.chdir(tmp_path / "stack")
    items = read_image_list([".", "../b.tif"], model="nuclei", options=Options())
    assert [item.name for item in items] == ["stack", "b"]
    for hidden in ("/", ".hidden.tif"):
        with pytest.raises(SettingsError, match="is not a valid, visible file name"):
            read_image_list([hidden], model="nuclei", options=Options())


def test_batches_into_one_folder_do_not_spoil_each_other_s_summary(tmp_path):
    results = [summary.Result(str(k), "i", "done", 1) for k in range(3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: summary.write_summary(tmp_path, results), range(40)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.csv", "summary.json"]
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 3
    with pytest.raises(EnvironmentFault, match="summary.csv: cannot be written"):
        (tmp_path / "summary.csv").unlink()
        (tmp_path / "summary.csv").mkdir()
        (tmp_path / "summary.csv" / "x").mkdir()
        summary.write_summary(tmp_path, results)


@pytest.mark.parametrize("name", ["nope.csv", "nope.TXT"])
def test_a_list_that_does_not_exist_is_refused_before_work(images, tmp_path, name):
    with pytest.raises(SettingsError, match=rf"{name}: no such list\. Check its path"):
        tilenet.batch([*images, tmp_path / name], tmp_path / "masks", model=Bright())
    assert not (tmp_path / "masks").exists()


def test_what_no_worker_could_open_is_refused_before_work(images, tmp_path):
    with pytest.raises(SettingsError, match="workers load models by themselves"):
        tilenet.batch(images, tmp_path / "masks", model=random_network(depth=2, wf=1), client=Cluster())
    for unknown, said in (("tiel", r"Did you mean tile\?"), ("spacing", "")):
        with pytest.raises(SettingsError, match=rf"batch has no option {unknown}\. {said}"):
            tilenet.batch(images, tmp_path / "masks", **{unknown: 256})
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(("lost", "said"), [("a", "for the reason above"), ("ab", "each for its own reason")])
def test_the_last_line_says_where_the_reasons_are_and_quietly_what_the_first_is(tilenet_command, tmp_path, lost, said):
    args = ("batch", *(tmp_path / f"{name}.tif" for name in lost), "--out", tmp_path / "masks")
    code, _, err = tilenet_command(*args)
    assert code == 3 and err.endswith(f" failed, {said}\n")
    code, _, err = tilenet_command(*args, "--quiet")
    assert code == 3 and f" failed, {'the first ' * (len(lost) > 1)}a: {tmp_path / 'a.tif'}: does not exist" in err


def test_the_command_prints_a_line_an_image_and_exits_with_3(tilenet_command, tmp_path):
    model = tilenet.save_model(random_network(in_channels=1, depth=2, wf=1), tmp_path / "small.safetensors")
    image = write_image(tmp_path / "a.tif", sides=(300, 200))
    args = ("--out", tmp_path / "masks", "--model", model, "--threads", 1)
    code, out, err = tilenet_command("batch", image, tmp_path / "gone.tif", *args)
    assert code == 3 and "1 of 2 images failed" in err and len(err.splitlines()) == 1
    (first, second), last = sorted(out.splitlines()[:2]), out.splitlines()[2]
    assert first.startswith("a  done  60000 px") and second.startswith("gone  failed")
    assert last.endswith("1 done, 0 skipped, 1 failed; see summary.csv")
    code, out, _ = tilenet_command("batch", image, *args, "--json")
    assert code == 0 and json.loads(out)["skipped"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workers", 2, "--scheduler", "tcp://127.0.0.1:1"), "give only one of them"),
        (("--scheduler", "nowhere.json"), "no such file, and no address"),
        (("--workers", 2, "--tls-key", "key.pem"), "go together, with --scheduler"),
        (("--cluster", "nowhere.yaml"), "cannot be read"),
    ],
)
def test_where_blocks_are_computed_is_said_once_and_rightly(tilenet_command, tmp_path, options, said):
    code, _, err = tilenet_command("batch", "a.tif", "--out", tmp_path / "masks", *options)
    assert code == 2 and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type: slurm\nadapt: {minimum: 3, maximum: 2}", "adapt must be two numbers"),
        ("type: slurm\nadapt: {minimum: 1}", "adapt must be two numbers"),
        ("type: cloud\nadapt: {minimum: 1, maximum: 2}", "type 'cloud' is none of slurm, pbs, lsf, sge"),
        ("type: slurm\nadpat: 3", "adpat is none of adapt, arguments, tls, type"),
        ("type: [", "is not YAML"),
        ("- slurm", "must have type, arguments and adapt"),
        ("type: slurm\narguments: [8]\nadapt: {minimum: 1, maximum: 2}", "must be names with values"),
        ("type: slurm\nadapt: {minimum: 1, maximum: 2}\ntls: yes", "tls must have ca_file, cert and key"),
        (
            "type: slurm\narguments: {cores: 1}\nadapt: {minimum: 1, maximum: 2}",
            "arguments must say the memory of a job",
        ),
        (
            "type: slurm\narguments: {cores: 1, memory: 1GB, coers: 2}\nadapt: {minimum: 1, maximum: 2}",
            "SLURMCluster has no argument coers",
        ),
    ],
)
def test_a_cluster_file_that_says_what_cannot_be_is_refused_in_a_line(tilenet_command, tmp_path, text, said):
    (tmp_path / "cluster.yaml").write_text(text)
    code, _, err = tilenet_command("batch", "a.tif", "--out", tmp_path / "m", "--cluster", tmp_path / "cluster.yaml")
    assert code == 2 and said in err and len(err.splitlines()) == 1 and not (tmp_path / "m").exists()


def test_real_slides_make_the_masks_of_single_runs(shared_data, tmp_path):
    model = tilenet.save_model(random_network(in_channels=1, depth=2, wf=1), tmp_path / "small.safetensors")
    names = {"small_fluo/mitocheck_t1_image.tif": 0, "derived/test3_DAPI_gray_pyramid.ome.tif": 2}
    levels = {shared_data(name): level for name, level in names.items()}
    lines = [f"{image.absolute()},{level}\n" for image, level in levels.items()]
    (tmp_path / "list.csv").write_text("image,level\n" + "".join(lines))
    results = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", model=str(model), **TILES)
    assert [r.status for r in results] == ["done", "done"], results
    for (image, level), result in zip(levels.items(), results, strict=True):
        tilenet.segment(image, tmp_path / "alone.zarr", model=model, overwrite=True, level=level, **TILES)
        assert tree(tmp_path / "masks" / f"{result.slide}.zarr") == tree(tmp_path / "alone.zarr")


def test_errors_of_an_image_are_those_of_segment(tmp_path):
    (tmp_path / "notes.txt").write_text("empty.tif")
    (tmp_path / "empty.tif").touch()
    (result,) = tilenet.batch(tmp_path / "notes.txt", tmp_path / "masks", model=Bright())
    with pytest.raises(ImageError) as error:
        tilenet.segment(tmp_path / "empty.tif", tmp_path / "m.zarr", model=Bright())
    assert result.error == str(error.value)
    assert BlocksFailed.exit_code == 3


@pytest.mark.parametrize(("module", "how"), [("distributed", "--workers"), ("dask_jobqueue", "--cluster")])
def test_a_missing_extra_is_named_with_what_installs_it(tmp_path, monkeypatch, tilenet_command, module, how):
    text = "type: slurm\narguments: {cores: 1, memory: 1GB}\nadapt: {minimum: 1, maximum: 2}\n"
    (tmp_path / "cluster.yaml").write_text(text)
    monkeypatch.setitem(sys.modules, module, None)
    said = {"--workers": "2", "--cluster": tmp_path / "cluster.yaml"}[how]
    code, _, err = tilenet_command("batch", "a.tif", "--out", tmp_path / "masks", how, said)
    assert (code, err.count("\n")) == (2, 1)
    assert 'is not installed. Install it: pip install "tilenet[cluster]"' in err


def test_the_line_of_an_image_says_which_share_is_positive():
    counts = {"counts": {"none": 0, "nucleus": 122}, "judged": {"none": 0, "nucleus": 120}}
    result = Result("a", "a.svs", "done", 100, **counts, positive={"none": 0, "nucleus": 34})
    assert _line(result) == "a  done  100 px  0 none, 0 positive  122 nucleus, 34 positive (28.3 %)  0.0 s"
