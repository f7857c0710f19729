"""What the axes and channels of an image are taken for: said by the file or the user, never guessed."""

import json
import re
import shlex

import dask.array as da
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from oracles import random_network
from PIL import Image as Picture
from skimage.io import imsave

import tilenet
from tilenet.errors import ImageError, SettingsError

STAINS = [
    "small_fluo/hela_cells_3ch.tif",
    "derived/cardiomyocyte_3ch_pyramid.ome.tif",
    "zarr/cardiomyocyte_3ch_v04.ome.zarr",
]
COLOR = [
    "slides/CMU-1-Small-Region.svs",
    "slides/OS-1-detail_HE.ome.tif",
    "slides/OS-2-vsi_Ki67.ome.tif",
    "slides/hamamatsu_test3_DAPI.ndpi",
    "derived/cmu1_generic_pyramid.tif",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three channels, in a file."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    return tilenet.save_model(random_network(in_channels=3, depth=2, wf=1), path)


def pixels_of(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


@pytest.mark.parametrize("name", STAINS)
def test_three_stains_of_a_real_file_are_not_taken_for_red_green_and_blue(shared_data, model, name, tilenet_command):
    path = shared_data(name)
    with tilenet.open_image(path) as image:
        assert not image.is_color
        first, names = image.channel_names[0], ", ".join(image.channel_names)
    code, out, err = tilenet_command("plan", path, "-m", model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"its 3 channels ({names}; uint16) are not known to be an 8-bit colour picture" in err
    assert f"Choose one stain, such as --channels {first}, or all: --channels 0,1,2" in err
    for channels in ("0", "0,1,2", "2,2,2"):
        assert tilenet_command("plan", path, "-m", model, "--channels", channels)[0] == 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["DAPI", "GFP", "Far red", "CD8"], "DAPI"),
        (["Far red", "DAPI"], "'Far red'"),
        (["488", "DAPI"], "0"),
        (["DAPI, fixed", "GFP", "RFP", "CD8"], "0"),
        (["DAPI", "DAPI", "RFP", "CD8"], "0"),
        (["", "GFP", "RFP", "CD8", "CD3"], "0"),
        (["488", "561", "DAPI"], "0"),
    ],
)
def test_the_channel_that_a_refusal_suggests_is_one_stain_and_is_taken(tmp_path, model, names, said, tilenet_command):
    path, pixels = tmp_path / "s.ome.tif", pixels_of(len(names), 50, 60)
    about = {"axes": "CYX", "Channel": {"Name": names}}
    tifffile.imwrite(path, pixels, ome=True, metadata=about, photometric="minisblack")
    code, _, err = tilenet_command("plan", path, "-m", model)
    assert code == 2 and re.search(rf"such as --channels {said}, (one stain$|or all)", err.strip())
    assert tilenet_command("plan", path, "-m", model, "--channels", *shlex.split(said))[0] == 0


@pytest.mark.parametrize("name", ["inks.tif", "inks.jpg"])
def test_the_inks_of_a_picture_for_printing_are_not_suggested_as_red_green_and_blue(tmp_path, model, name):
    Picture.fromarray(pixels_of(50, 60, 3)).convert("CMYK").save(tmp_path / name)
    said = r"has 4 channels \(cyan, magenta, yellow, black\), the model takes 3. Write the picture as RGB first"
    with pytest.raises(ImageError, match=said):
        tilenet.segment(tmp_path / name, model=model)


@pytest.mark.parametrize("name", COLOR)
def test_the_colour_of_a_real_slide_needs_no_choice(shared_data, model, name, tilenet_command):
    with tilenet.open_image(shared_data(name)) as image:
        assert image.is_color
    assert tilenet_command("plan", shared_data(name), "-m", model)[0] == 0


def written(folder, kind):
    """Write three channels as one kind of file; the file and, where needed, its axes."""
    path = folder / kind
    match kind:
        case "rgb.tif":
            tifffile.imwrite(path, pixels_of(50, 60, 3), photometric="rgb")
        case "planar.tif":
            tifffile.imwrite(path, pixels_of(3, 50, 60), photometric="rgb", planarconfig="separate")
        case "rgb.png":
            imsave(path, pixels_of(50, 60, 3), check_contrast=False)
        case "named.ome.tif":
            about = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
            tifffile.imwrite(path, pixels_of(3, 50, 60), ome=True, metadata=about)
        case "yxc.zarr":
            zarr.create_array(path, data=pixels_of(50, 60, 3), dimension_names=["y", "x", "c"])
        case "rgb16.tif":
            tifffile.imwrite(path, pixels_of(50, 60, 3, dtype=np.uint16), photometric="rgb")
        case "rgb16.png":
            path.write_bytes(imagecodecs.png_encode(pixels_of(50, 60, 3, dtype=np.uint16)))
        case "samples.tif":
            tifffile.imwrite(path, pixels_of(50, 60, 3), photometric="minisblack", planarconfig="contig")
        case "stains.ome.tif":
            about = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "RFP"]}}
            tifffile.imwrite(path, pixels_of(3, 50, 60), ome=True, metadata=about, photometric="minisblack")
        case "cyx.zarr":
            zarr.create_array(path, data=pixels_of(3, 50, 60), dimension_names=["c", "y", "x"])
    return path


