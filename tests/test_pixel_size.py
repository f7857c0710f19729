"""An image whose pixel size is given is segmented as if its file stated it, by every command and again later."""

import json
import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile
from contents import lines_of, open_files
from ome_images import write_ome_tiff, write_ome_zarr
from pyramids import write_pyramid
from stub import Bright, Bright3D

import tilenet
from tilenet.errors import OutputMismatch, SettingsError
from tilenet.export.table import write_table
from tilenet.jobs.options import Options
from tilenet.readers.calibrated import LARGEST, SMALLEST, parse_pixel_size

# Blobs of some pixels: they are objects at half the size, too.
PIXELS = (np.kron(np.random.default_rng(0).integers(0, 3, (22, 30)), np.ones((6, 6))) * 100).astype(np.uint8)
VOLUME = np.stack([PIXELS, PIXELS[::-1], PIXELS])[:, :60, :70]
MODEL, HOW = Bright(), {"model": Bright(), "tile": 32, "threads": 1}


@pytest.fixture
def slides(tmp_path):
    """Return the paths of one picture, as an OME-TIFF of 0.25 um and as a PNG, which has no pixel size."""
    (tmp_path / "bare.png").write_bytes(imagecodecs.png_encode(PIXELS))
    return write_ome_tiff(tmp_path / "stated.ome.tif", PIXELS, um=(0.25, 0.25)), tmp_path / "bare.png"


def objects_of(path):
    """Return the lines of a table without their ids, which are unique to a mask."""
    return [{k: v for k, v in line.items() if k != "id"} for line in lines_of(path)]


def outlines_of(path):
    return [(f["geometry"], f["properties"]) for f in json.loads(path.read_text())["features"]]


def ome_of(mask):
    return json.loads((mask / "zarr.json").read_text())["attributes"]["ome"]


@pytest.mark.parametrize(
    "options", [{}, {"mpp": 0.5}, {"mpp": 0.4, "objects": True}, {"mpp": 0.375, "roi": "9:60,5:80"}]
)
@pytest.mark.parametrize("kind", ["picture", "array", "open image"])
def test_an_image_of_a_given_size_is_segmented_as_one_that_states_it(tmp_path, slides, kind, options):
    stated, bare = slides
    wanted = tilenet.segment(stated, tmp_path / "a.zarr", **HOW, **options)
    if kind == "open image":
        image, how = tilenet.open_image(bare, pixel_size=0.25), {}
    else:
        image, how = (bare if kind == "picture" else PIXELS), {"pixel_size": 0.25}
    found = tilenet.segment(image, tmp_path / "b.zarr", **HOW, **options, **how)
    assert np.array_equal(found[...], wanted[...]) and wanted[...].any()
    assert found.pixel_size == wanted.pixel_size != (None, None)
    assert ome_of(tmp_path / "a.zarr") == ome_of(tmp_path / "b.zarr")
    assert found.info["record"] == wanted.info["record"] | {"pixel_size": [0.25, 0.25]}
    if kind != "array" or "mpp" not in options:  # a table of a resampled mask needs the image's file
        for name in "ab":
            write_table(
                tmp_path / f"{name}.zarr", tmp_path / f"{name}.csv", min_area="1um2", intensities="objects" in options
            )
        assert objects_of(tmp_path / "a.csv") == objects_of(tmp_path / "b.csv") != []
        assert all(float(line["area_um2"]) >= 1 for line in objects_of(tmp_path / "b.csv"))


def test_a_lazy_array_reads_at_the_given_size_in_other_processes_too(slides):
    stated, bare = slides
    wanted = tilenet.segment(stated, mpp=0.5, batch=1, **HOW)
    lazy = tilenet.lazy(bare, mpp=0.5, pixel_size=0.25, **HOW)
    assert lazy.shape == wanted.shape == (66, 90)
    assert np.array_equal(lazy.compute(), wanted)
    assert np.array_equal(pickle.loads(pickle.dumps(lazy)).compute(), wanted)


