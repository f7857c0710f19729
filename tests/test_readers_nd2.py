"""ND2: files that tests write, as no real ones with a free licence were at hand."""

import os
import pickle
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import tifffile
from contents import whole
from oracles import boxes, mirrored
from store_helpers import tree

from tilenet.errors import ImageError
from tilenet.geometry import Box
from tilenet.readers import open_image

nd2 = pytest.importorskip("nd2", reason="the extra nd2 is not installed")
from nd2_files import Nd2, frames_of, loop, stack  # noqa: E402

# What is read


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("loops", "n_channels", "axes"),
    [("", 1, "yx"), ("", 3, "cyx"), ("z", 2, "zcyx"), ("nz", 1, "tzyx"), ("t", 2, "tcyx")],
)
def test_an_nd2_keeps_its_axes_channels_and_sizes(tmp_path, loops, n_channels, axes, dtype, version, zipped):
    counts, names = {"n": 2, "t": 4, "z": 3}, [f"dye {c}" for c in range(n_channels)]
    pixels = frames_of((*(counts[a] for a in loops), 30, 41, n_channels, 1), dtype)
    what = Nd2(pixels, [loop(a, counts[a]) for a in loops], names=names, version=version, zipped=zipped)
    with open_image(what.write(tmp_path / "a.nd2")) as image:
        assert (image.axes, image.dtype, image.n_missing, len(image.levels)) == (axes, dtype, 0, 1)
        assert image.pixel_size == tuple({"t": None, "z": 2.0, "y": 0.25, "x": 0.25}[a] for a in image.box_axes)
        assert image.channel_names == tuple(names)
        expected = np.moveaxis(pixels[..., 0], -1, 0)
        np.testing.assert_array_equal(whole(image), expected)
        for box in boxes(image.box_shape, seed=3, count=8):
            np.testing.assert_array_equal(image.read(box), mirrored(expected, box))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_the_files_that_tests_write_are_what_the_package_nd2_reads(tmp_path, version, zipped):
    pixels, what = stack(version=version, zipped=zipped, pad=2)
    with nd2.ND2File(what.write(tmp_path / "a.nd2")) as file:
        assert dict(file.sizes) == {"T": 2, "Z": 3, "C": 2, "Y": 20, "X": 31}
        np.testing.assert_array_equal(file.asarray(), np.moveaxis(pixels[..., 0], -1, 2))


@pytest.mark.parametrize("zipped", [False, True])
def test_rows_may_be_padded(tmp_path, zipped):
    pixels, what = stack(pad=2, zipped=zipped)
    if zipped:  # the last row needs no padding
        what.frames[4] = what.frames[4][:8] + zlib.compress(zlib.decompress(what.frames[4][8:])[:-2])
    with open_image(what.write(tmp_path / "a.nd2")) as image:
        np.testing.assert_array_equal(whole(image), np.moveaxis(pixels[..., 0], -1, 0))


@pytest.mark.parametrize("zipped", [False, True])
def test_colours_are_stored_blue_first_and_read_red_first(tmp_path, zipped):
    colour = frames_of((3, 20, 31, 1, 3), np.uint8)
    what = Nd2(colour[..., ::-1], [loop("z", 3)], names=["Brightfield"], zipped=zipped, pad=3)
    with open_image(what.write(tmp_path / "a.nd2")) as image:
        assert (image.axes, image.shape, image.is_color) == ("zyxc", (3, 20, 31, 3), True)
        assert image.channel_names == ("red", "green", "blue")
        np.testing.assert_array_equal(whole(image), np.moveaxis(colour[..., 0, :], -1, 0))
        np.testing.assert_array_equal(whole(image.with_channels([2]))[0], colour[..., 0, 2])


def test_several_channels_in_colour_are_named_by_channel_and_colour(tmp_path):
    pixels = frames_of((20, 31, 2, 3), np.uint8)
    with open_image(Nd2(pixels, names=["BF", "TRITC"]).write(tmp_path / "a.nd2")) as image:
        assert image.shape == (6, 20, 31)
        assert image.channel_names == ("BF red", "BF green", "BF blue", "TRITC red", "TRITC green", "TRITC blue")
        expected = np.moveaxis(pixels[..., ::-1].reshape(20, 31, 6), -1, 0)
        np.testing.assert_array_equal(whole(image), expected)