@pytest.mark.parametrize("kind", ["rgb.tif", "planar.tif", "rgb.png", "named.ome.tif", "yxc.zarr"])
def test_what_is_stored_as_an_8_bit_colour_picture_is_one(tmp_path, model, kind):
    path, planes_first = written(tmp_path, kind), kind in ("planar.tif", "named.ome.tif")
    pixels = pixels_of(3, 50, 60) if planes_first else np.moveaxis(pixels_of(50, 60, 3), 2, 0)
    with tilenet.open_image(path) as image:
        np.testing.assert_array_equal(image.read(tilenet.Box((0, 0), (50, 60))), pixels)
    found = tilenet.segment(path, model=model, output="logits")
    expected = tilenet.segment(np.moveaxis(pixels, 0, 2), axes="yxc", model=model, output="logits")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["rgb16.tif", "rgb16.png", "samples.tif", "stains.ome.tif", "cyx.zarr"])
def test_what_is_not_must_be_chosen(tmp_path, model, kind):
    path = written(tmp_path, kind)
    with pytest.raises(ImageError, match="are not known to be an 8-bit colour picture"):
        tilenet.segment(path, model=model)
    as_they_are = tilenet.segment(path, model=model, channels=(0, 1, 2), output="logits")
    one = tilenet.segment(path, model=model, channels=(1,), output="logits")
    assert one.shape == as_they_are.shape == (2, 50, 60)
    assert np.array_equal(one, tilenet.segment(path, model=model, channels=(1, 1, 1), output="logits"))
    assert (one != as_they_are).any()


def test_of_arrays_only_8_bit_yxc_is_colour_and_a_network_of_the_callers_own_is_fed_as_it_is(model):
    assert tilenet.segment(pixels_of(50, 60, 3), axes="yxc", model=model).shape == (50, 60)
    for array, axes in ((pixels_of(3, 50, 60), "cyx"), (pixels_of(50, 60, 3, dtype=np.float32), "yxc")):
        with pytest.raises(ImageError, match=r"its 3 channels \(channel 0, channel 1, channel 2; "):
            tilenet.segment(array, axes=axes, model=model)
    own = random_network(in_channels=3, depth=2, wf=1)
    assert tilenet.segment(pixels_of(3, 50, 60), axes="cyx", model=own).shape == (50, 60)


@pytest.fixture
def stained(tmp_path):
    """An image of four channels, two of the same name."""
    about = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "auto", "auto"]}}
    tifffile.imwrite(tmp_path / "stains.ome.tif", pixels_of(4, 50, 60), metadata=about, ome=True)
    return tmp_path / "stains.ome.tif"


def test_channels_are_chosen_by_name_and_recorded_as_numbers(stained, model, tmp_path, tilenet_command):
    args = ("segment", stained, "-m", model, "-o", tmp_path / "m.zarr", "--channels")
    code, _, err = tilenet_command(*args, "GFP, 2,DAPI")
    assert code == 0, err
    mask = tilenet.open_mask(tmp_path / "m.zarr")
    assert mask.info["record"]["channels"] == [1, 2, 0]
    assert tilenet_command(*args, "1,2,DAPI", "--resume")[0] == 0
    code, _, err = tilenet_command(*args, "DAPI,2,GFP", "--resume")
    assert (code, "channels = [1, 2, 0], and now it is [0, 2, 1]" in err) == (2, True)
    expected = tilenet.segment(stained, model=model, channels=(1, 2, 0))
    np.testing.assert_array_equal(np.asarray(mask), expected)
    np.testing.assert_array_equal(tilenet.lazy(stained, model=model, channels=["GFP", 2, "DAPI"]).compute(), expected)
    alone = tilenet.segment(stained, model=model, channels="GFP")
    np.testing.assert_array_equal(alone, tilenet.segment(stained, model=model, channels=[1]))
    swapped = tilenet.segment(stained, model=model, channels="1,2,DAPI")
    np.testing.assert_array_equal(swapped, expected)
    assert tilenet_command("overlay", stained, tmp_path / "m.zarr", "-o", tmp_path / "o.png")[0] == 0