def test_a_run_is_resumed_verified_drawn_and_exported_with_the_size_it_was_begun_with(
    tmp_path, slides, tilenet_command
):
    stated, bare = slides
    how = HOW | {"mpp": 0.5, "tile": 16}
    tilenet.segment(stated, tmp_path / "whole.zarr", **how)
    assert tilenet.segment(bare, tmp_path / "m.zarr", shard=(1, 2), pixel_size=0.25, **how) is None
    for size, said in ((0.5, r"\[0.5, 0.5\]"), ((0.25, 0.26), r"\[0.25, 0.26\]")):
        with pytest.raises(OutputMismatch, match=rf"begun with pixel_size = \[0.25, 0.25\], and now it is {said}"):
            tilenet.segment(bare, tmp_path / "m.zarr", resume=True, pixel_size=size, **how)
    mask = tilenet.segment(bare, tmp_path / "m.zarr", shard=(2, 2), model=MODEL)  # the size is that of the record
    assert np.array_equal(mask[...], tilenet.open_mask(tmp_path / "whole.zarr")[...])
    found = tilenet.verify(tmp_path / "m.zarr", model=MODEL)
    assert found.ok and found.windows and not found.not_recomputed
    assert (
        tilenet.overlay(bare, tmp_path / "m.zarr").tobytes()
        == tilenet.overlay(stated, tmp_path / "whole.zarr").tobytes()
    )
    for name in ("m", "whole"):
        where = tmp_path / f"{name}.geojson"
        assert tilenet_command("export", tmp_path / f"{name}.zarr", "--geojson", where, "--min-area", "1um2")[0] == 0
        write_table(tmp_path / f"{name}.zarr", tmp_path / f"{name}.csv")
    assert outlines_of(tmp_path / "m.geojson") == outlines_of(tmp_path / "whole.geojson") != []
    assert objects_of(tmp_path / "m.csv") == objects_of(tmp_path / "whole.csv") != []


@pytest.mark.parametrize("options", [{}, {"roi": "9:60,5:80"}, {"objects": True}])
def test_a_size_that_segment_was_not_given_may_be_given_to_export(tmp_path, slides, tilenet_command, options):
    stated, bare = slides
    tilenet.segment(stated, tmp_path / "a.zarr", **HOW, **options)
    tilenet.segment(bare, tmp_path / "b.zarr", **HOW, **options)
    found = []
    for name, size in (("a", []), ("b", ["--pixel-size", "0.25"])):
        outs = [f"--{kind}={tmp_path / name}.{kind}" for kind in ("csv", "geojson")]
        code, out, err = tilenet_command("export", tmp_path / f"{name}.zarr", *outs, "--min-area", "1um2", *size)
        assert code == 0, err
        found.append(out.replace(f"{tmp_path / name}.", ""))
    assert found[0] == found[1] and " per mm2" in found[0]
    assert objects_of(tmp_path / "a.csv") == objects_of(tmp_path / "b.csv") != []
    assert outlines_of(tmp_path / "a.geojson") == outlines_of(tmp_path / "b.geojson") != []


def test_a_size_given_to_export_is_that_of_the_image_at_full_resolution(tmp_path):
    bare = write_pyramid(tmp_path / "bare.tif", PIXELS)
    tilenet.segment(bare, tmp_path / "b.zarr", level=1, **HOW)
    found = write_table(tmp_path / "b.zarr", tmp_path / "b.csv", pixel_size=(0.25, 0.5))
    assert found.pixel_um2 == 0.5 * 1.0
    for line in lines_of(found.path):
        assert float(line["area_um2"]) == pytest.approx(int(line["area_px"]) * 0.5, abs=1e-3)
    with pytest.raises(SettingsError, match=r"b\.zarr: has no axis z\. Give --pixel-size for y and x"):
        write_table(tmp_path / "b.zarr", tmp_path / "c.csv", pixel_size="2,0.25,0.25")