def test_a_pixel_size_that_is_not_known_is_not_1(tmp_path):
    pixels = frames_of((3, 20, 31, 1, 1))
    with open_image(Nd2(pixels, [loop("z", 3, step=0.0)], um=None).write(tmp_path / "a.nd2")) as image:
        assert image.pixel_size == (None, None, None)
    with nd2.ND2File(tmp_path / "a.nd2") as file:
        assert file.voxel_size() == (1, 1, 1)
    lines = Nd2(pixels, [loop("z", 3)])
    lines.metadata["ePictureYAxis"] = 2  # each row is the same line, some time later
    with open_image(lines.write(tmp_path / "b.nd2")) as image:
        assert image.pixel_size == (2.0, None, 0.25)


@pytest.mark.parametrize("version", [2, 3])
def test_channels_without_a_probe_such_as_brightfield_keep_names_and_sizes(tmp_path, version):
    pixels = frames_of((3, 20, 31, 2, 1))
    what = Nd2(pixels, [loop("z", 3)], names=["Brightfield", "DAPI"], version=version)
    del what.metadata["sPicturePlanes"]["sPlaneNew"]["a0"]["pFluorescentProbe"]
    path = what.write(tmp_path / "a.nd2")
    with nd2.ND2File(path) as file, pytest.raises(UnboundLocalError):
        assert file.metadata
    with open_image(path) as image:
        assert (image.channel_names, image.pixel_size) == (("Brightfield", "DAPI"), (2.0, 0.25, 0.25))
        np.testing.assert_array_equal(whole(image), np.moveaxis(pixels[..., 0], -1, 0))


def test_metadata_may_be_packed(tmp_path, monkeypatch):
    pixels, what = stack()
    name, parts = "ImageMetadataSeqLV|0!", what.parts()
    parts[name] = b"L" + bytes(11) + zlib.compress(parts[name])
    monkeypatch.setattr(what, "parts", lambda: parts)
    with open_image(what.write(tmp_path / "a.nd2")) as image:
        assert image.channel_names == ("DAPI", "GFP")
        np.testing.assert_array_equal(whole(image), np.moveaxis(pixels[..., 0], -1, 0))


@pytest.mark.parametrize("loops", [[], [loop("t", 1)]])
def test_frames_that_no_loop_counts_need_axes(tmp_path, loops):
    pixels = frames_of((5, 20, 31, 1, 1))
    path = Nd2(pixels, loops).write(tmp_path / "a.nd2")
    with pytest.raises(ImageError, match=r"a\.nd2: has the shape \(5, 20, 31\), and nothing says which axis is which"):
        open_image(path)
    with open_image(path, axes="zyx") as image:
        np.testing.assert_array_equal(whole(image)[0], pixels[..., 0, 0])


def test_an_unfinished_last_step_of_the_outermost_loop_is_left_out_and_told_of(tmp_path, tilenet_command):
    pixels, what = stack()
    what.frames |= {6: what.frames[5], 7: what.frames[5]}
    with open_image(what.write(tmp_path / "a.nd2")) as image:
        assert (image.shape, image.n_missing) == ((2, 3, 2, 20, 31), 0)
        np.testing.assert_array_equal(whole(image), np.moveaxis(pixels[..., 0], -1, 0))
    _, out, _ = tilenet_command("info", tmp_path / "a.nd2")
    assert "without 2 frames that its loops do not count" in out
    what.frames |= dict.fromkeys(range(8, 12), what.frames[0])
    with pytest.raises(
        ImageError, match=r"a\.nd2: has 12 frames, and its loops count 6: nd2 does not find all of its l"
    ):
        open_image(what.write(tmp_path / "a.nd2"))


# Positions


