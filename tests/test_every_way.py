"""Whatever is asked for: every way to make a mask gives the same bytes, what is not said again is as it was begun."""

import shutil

import numpy as np
import pytest
import tifffile
from blobs import balls, blobs
from drawn_regions import feature, rectangle, write_regions
from faults import tree_hash
from killing import kill, lose_a_file
from linked_stacks import moving
from ome_images import write_ome_tiff
from stub import Bright, Bright3D
from workers import Cluster, worker

import tilenet
from tilenet.errors import OutputMismatch
from tilenet.runs import numbering, object_places
from tilenet.runs.object_outputs import making_of
from tilenet.store import Store

PLANE = blobs((150, 200), seed=2)
STACK, FLAT = moving((60, 70), 4), balls((1.25, 0.25, 0.25))
OBJECTS = {"objects": True}
DRAWN = [feature([rectangle(30, 20, 90, 70), rectangle(40, 30, 60, 50)])]
STEPS = ("_fill_places", "linked", "_first_places", "_write_numbers", "finish")
# The image and the size of its pixels, how it is segmented, and another value that must not go on with it.
WISHES = {
    "roi": (PLANE, (0.5, 0.5), {"roi": "10:140,20:190"}, {"roi": "10:141,20:190"}),
    "mpp": (PLANE, (0.5, 0.5), {"mpp": 0.8}, {"mpp": 0.9}),
    "pixel size": (PLANE, (), {"mpp": 0.8, "pixel_size": 0.5}, {"pixel_size": 0.6}),
    "channels": (np.stack([PLANE[::-1], PLANE]), (0.5, 0.5), {"channels": (1,)}, {"channels": (0,)}),
    "tissue": (PLANE, (0.5, 0.5), {"tissue": np.eye(3, 4, dtype=np.uint8)}, {"tissue": np.ones((3, 4), np.uint8)}),
    "regions": (PLANE, (0.5, 0.5), OBJECTS | {"mpp": 0.8, "tissue": DRAWN}, {"tissue": False}),
    "scaling": (PLANE, (0.5, 0.5), {"scaling": "linear:-50,1"}, {"scaling": "none"}),
    "objects of a part": (PLANE, (0.5, 0.5), OBJECTS | {"roi": "0:100,0:150"}, {"roi": "0:101,0:150"}),
    "objects and tissue": (PLANE, (0.5, 0.5), OBJECTS | {"tissue": np.eye(3, 4, dtype=np.uint8)}, {"tissue": False}),
    "link": (STACK, (1.0, 0.5, 0.5), OBJECTS | {"link": 0.25}, {"link": 0.5}),
    "spacing": (FLAT, (1.25, 0.25, 0.25), OBJECTS, {"pixel_size": (2, 0.25, 0.25)}),
}


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tilenet.sizes.BLOCK_SIDES", {2: (64, 64), 3: (16, 16)})
        patch.setattr("tilenet.sizes.STACKED_PIXELS", 2 * 64**2)
        patch.setattr(object_places, "PIECES", {2: (2 * 64**2, 64), 3: (16**3, 16)})
        yield


@pytest.fixture(scope="module", params=WISHES)
def wish(request, small_blocks, tmp_path_factory):
    """Return an image, the model, what is asked for, what contradicts it, and the hash of one process's mask.

    That mask lies beside the image, as alone.zarr.
    """
    pixels, um, asked, other = WISHES[request.param]
    folder = tmp_path_factory.mktemp("wish")
    image, model = folder / "i.ome.tif", (Bright3D if pixels is FLAT else Bright)()
    if request.param == "channels":
        tifffile.imwrite(image, pixels, tile=(32, 32), metadata={"axes": "CYX"}, ome=True, photometric="minisblack")
    else:
        write_ome_tiff(image, pixels, um=um)
    how = {"tile": 16 if pixels is FLAT else 32, "threads": 1, **asked}
    if how.get("tissue") is DRAWN:
        how["tissue"] = write_regions(folder / "regions.geojson", DRAWN)
    mask = tilenet.segment(image, folder / "alone.zarr", model=model, **how)
    assert mask.layout.n_blocks(0) > 3 and np.asarray(mask).any()
    return image, model, how, other, tree_hash(mask.path)


def test_workers_shares_and_batches_give_the_bytes_of_one_process(wish, tmp_path):
    image, model, how, _, alone = wish
    tilenet.segment(image, tmp_path / "workers.zarr", model=model, client=Cluster(workers=2), **how)
    worker.close_all()
    for share in ((2, 2), (1, 2), (2, 2), (1, 2)):
        tilenet.segment(image, tmp_path / "shares.zarr", model=model, shard=share, **how)
    tilenet.batch([image], tmp_path / "batch", model=model, **how)
    (batched,) = (tmp_path / "batch").glob("*.zarr")
    assert {tree_hash(path) for path in (tmp_path / "workers.zarr", tmp_path / "shares.zarr", batched)} == {alone}


def test_one_thread_that_reads_gives_the_bytes_of_several(wish, tmp_path, monkeypatch):
    image, model, how, _, alone = wish
    for module in ("tilenet.runner", "tilenet.scaling", "tilenet.tissue.cells"):
        monkeypatch.setattr(f"{module}.READERS", 1)
    mask = tilenet.segment(image, tmp_path / "m.zarr", model=model, **how)
    assert tree_hash(mask.path) == alone


@pytest.mark.parametrize(
    ("wish", "where"),
    [
        (name, where)
        for name, (_, _, asked, _) in WISHES.items()
        for where in (STEPS if "objects" in asked else ("build_pyramid",))
        if where != "linked" or "link" in asked
    ],
    indirect=["wish"],
)
def test_killed_it_goes_on_as_it_was_begun_and_as_nothing_else(wish, tmp_path, monkeypatch, where):
    image, model, how, other, alone = wish
    out, place = tmp_path / "m.zarr", numbering if "objects" in how else Store
    kill(monkeypatch, place, where, tilenet.segment, image, out, model=model, **how)
    with pytest.raises(OutputMismatch, match=f"begun with {next(iter(other))} = .*, and now it is"):
        tilenet.segment(image, out, model=model, resume=True, **other)
    if place is Store:
        lose_a_file(out)
    tilenet.segment(image, out, model=model, resume=True)
    assert tree_hash(out) == alone and not making_of(out, None).exists()


def test_damaged_it_is_repaired_as_it_was_made(wish, tmp_path):
    image, model, _, _, alone = wish
    out = shutil.copytree(image.with_name("alone.zarr"), tmp_path / "m.zarr")
    lose_a_file(out)
    tilenet.segment(image, out, model=model, resume=True)
    assert tree_hash(out) == alone and tilenet.verify(out, model=model).ok
