"""Pictures and polygons replace nothing but pictures and polygons of tilenet."""

import json

import numpy as np
import pytest
from ome_images import write_placed
from PIL import Image as Pillow
from stub import Bright

import tilenet
from tilenet.errors import OutputExists
from tilenet.export.geojson import write_geojson
from tilenet.export.table import write_table
from tilenet.pictures.files import check_picture_place, is_picture_of_ours, save


@pytest.fixture
def folder(tmp_path):
    """A picture that was segmented, its mask, and a small model."""
    pixels = np.zeros((90, 120), np.uint8)
    pixels[20:50, 30:70] = 250
    Pillow.fromarray(pixels).save(tmp_path / "image.png")
    tilenet.segment(tmp_path / "image.png", tmp_path / "mask.zarr", model=Bright(), tile=64)
    tilenet.save_model(tilenet.UNet(depth=2, wf=1), tmp_path / "small.safetensors")
    return tmp_path


def contents(folder):
    """Return every file and its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder, tilenet_command, *command):
    """Return the one line with which a command is refused that changes nothing."""
    before = contents(folder)
    code, _, error = tilenet_command(*command)
    assert (code, error.count("\n")) == (2, 1)
    assert contents(folder) == before
    return error


def strangers(folder):
    """Yield files that tilenet did not write, or wrote as something else."""
    Pillow.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "other.png")
    yield folder / "other.png"
    (folder / "text.jpg").write_text("tilenet overlay")
    yield folder / "text.jpg"
    marked = Pillow.Exif()
    marked[0x0131] = "somebody else"
    Pillow.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "theirs.png", exif=marked)
    yield folder / "theirs.png"
    tilenet.write_tiff(folder / "mask.zarr", folder / "mask.ome.tif").close()
    yield folder / "mask.ome.tif"
    (folder / "folder.png").mkdir()
    yield folder / "folder.png"


def test_a_picture_of_somebody_else_is_not_replaced(folder, tilenet_command):
    for out in strangers(folder):
        command = ("overlay", folder / "image.png", folder / "mask.zarr", "--out", out, "--overwrite")
        assert "is not a picture that tilenet wrote" in refused(folder, tilenet_command, *command)


def test_a_link_is_not_replaced_and_what_it_links_to_is_named(folder, tilenet_command):
    image, mask = folder / "image.png", folder / "mask.zarr"
    for name in ("o.png", "gone.png", "o.ome.tif"):
        (folder / f"link-{name}").symlink_to(folder / name)
    assert tilenet_command("overlay", image, mask, "--out", folder / "o.png")[0] == 0
    tilenet.write_tiff(mask, folder / "o.ome.tif").close()
    for name, command in (
        ("o.png", ("overlay", image, mask, "--overwrite", "--out")),
        ("gone.png", ("overlay", image, mask, "--out")),
        ("o.ome.tif", ("export", mask, "--overwrite", "--tiff")),
        ("o.ome.tif", ("segment", image, "--resume", "--out")),
    ):
        said = refused(folder, tilenet_command, *command, folder / f"link-{name}")
        assert f"is a symbolic link, which is not replaced. Give {(folder / name).resolve()} instead" in said


def test_neither_the_image_nor_what_is_in_the_mask_becomes_a_picture(folder, tilenet_command):
    image, mask = folder / "image.png", folder / "mask.zarr"
    command = ("overlay", image, mask, "--overwrite", "--out")
    assert "is the image" in refused(folder, tilenet_command, *command, image)
    assert "inside it" in refused(folder, tilenet_command, *command, mask / "new.png")
    # A picture that tilenet drew may be an image too, and is one then.
    assert tilenet_command("overlay", image, mask, "--out", folder / "drawn.png")[0] == 0
    tilenet.segment(folder / "drawn.png", folder / "of_drawn.zarr", model=Bright(), channels=[0], tile=64)
    command = ("overlay", folder / "drawn.png", folder / "of_drawn.zarr", "--overwrite", "--out")
    assert "is the image" in refused(folder, tilenet_command, *command, folder / "drawn.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_picture_of_ours_is_replaced_if_that_is_said(folder, tilenet_command, suffix):
    out = folder / f"o{suffix}"
    command = ("overlay", folder / "image.png", folder / "mask.zarr", "--out", out)
    assert tilenet_command(*command)[0] == 0
    before = out.read_bytes()
    assert is_picture_of_ours(out)
    assert "--overwrite" in refused(folder, tilenet_command, *command)
    assert tilenet_command(*command, "--fill", "--overwrite")[0] == 0
    assert out.read_bytes() != before


def test_a_picture_is_not_put_where_somebody_put_a_file_in_the_meantime(tmp_path):
    out = tmp_path / "o.png"
    check_picture_place(out, replace=False)
    out.write_text("mine")
    with pytest.raises(OutputExists, match="tilenet wrote"):
        save(np.zeros((5, 5, 3), np.uint8), out)
    assert (out.read_text(), len(list(tmp_path.iterdir()))) == ("mine", 1)


def test_an_overview_replaces_neither_the_image_nor_a_picture_of_somebody_else(folder, tilenet_command):
    rest = ("-m", folder / "small.safetensors", "--overview")
    (folder / "n.overview.png").write_text("mine")
    command = ("segment", folder / "image.png", "--out", folder / "n.zarr", *rest)
    for more in ((), ("--overwrite",), ("--resume",)):
        assert "n.overview.png: exists, and is not a picture" in refused(folder, tilenet_command, *command, *more)
    (folder / "image.png").rename(folder / "m.overview.png")
    command = ("segment", folder / "m.overview.png", "--out", folder / "m.zarr", *rest, "--overwrite")
    assert "is the image" in refused(folder, tilenet_command, *command)


def test_a_batch_computes_nothing_whose_overview_would_replace_a_picture_of_somebody_else(folder, tilenet_command):
    (folder / "masks").mkdir()
    (folder / "masks" / "image.overview.png").write_text("mine")
    command = ("batch", folder / "image.png", "-o", folder / "masks", "-m", folder / "small.safetensors")
    code, out, _ = tilenet_command(*command, "--overview")
    assert (code, "is not a picture that tilenet wrote" in out) == (3, True)
    assert (folder / "masks" / "image.overview.png").read_text() == "mine"
    assert not (folder / "masks" / "image.zarr").exists()


def test_a_file_that_is_no_geojson_of_ours_is_not_replaced(folder, tilenet_command):
    command = ("export", folder / "mask.zarr", "--overwrite", "--geojson")
    (folder / "qupath.geojson").write_text('{"type":"FeatureCollection","features":[{"type":"Feature"}]}')
    (folder / "empty.geojson").touch()
    for name in ("qupath.geojson", "empty.geojson", "small.safetensors"):
        assert "is not a GeoJSON that tilenet wrote" in refused(folder, tilenet_command, *command, folder / name)
    assert "is the image" in refused(folder, tilenet_command, *command, folder / "image.png")
    assert "inside it" in refused(folder, tilenet_command, *command, folder / "mask.zarr" / "zarr.json")
    assert "inside it" in refused(folder, tilenet_command, *command, folder / "mask.zarr" / "new.geojson")
    command = ("export", folder / "mask.zarr", "--tiff", folder / "mask.zarr" / "new.ome.tif")
    assert "inside it" in refused(folder, tilenet_command, *command)


def test_nothing_is_put_into_another_mask(folder, tilenet_command):
    image, mask, other = folder / "image.png", folder / "mask.zarr", folder / "other.zarr"
    tilenet.segment(image, other, model=Bright(), tile=64)
    for command in (
        ("export", mask, "--csv", other / "t.csv"),
        ("export", mask, "--csv", folder / "t.csv", "--counts", other / "t.csv"),
        ("export", mask, "--geojson", other / "t.geojson"),
        ("export", mask, "--tiff", other / "t.ome.tif"),
        ("overlay", image, mask, "--out", other / "o.png"),
        ("convert", folder / "small.safetensors", "--out", other / "m.safetensors"),
        ("sample", other / "s.tif"),
    ):
        assert f"would be inside the mask {other}" in refused(folder, tilenet_command, *command)
    assert tilenet.verify(other, windows=0).ok


def test_a_geojson_of_ours_is_known_by_a_member_that_readers_pass_over(folder, tilenet_command):
    out = folder / "m.geojson"
    for more, rule in (((), []), (("--overwrite", "--as", "annotation"), ["rule"])):
        assert tilenet_command("export", folder / "mask.zarr", "--geojson", out, *more)[0] == 0
        collection = json.loads(out.read_bytes())
        assert list(collection) == ["type", "tilenet", *rule, "features"]
        assert collection["tilenet"] == tilenet.__version__
    assert collection["features"][0]["properties"]["objectType"] == "annotation"


def test_nothing_is_put_into_an_image_that_is_a_folder(tmp_path):
    image = write_placed(tmp_path / "image.zarr", "0.5")
    mask = tilenet.segment(image, tmp_path / "m.zarr", model=Bright(), channels=[0], tile=64)
    with pytest.raises(OutputExists, match="inside it"):
        write_geojson(mask.path, image / "m.geojson")
    with pytest.raises(OutputExists, match=r"c\.csv: is the image .* or inside it"):
        write_table(mask.path, tmp_path / "m.csv", counts=image / "c.csv")
    assert not (tmp_path / "m.csv").exists() and not (image / "c.csv").exists()
    with pytest.raises(OutputExists, match="inside it"):
        check_picture_place(image / "m.png", replace=True, image=image)
    check_picture_place(tmp_path / "m.png", replace=False, image=image, mask=mask.path)


def test_a_folder_that_is_not_there_is_made_for_a_picture(folder, tilenet_command):
    out = folder / "not" / "there" / "o.png"
    assert tilenet_command("overlay", folder / "image.png", folder / "mask.zarr", "--out", out)[0] == 0
    assert [path.name for path in out.parent.iterdir()] == ["o.png"]
    blocked = folder / "small.safetensors" / "o.png"
    code, _, error = tilenet_command("overlay", folder / "image.png", folder / "mask.zarr", "--out", blocked)
    assert (code, error.count("\n"), "--resume" in error) == (4, 1, False)