@pytest.mark.parametrize("order", ["tpz", "ptz", "zpt", "p", "zp"])
def test_a_position_is_chosen_by_its_number(tmp_path, order):
    counts, names = {"t": 2, "p": 3, "z": 4}, ["A1", "A2", ""]
    pixels = frames_of((*(counts[a] for a in order), 20, 31, 1, 1))
    loops = [loop(a, counts[a], names=names) for a in order]
    path = Nd2(pixels, loops).write(tmp_path / "plate.nd2")
    identities = []
    for number in range(3):
        with open_image(path / str(number)) as image:
            assert image.axes == "".join(a for a in "tz" if a in order) + "yx"
            chosen = np.moveaxis(pixels[..., 0, 0], order.index("p"), 0)[number]
            left = order.replace("p", "")
            expected = np.transpose(chosen, [left.index(a) for a in "tz" if a in left] + [-2, -1])
            np.testing.assert_array_equal(whole(image)[0], expected)
            identities.append(image.identity())
    assert len({str(each) for each in identities}) == 3
    says = rf"plate\.nd2: holds 3 positions: 0 \(A1\), 1 \(A2\), 2\. Give one by its number: {path}/0"
    with pytest.raises(ImageError, match=says):
        open_image(path)
    for wrong in ("3", "-1", "A1", "0/0"):
        with pytest.raises(ImageError, match=rf"plate\.nd2/{wrong}: is none of the 3 positions: 0 \(A1\), 1"):
            open_image(path / wrong)


def test_the_only_position_needs_no_number_and_many_are_not_all_listed(tmp_path):
    pixels = frames_of((1, 20, 31, 1, 1))
    path = Nd2(pixels, [loop("p", 1)]).write(tmp_path / "a.nd2")
    for name in (path, path / "0"):
        with open_image(name) as image:
            np.testing.assert_array_equal(whole(image)[0], pixels[0, ..., 0, 0])
    many = Nd2(frames_of((20, 20, 31, 1, 1)), [loop("p", 20, names=["a\nb"] * 20)]).write(tmp_path / "b.nd2")
    with pytest.raises(ImageError, match=r"holds 20 positions: 0 \(a b\), .*7 \(a b\), \.\.\.\. Give one"):
        open_image(many)


@pytest.mark.parametrize("version", [2, 3])
def test_positions_and_periods_that_were_turned_off_have_no_frames(tmp_path, version):
    pixels = frames_of((5, 2, 20, 31, 1, 1))  # t, p, y, x, c, s
    times, places = loop("n", 2), loop("p", 3, names=["A1", "A2", "A3"])
    one = times["uLoopPars"]["pPeriod"]["i0000000000"]
    periods = {f"i{k:010}": one | {"uiCount": count} for k, count in enumerate((2, 4, 3))}
    on = {f"i{k:010}": k != 1 for k in range(3)}
    times["uLoopPars"] |= {"pPeriod": periods, "pPeriodValid": on}
    path = Nd2(pixels, [times, places | {"pItemValid": on}], version=version).write(tmp_path / "a.nd2")
    for number in range(2):
        with open_image(path / str(number)) as image:
            assert image.axes == "tyx"
            np.testing.assert_array_equal(whole(image)[0], pixels[:, number, ..., 0, 0])
    with pytest.raises(ImageError, match=r"holds 2 positions: 0 \(A1\), 1 \(A3\)\."):
        open_image(path)


# What is read of the file, and by whom


def test_only_what_is_asked_for_is_read_of_frames_that_are_not_compressed(tmp_path, monkeypatch):
    pixels, what = stack()
    read, before = [], os.preadv
    with open_image(what.write(tmp_path / "a.nd2")) as image:
        monkeypatch.setattr(os, "preadv", lambda file, to, at: read.append(len(to[0])) or before(file, to, at))
        np.testing.assert_array_equal(
            image.read(Box((1, 2, 5, 7), (2, 3, 9, 11)))[1, 0, 0], pixels[1, 2, 5:9, 7:11, 1, 0]
        )
    assert sum(read[1:]) == 4 * 4 * 2 * 2


def test_threads_decode_each_compressed_frame_once_and_channels_need_it_too(tmp_path):
    pixels, what = stack(zipped=True)
    expected = np.moveaxis(pixels[..., 0], -1, 0)
    with open_image(what.write(tmp_path / "a.nd2")) as image, ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(
            image.with_channels([1]).read(Box((1, 2, 0, 0), (2, 3, 9, 9)))[0, 0, 0], expected[1, 1, 2, :9, :9]
        )
        assert image.n_decoded == 1
        for found in pool.map(lambda _: whole(image), range(16)):
            np.testing.assert_array_equal(found, expected)
        assert image.n_decoded == 6


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_other_processes_read_the_same_position(tmp_path, monkeypatch, how):
    pixels = frames_of((2, 20, 31, 1, 1))
    Nd2(pixels, [loop("p", 2)]).write(tmp_path / "a.nd2")
    monkeypatch.chdir(tmp_path)
    with open_image("a.nd2/1") as image, ProcessPoolExecutor(2, mp_context=get_context(how)) as pool:
        monkeypatch.chdir("/")
        for found in pool.map(whole, [image] * 3):
            np.testing.assert_array_equal(found[0], pixels[1, ..., 0, 0])
        with pickle.loads(pickle.dumps(image)) as again:
            assert again.identity() == image.identity()
    with pytest.raises(ImageError, match=r"a\.nd2/1: is closed\. Open it again"):
        whole(image)


