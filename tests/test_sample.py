"""The sample slide that `tilenet sample` writes."""

import numpy as np
import pytest
import tifffile

import tilenet
from tilenet.sample import write_sample


def test_the_sample_slide_is_tiled_pyramidal_and_never_resized(tmp_path, tilenet_command):
    from skimage.data import immunohistochemistry

    assert tilenet_command("sample", tmp_path / "s.tif")[0] == 0
    with tilenet.open_image(tmp_path / "s.tif") as image:
        assert [level.shape for level in image.levels] == [(n, n, 3) for n in (4096, 2048, 1024, 512)]
        corner = image.read(tilenet.Box((0, 0), (512, 512)))
        turned = image.read(tilenet.Box((511, 0), (1023, 512)))
    photo = np.moveaxis(immunohistochemistry(), -1, 0)
    assert np.array_equal(corner, photo)
    assert np.array_equal(turned, photo[:, ::-1])
    assert tilenet_command("sample", tmp_path / "s.tif")[0] == 2


@pytest.mark.parametrize("name", ["slide.png", "slide", "slide.zarr"])
def test_a_sample_of_a_name_that_is_no_tiff_s_is_refused(tmp_path, tilenet_command, name):
    code, _, err = tilenet_command("sample", tmp_path / name)
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert f"{name}: the sample is a TIFF. Give a name in .tif or .tiff\n" in err


def test_a_sample_that_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    with pytest.raises(tilenet.EnvironmentFault, match="no space left"):
        write_sample(tmp_path / "slide.tif")
    assert list(tmp_path.iterdir()) == []