APART = [
    "cyx tiff",
    "planar tiff",
    "raw tiff",
    "czyx zarr 2",
    "cyx zarr 3",
    "shards of two",
    "cyx dask",
    "cyx zarr array",
]
TOGETHER = ["yxc tiff", "yxc zarr"]
FIVE = np.random.default_rng(5).integers(0, 255, (5, 70, 90), np.uint8)


def of_five(folder, kind):
    """Return five channels as an image of a kind, and its axes where it does not say them."""
    path, chunked = folder / kind.replace(" ", "."), {"chunks": (1, 32, 32), "dimension_names": ["c", "y", "x"]}
    match kind:
        case "cyx tiff":
            tifffile.imwrite(path, FIVE, tile=(32, 32), compression="zlib", ome=True, metadata={"axes": "CYX"})
        case "planar tiff":
            tifffile.imwrite(path, FIVE, tile=(32, 32), compression="zlib", planarconfig="separate", photometric="rgb")
        case "raw tiff":
            tifffile.imwrite(path, FIVE, ome=True, metadata={"axes": "CYX"})
        case "yxc tiff":
            tifffile.imwrite(path, FIVE.transpose(1, 2, 0), tile=(32, 32), compression="zlib", photometric="rgb")
        case "czyx zarr 2":
            zarr.create_array(path, data=FIVE[:, None], chunks=(1, 1, 32, 32), zarr_format=2)
            return path, "czyx"
        case "cyx zarr 3":
            zarr.create_array(path, data=FIVE, **chunked)
        case "shards of two":
            zarr.create_array(path, data=FIVE, shards=(2, 64, 64), **chunked)
        case "yxc zarr":
            zarr.create_array(path, data=FIVE.transpose(1, 2, 0), chunks=(32, 32, 5), dimension_names=["y", "x", "c"])
        case "cyx dask":
            return da.from_array(FIVE, chunks=(1, 32, 32)), "cyx"
        case "cyx zarr array":
            return zarr.create_array({}, data=FIVE, **chunked), "cyx"
    return path, None


@pytest.mark.parametrize("kind", APART + TOGETHER)
@pytest.mark.parametrize("channels", [[0], [3, 1], [4, 3, 0, 0], [2, 3, 4], [1, 0, 2, 3, 4]], ids=str)
def test_channels_are_those_chosen_in_their_order(tmp_path, kind, channels):
    image, axes = of_five(tmp_path, kind)
    box = tilenet.Box((-20, 31), (40, 99))
    with tilenet.open_image(image, axes=axes) as whole, tilenet.open_image(image, axes=axes, channels=channels) as some:
        shift = tilenet.Box((0,) * (len(whole.box_shape) - 2) + box.start, (1,) * (len(whole.box_shape) - 2) + box.stop)
        expected = whole.read(shift)[channels]
        np.testing.assert_array_equal(some.read(shift), expected)
    plain = np.pad(FIVE, ((0, 0), (20, 0), (0, 9)), mode="reflect")[:, :60, 31:]
    np.testing.assert_array_equal(expected.reshape(len(channels), 60, 68), plain[channels])


@pytest.mark.parametrize("kind", ["cyx tiff", "planar tiff", "cyx zarr 3"])
def test_pieces_of_other_channels_are_not_decoded_and_their_damage_spoils_nothing(tmp_path, kind):
    image, _ = of_five(tmp_path, kind)
    damage_channel_4(image)
    with tilenet.open_image(image) as whole:
        some = whole.with_channels([1, 3])
        np.testing.assert_array_equal(some.read_inside(tilenet.Box((0, 0), (70, 90))), FIVE[[1, 3]])
        assert whole.n_decoded == 2 * 9
        with pytest.raises(ImageError, match="damaged"):
            whole.read_inside(tilenet.Box((0, 0), (70, 90)))


def damage_channel_4(image):
    """Spoil the first piece of the last of five channels."""
    if image.is_dir():
        path = image / "c" / "4" / "0" / "0"
        path.write_bytes(path.read_bytes()[:-9])
        return
    with tifffile.TiffFile(image) as file:
        pages = file.series[0].pages
        offset = pages[-1].dataoffsets[0] if len(pages) == 5 else pages[0].dataoffsets[4 * 9]
    content = bytearray(image.read_bytes())
    content[offset : offset + 8] = b"\xff" * 8
    image.write_bytes(content)


def test_one_channel_is_opened_by_its_number_or_name(stained):
    with tilenet.open_image(stained) as image:
        second = image.read(tilenet.Box((0, 0), (5, 5)))[1:2]
    for one in (1, "GFP", [1]):
        with tilenet.open_image(stained, channels=one) as image:
            np.testing.assert_array_equal(image.read(tilenet.Box((0, 0), (5, 5))), second)