def test_a_size_is_refused_by_export_of_a_mask_that_has_one(tmp_path, slides, tilenet_command):
    tilenet.segment(slides[0], tmp_path / "a.zarr", **HOW)
    with pytest.raises(SettingsError, match=r"a\.zarr: has pixels of 0\.25 x 0\.25 um already\. Leave"):
        write_table(tmp_path / "a.zarr", tmp_path / "a.csv", pixel_size=0.25)
    said = tilenet_command("export", tmp_path / "a.zarr", "--tiff", tmp_path / "a.tif", "--pixel-size", "0.25")
    assert said[0] == 2 and "--pixel-size 0.25,0.25 is for --geojson and --csv" in said[2]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_size_along_z_alone_may_be_given_to_export_of_a_volume(tmp_path, level, tilenet_command):
    how = {"model": Bright3D(), "objects": True, "threads": 1, "level": level}
    levels = [(VOLUME, (2, 0.5, 0.5)), (VOLUME[:, ::2, ::2], (2, 1, 1)), (VOLUME[::2, ::2, ::2], (4, 1, 1))]
    for name, axes in (("a", "zyx"), ("b", "yx")):
        units = dict.fromkeys(axes, "micrometer")
        write_ome_zarr(tmp_path / f"{name}_image.zarr", levels, axes="zyx", units=units)
        tilenet.segment(tmp_path / f"{name}_image.zarr", tmp_path / f"{name}.zarr", **how)
    assert write_table(tmp_path / "b.zarr", tmp_path / "none.csv").per_mm3 == {}
    found, voxel = write_table(tmp_path / "b.zarr", tmp_path / "b.csv", pixel_size="2,0.5,0.5"), (0.5, 2, 4)[level]
    assert found.voxel_um3 == voxel and found.mm3 == pytest.approx(VOLUME.size * 0.5 / 1e9)
    there = voxel * (1, 1, 0.75)[level]  # of the second plane of level 2 one half, and all objects are in both
    assert [float(line["volume_um3"]) for line in lines_of(found.path)] == [
        pytest.approx(int(line["volume_px"]) * there, abs=1e-3) for line in lines_of(found.path)
    ]
    assert found.per_mm3 == {"foreground": pytest.approx(len(lines_of(found.path)) / found.mm3)}
    for size, said in (
        ("2,0.5,0.6", r"known to be ? x 0.5 x 0.5 um, and --pixel-size is 2 x 0.5 x 0.6 um. Give the known sizes"),
        ("0.5", "um already. Give --pixel-size for z, too: Z,Y,X"),
    ):
        code, _, err = tilenet_command("export", tmp_path / "b.zarr", "--csv", tmp_path / "x.csv", "--pixel-size", size)
        assert code == 2 and said in err and not (tmp_path / "x.csv").exists()
    wrong = r"Leave --pixel-size out. If that is wrong, segment again with --pixel-size$"
    with pytest.raises(SettingsError, match=rf"a\.zarr: has pixels of [24] x .* um already\. {wrong}"):
        write_table(tmp_path / "a.zarr", tmp_path / "x.csv", pixel_size="2,0.5,0.5")


@pytest.mark.parametrize("how", [{}, {"pixel_size": 0.1}])
def test_a_size_along_z_that_a_file_states_alone_is_replaced_by_export(tmp_path, caplog, how):
    image = tmp_path / "v.ome.tif"
    tifffile.imwrite(image, VOLUME, metadata={"axes": "ZYX", "PhysicalSizeZ": 352.8}, ome=True)
    mask = tilenet.segment(image, tmp_path / "m.zarr", model=Bright3D(), objects=True, threads=1, **how)
    assert mask.pixel_size[0] == 352.8
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", pixel_size="0.3,0.1,0.1")
    assert found.voxel_um3 == pytest.approx(0.003)
    assert "m.zarr: its pixels along z are taken as 0.3 um, as asked; the mask says 352.8 um" in caplog.text
    assert ("by which its objects were separated. Segment again" in caplog.text) == bool(how)
    if how:
        with pytest.raises(SettingsError, match=r"known to be \? x 0\.1 x 0\.1 um, and --pixel-size is 0\.3 x 0\.2 x"):
            write_table(tmp_path / "m.zarr", tmp_path / "x.csv", pixel_size="0.3,0.2,0.2")


def test_export_says_which_size_along_z_stays_if_it_is_given_those_of_y_and_x(tmp_path, caplog):
    image = tmp_path / "v.ome.tif"
    tifffile.imwrite(image, VOLUME, metadata={"axes": "ZYX", "PhysicalSizeZ": 2.0}, ome=True)
    tilenet.segment(image, tmp_path / "m.zarr", model=Bright3D(), objects=True, threads=1)
    found = write_table(tmp_path / "m.zarr", tmp_path / "m.csv", pixel_size=0.1)
    assert found.voxel_um3 == pytest.approx(0.02)
    assert "m.zarr: along z its pixels stay 2 um. Give Z,Y,X to replace it" in caplog.text