def test_another_recording_of_the_same_size_is_another_image(tmp_path):
    _, what = stack()
    one = open_image(what.write(tmp_path / "a.nd2")).identity()
    what.metadata["dTimeAbsolute"] += 1
    two = open_image(what.write(tmp_path / "a.nd2")).identity()
    assert (one["bytes"], one["metadata_sha256"] == two["metadata_sha256"]) == (two["bytes"], False)


# What is not read


@pytest.mark.parametrize("zipped", [False, True])
def test_a_frame_that_is_missing_is_refused_until_it_may_be_filled(tmp_path, zipped):
    pixels = frames_of((2, 3, 20, 31, 1, 1))
    what = Nd2(pixels, [loop("p", 2), loop("z", 3)], zipped=zipped)
    del what.frames[1]
    what.moved["ImageDataSeq|2!"] = 2**40
    path = what.write(tmp_path / "a.nd2")
    with nd2.ND2File(path) as file:
        if not zipped:
            assert not file.read_frame(1).any()
            assert not file.read_frame(2).any()
    with pytest.raises(ImageError, match=r"2 of its 3 frames are missing.*--missing fill"):
        open_image(path / "0")
    with open_image(path / "0", missing="fill") as image:
        assert image.n_missing == 2
        np.testing.assert_array_equal(
            whole(image)[0], np.where(np.arange(3)[:, None, None] == 0, pixels[0, ..., 0, 0], 0)
        )
    with open_image(path / "1") as image:
        np.testing.assert_array_equal(whole(image)[0], pixels[1, ..., 0, 0])


def test_an_nd2_in_jpeg_2000_is_refused(tmp_path):
    (tmp_path / "old.nd2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(600))
    with pytest.raises(
        ImageError, match=r"old\.nd2: is JPEG 2000, as ND2 files of old versions are\. Convert it to OME-T"
    ):
        open_image(tmp_path / "old.nd2")


def test_a_version_of_the_package_that_hides_where_frames_are_is_refused(tmp_path, monkeypatch):
    _, what = stack()
    path = what.write(tmp_path / "a.nd2")
    monkeypatch.setattr("nd2._readers._modern.modern_reader.ModernReader.chunkmap", None)
    with pytest.raises(ImageError, match=r"a\.nd2: nd2 .* does not say where the frames are\. Install another version"):
        open_image(path)


# Masks


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["small_fluo/nup_nuclei_2ch_image.tif", "slides/OS-1-detail_HE.ome.tif"])
def test_an_nd2_gives_the_same_mask_as_the_same_pixels_in_an_ome_tiff(
    shared_data, tmp_path, tilenet_command, name, zipped
):
    pixels = tifffile.imread(shared_data(name))
    in_colour = pixels.shape[-1] == 3
    pixels = pixels[100:400, 200:520] if in_colour else pixels[:, 50:350, 60:380]
    about = {"axes": "YXS" if in_colour else "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    kind = "rgb" if in_colour else "minisblack"
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata=about, photometric=kind, tile=(64, 64))
    frame = pixels[:, :, None, ::-1] if in_colour else np.moveaxis(pixels, 0, -1)[..., None]
    names = ["Brightfield"] if in_colour else ["nup", "nuclei"]
    Nd2(frame, names=names, pad=2, zipped=zipped).write(tmp_path / "a.nd2")
    masks = []
    for source in ("a.ome.tif", "a.nd2"):
        chosen = [] if in_colour else ["--channels", "1"]
        out = tmp_path / f"{source}.zarr"
        code, _, err = tilenet_command("segment", tmp_path / source, "--out", out, "--threads", 1, *chosen)
        assert code == 0, err
        masks.append({place: data for place, data in tree(out).items() if place.startswith("0/")})
        assert 0 < (open_image(out).read(Box((0, 0), (300, 320))) > 0).mean() < 1
    assert masks[0] == masks[1]