def test_numbers_of_numpy_are_channels_and_fractions_are_not(stained):
    for number in (np.int64(1), np.array([1])):
        with tilenet.open_image(stained, channels=number) as image, tilenet.open_image(stained, channels=1) as one:
            assert image.channel_names == one.channel_names
    for wrong in (0.9, [0.9], [None]):
        with pytest.raises(SettingsError, match=r"channels .*: neither numbers nor names"):
            tilenet.open_image(stained, channels=wrong)


def test_a_list_of_a_batch_names_channels(stained, model, tmp_path):
    (tmp_path / "list.csv").write_text(f"image,name,channels\n{stained},a,DAPI\n{stained},b,Cy5\n")
    first, second = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks", model=model)
    assert (first.status, second.status) == ("done", "failed")
    assert tilenet.open_mask(tmp_path / "masks/a.zarr").info["record"]["channels"] == [0]
    assert "has no channel 'Cy5' (DAPI, GFP, auto)" in second.error


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ("dap", "has no channel 'dap' (DAPI, GFP, auto). Choose by number, 0 to 3"),
        ("auto", "has 2 channels 'auto' (2 and 3). Choose by number"),
        ("DAPI,,GFP", "are not numbers or names with commas between them"),
        ("4", "has channels 0 to 3, not 4"),
    ],
)
def test_channels_that_are_unknown_or_ambiguous_are_refused_with_the_names(
    stained, model, tilenet_command, channels, words
):
    for command in ("plan", "tune"):
        code, out, err = tilenet_command(command, stained, "-m", model, "--channels", channels)
        assert (code, out, err.count("\n"), words in err) == (2, "", 1, True), err


def test_an_image_without_names_says_so(model):
    with pytest.raises(ImageError, match=r"has no channel 'DAPI' \(no named channels\). Choose by number, 0 to 2"):
        tilenet.segment(pixels_of(3, 50, 60), axes="cyx", model=model, channels="DAPI")


@pytest.mark.parametrize(("name", "axes"), [
    ("volumes/plant_nuclei_1135_image.tif", "zyx"),
    ("volumes/xyzc_16bit__dna_conf_wf.tif", "zcyx"),
    ("small_fluo/nup_nuclei_2ch_image.tif", "cyx"),
])  # fmt: skip
def test_a_stack_that_lost_its_metadata_asks_for_its_axes(shared_data, tmp_path, tilenet_command, name, axes):
    with tilenet.open_image(shared_data(name)) as told:
        assert told.axes == axes
        box = tilenet.Box((0,) * len(told.box_shape), told.box_shape)
        tifffile.imwrite(tmp_path / "bare.tif", tifffile.imread(shared_data(name)), metadata=None)
        code, out, err = tilenet_command("info", tmp_path / "bare.tif")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "nothing says which axis is which. Give one letter of tczyx for each of its" in err
        if len(axes) == 3:  # pages of four axes have lost their shape too
            with tilenet.open_image(tmp_path / "bare.tif", axes=axes) as said:
                np.testing.assert_array_equal(said.read(box), told.read(box))


@pytest.mark.parametrize(("name", "words"), [
    ("slides/hamamatsu_test3_DAPI.ndpi", "level 0 (0.2282 um/px) as stored: nuclei asks for no pixel size"),
    ("volumes/plant_nuclei_1135_image.tif", "one channel, for every input, zyx plane by plane"),
    ("small_fluo/hela_cells_3ch.tif", "nuclei: refused: its 3 channels (red, green, blue; uint16)"),
])  # fmt: skip
def test_info_prints_what_was_understood(shared_data, tilenet_command, name, words):
    code, text, _ = tilenet_command("info", shared_data(name), "--json")
    found = json.loads(text)
    with tilenet.open_image(shared_data(name)) as image:
        assert code == 0
        assert found["axes"] == image.axes
        assert found["dtype"] == str(image.dtype)
        assert found["channels"] == list(image.channel_names)
        assert found["colour"] == image.is_color
        assert found["levels"] == [list(level.shape) for level in image.levels]
        assert found["pixel_sizes_um"] == [list(level.pixel_size) for level in image.levels]
        assert words in found["segment"]


def test_convert_puts_a_pixel_size_on_the_card_and_info_says_what_follows(tmp_path, model, tilenet_command):
    out, about = tmp_path / "cells.safetensors", {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    assert tilenet_command("convert", model, "-o", out, "--pixel-size", "0.5")[0] == 0
    tifffile.imwrite(tmp_path / "s.ome.tif", pixels_of(90, 90), metadata=about, ome=True)
    _, text, _ = tilenet_command("info", tmp_path / "s.ome.tif", "-m", out)
    assert "level 0 (0.25 um/px) resampled: averaged over 2 px, for the 0.5 um/px that" in text