def test_a_run_of_an_older_version_is_resumed_without_a_size_and_not_with_one(tmp_path, slides):
    bare = slides[1]
    tilenet.segment(bare, tmp_path / "m.zarr", shard=(1, 2), **HOW | {"tile": 16})
    path = tmp_path / "m.zarr" / "zarr.json"
    document = json.loads(path.read_text())
    assert document["attributes"]["tilenet"]["record"].pop("pixel_size", 0) is None
    path.write_text(json.dumps(document))
    with pytest.raises(
        OutputMismatch, match=r"with pixel_size = not given, and now it is \[0.25, 0.25\]. Leave the option"
    ):
        tilenet.segment(bare, tmp_path / "m.zarr", resume=True, model=MODEL, pixel_size=0.25)
    mask = tilenet.segment(bare, tmp_path / "m.zarr", resume=True, model=MODEL)
    assert np.array_equal(mask[...], tilenet.segment(bare, **HOW)) and mask.pixel_size == (None, None)


def test_a_size_that_contradicts_the_file_is_told_and_shown_and_rounding_is_not(tmp_path, slides, tilenet_command):
    path = str(slides[0])
    model = ("-m", "nuclei", "--threads", 1)
    code, _, err = tilenet_command("segment", path, "-o", tmp_path / "a.zarr", *model, "--pixel-size", "0.5")
    assert code == 0
    assert f"tilenet: {path}: pixel size taken as 0.5 um, as asked; the file says 0.25 um\n" in err
    assert tilenet.open_mask(tmp_path / "a.zarr").pixel_size == (0.5, 0.5)
    _, _, err = tilenet_command("segment", path, "-o", tmp_path / "b.zarr", *model, "--pixel-size", "0.251")
    assert "the file says" not in err
    assert "uint8 (the file says 0.25 um)" in tilenet_command("plan", path, *model, "--pixel-size", "0.5,0.25")[1]
    shown = json.loads(tilenet_command("info", path, "--pixel-size", "0.5", "--json")[1])
    assert (shown["pixel_size_um"], shown["pixel_size_in_file_um"]) == ([0.5, 0.5], [0.25, 0.25])
    shown = json.loads(tilenet_command("info", slides[1], "--pixel-size", "0.5", "--json")[1])
    assert shown["pixel_size_um"] == [0.5, 0.5] and "pixel_size_in_file_um" not in shown


@pytest.mark.parametrize(("z", "left"), [(2, "2 um"), (None, "unknown")])
def test_a_size_of_y_and_x_alone_tells_which_one_stays_along_z(tmp_path, caplog, z, left):
    caplog.set_level("INFO")
    image = write_ome_tiff(tmp_path / "v.ome.tif", VOLUME, um=(z, 0.5, 0.5))
    tilenet.segment(image, model=Bright3D(), pixel_size=0.2)
    assert f"pixel size taken as 0.2 um along y and x (along z it stays {left}), as asked; the file" in caplog.text
    caplog.clear()
    tilenet.segment(image, model=Bright3D(), pixel_size=(1, 0.2, 0.2))
    assert "it stays" not in caplog.text and "pixel size taken as 1 x 0.2 x 0.2 um, as asked" in caplog.text
    assert "level 0 (1 x 0.2 x 0.2 um/px) as stored" in caplog.text


def test_coarser_levels_follow_and_one_of_them_is_read_for_mpp(tmp_path):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(PIXELS, subifds=2, tile=(32, 32))
        for step in (2, 4):
            tiff.write(PIXELS[::step, ::step], subfiletype=1, tile=(32, 32))
    with tilenet.open_image(path, pixel_size=(0.2, 0.3)) as image:
        assert [level.pixel_size for level in image.levels] == [(0.2, 0.3), (0.4, 0.6), (0.8, 1.2)]
        assert image.at_level(2).pixel_size == (0.8, 1.2) and image.at_level(2).shape == (33, 45)
    mask = tilenet.segment(path, tmp_path / "m.zarr", pixel_size="0.25", mpp=0.5, **HOW)
    assert mask.info["record"]["level"] == 1 and mask.info["record"]["factor"] == [[1, 1], [1, 1]]
    assert np.array_equal(mask[...], tilenet.segment(path, level=1, **HOW))


@pytest.mark.parametrize("unit", ["nanometer", None])
def test_the_scale_of_an_ome_zarr_is_replaced_in_micrometres_and_its_levels_keep_their_places(tmp_path, unit):
    levels = [
        (VOLUME[:, ::k, ::k], [500.0, 100.0 * k, 100.0 * k], [1000.0, 50.0 * (k - 1), 300 + 50.0 * (k - 1)])
        for k in (1, 2)
    ]
    units = dict.fromkeys("zyx", unit) if unit else {}
    write_ome_zarr(tmp_path / "i.zarr", levels, axes="zyx", units=units, chunks=(1, 64, 64))
    how = {"model": Bright3D(), "tile": (2, 32, 32), "level": 1}
    mask = tilenet.segment(tmp_path / "i.zarr", tmp_path / "m.zarr", pixel_size=0.2, **how)
    (image,) = ome_of(tmp_path / "m.zarr")["multiscales"]
    scale, moved = image["datasets"][0]["coordinateTransformations"]
    assert [axis.get("unit") for axis in image["axes"]] == [unit, "micrometer", "micrometer"]
    # Pixel 0 of level 1 lies 0.5 px of level 0 along y and 3.5 px along x from the origin, as it did before.
    assert scale["scale"] == pytest.approx([500, 0.4, 0.4])
    assert moved["translation"] == pytest.approx([1000, 0.1, 0.7])
    assert mask.pixel_size == (0.5 if unit else None, 0.4, 0.4)
    # Labels inside the image lie on its pixels, wherever a viewer places these.
    mask = tilenet.segment(tmp_path / "i.zarr", into=tmp_path / "i.zarr", name="bright", pixel_size=0.2, **how)
    (image,) = ome_of(tmp_path / "i.zarr" / "labels" / "bright")["multiscales"]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [500, 200, 200]
    assert mask.pixel_size[1:] == (0.4, 0.4)


def test_a_volume_takes_three_numbers_and_its_objects_are_counted_per_mm3(tmp_path):
    how = {"model": Bright3D(), "axes": "zyx", "objects": True, "threads": 1}
    tilenet.segment(write_ome_tiff(tmp_path / "v.ome.tif", VOLUME, um=(2, 0.5, 0.5)), tmp_path / "a.zarr", **how)
    mask = tilenet.segment(VOLUME, tmp_path / "b.zarr", pixel_size="2,0.5,0.5", **how)
    assert mask.pixel_size == (2, 0.5, 0.5)
    stated, given = (write_table(tmp_path / f"{name}.zarr", tmp_path / f"{name}.csv") for name in "ab")
    assert given.voxel_um3 == 0.5 and given.per_mm3 == stated.per_mm3 != {}
    assert objects_of(tmp_path / "a.csv") == objects_of(tmp_path / "b.csv") != []
    # y and x alone leave the z that was given before.
    with tilenet.open_image(tmp_path / "v.ome.tif", pixel_size=(3, 0.5, 0.5)) as first:
        image = tilenet.open_image(first, pixel_size=0.25)
        assert (image.pixel_size, image.given_pixel_size) == ((3, 0.25, 0.25), (3, 0.25, 0.25))
        assert image.stated_pixel_size == (2, 0.5, 0.5)


def test_a_tiff_states_the_given_size_and_is_recognised_on_resuming(tmp_path, slides):
    out, how = tmp_path / "m.ome.tif", HOW | {"pixel_size": 0.25, "mpp": 0.5}
    mask = tilenet.segment(slides[1], out, **how)
    assert mask.pixel_size == (0.5, 0.5)
    with tifffile.TiffFile(out) as tiff:
        assert 'PhysicalSizeX="0.5"' in tiff.ome_metadata
    assert np.array_equal(tilenet.segment(slides[1], out, resume=True, **how)[...], mask[...])
    with pytest.raises(OutputMismatch, match="pixel_size"):
        tilenet.segment(slides[1], out, resume=True, **how | {"pixel_size": 0.3})


def test_channels_that_a_view_repeats_stay_repeated_under_a_size():
    view = tilenet.open_image(PIXELS, channels=[0, 0, 0])
    image = tilenet.open_image(view, pixel_size=1)
    box = tilenet.Box((-3, 5), (20, 30))
    assert image.n_channels == 3 and np.array_equal(image.read(box), view.read(box))
    stack = tilenet.open_image(VOLUME, axes="cyx", channels=[2, 0], pixel_size=1)
    assert stack.pixel_size == (1, 1)
    assert np.array_equal(stack.read(box), tilenet.open_image(VOLUME, axes="cyx").read(box)[[2, 0]])


def test_a_list_of_a_batch_gives_each_image_its_size(tmp_path, slides, tilenet_command):
    (tmp_path / "list.csv").write_text(
        'image,name,pixel_size\nbare.png,a,0.25\nbare.png,b,"0.5,1"\nstated.ome.tif,c,\n'
    )
    command = ("batch", tmp_path / "list.csv", "-o", tmp_path / "masks", "--csv", "--min-area", "2um2", "--threads", 1)
    code, out, _ = tilenet_command(*command)
    assert code == 0, out
    sizes = {name: tilenet.open_mask(tmp_path / "masks" / f"{name}.zarr").pixel_size for name in "abc"}
    assert sizes == {"a": (0.25, 0.25), "b": (0.5, 1), "c": (0.25, 0.25)}
    areas = {line["slide"]: float(line["mm2"]) for line in objects_of(tmp_path / "masks" / "counts.csv")}
    assert areas["a"] == areas["c"] == pytest.approx(areas["b"] / 8)
    code, out, _ = tilenet_command(*command, "--pixel-size", "0.3")
    assert code == 3 and "pixel_size = not given, and now it is [0.3, 0.3]" in out  # c alone: a list goes before
    code, out, _ = tilenet_command("batch", slides[1], "-o", tmp_path / "n", "--csv", "--min-area", "2um2")
    assert code == 3 and "the size of its pixels is unknown" in out and "--pixel-size" in out


@pytest.mark.parametrize(
    "size",
    [0, -1, float("nan"), float("inf"), 1e-9, 1e9, (), (1, 2, 3, 4), (1, 0), (1, None), "a", "1,", "1;2", [[1, 2]], 1j],
)
def test_sizes_that_mean_nothing_are_refused_in_one_line(size):
    for make in (
        parse_pixel_size,
        lambda given: Options(pixel_size=given),
        lambda given: tilenet.open_image(PIXELS, pixel_size=given),
    ):
        with pytest.raises(SettingsError, match=r"^pixel_size .*: give micrometres per pixel, 1e-06 to 1e\+06: .*$"):
            make(size)


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (0.25, (0.25, 0.25)),
        ([1], (1, 1)),
        (np.float64(0.5), (0.5, 0.5)),
        (np.array([2, 0.5, 0.25]), (2, 0.5, 0.25)),
        (" 0.5, 1 ", (0.5, 1)),
        ((SMALLEST, LARGEST), (SMALLEST, LARGEST)),
    ],
)
def test_sizes_are_numbers_lists_arrays_or_text(size, found):
    assert parse_pixel_size(size) == Options(pixel_size=size).pixel_size == found
    assert all(type(n) is float for n in parse_pixel_size(size))


def test_a_size_along_z_of_an_image_without_z_is_refused_and_the_file_closed(tmp_path, slides, tilenet_command):
    said = "pixel_size 2,0.5,0.5 is for z, y, x, and the image has the axes yx, without z. Give two numbers"
    before = open_files()
    for path in slides:
        with pytest.raises(SettingsError, match=said):
            tilenet.open_image(path, pixel_size=(2, 0.5, 0.5))
    assert open_files() == before
    for command in (["segment", "-o", tmp_path / "o.zarr"], ["plan"], ["tune"], ["info"]):
        code, _, err = tilenet_command(command[0], slides[1], *command[1:], "--pixel-size", "2,0.5,0.5")
        assert (code, err.count("\n"), said in err) == (2, 1, True)
        code, _, err = tilenet_command(command[0], slides[1], *command[1:], "--pixel-size", "-1")
        assert (code, err.count("\n"), "pixel_size -1: give micrometres" in err) == (2, 1, True)
    assert not (tmp_path / "o.zarr").exists()
    (tmp_path / "list.csv").write_text("image,pixel_size\nbare.png,0\n")
    code, _, err = tilenet_command("batch", tmp_path / "list.csv", "-o", tmp_path / "masks")
    assert (code, err.count("\n"), "list.csv: line 2: pixel_size" in err) == (2, 1, True)
