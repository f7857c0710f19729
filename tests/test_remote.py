"""Zarr images behind a web server: the same pixels and masks as from a disk, and few requests."""

import pickle
import ssl
from itertools import product

import numpy as np
import pytest
import zarr
from contents import whole
from ome_images import CHANNELS, write_channels
from remote_images import a_server, milliseconds, plain_zarr, same_masks, segmented  # noqa: F401
from serving import certificate, serving
from stub import Bright

import tilenet
from tilenet.errors import EnvironmentFault
from tilenet.geometry import Box
from tilenet.jobs.compute import to_array
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.readers import cache as caches
from tilenet.readers import open_image

pytest.importorskip("obstore", reason='needs what reads remote images: pip install "tilenet[remote]"')


# The same as from a disk


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_read_as_from_a_disk(tmp_path, server, version, consolidated):
    path = write_channels(tmp_path, version=version)
    if consolidated:
        zarr.consolidate_metadata(path) if version == "0.4" else _consolidate_v3(path)
    local, image = open_image(path, level=1), open_image(f"{server.url}/image.zarr", level=1)
    assert (image.axes, image.levels, image.identity()) == (local.axes, local.levels, local.identity())
    np.testing.assert_array_equal(whole(image), CHANNELS[:, ::2, ::2])


def _consolidate_v3(path):
    with pytest.warns(UserWarning, match="[Cc]onsolidated"):
        zarr.consolidate_metadata(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("options", [{}, {"shards": (2, 64, 64)}, {"compressors": None}])
def test_plain_arrays_are_read_in_any_part(tmp_path, server, zarr_format, options):
    if zarr_format == 2 and "shards" in options:
        pytest.skip("zarr v2 has no shards")
    zarr.create_array(tmp_path / "a.zarr", data=CHANNELS, chunks=(1, 32, 32), zarr_format=zarr_format, **options)
    for box in (Box((1, 31, 5), (3, 66, 129)), Box((0, 0, 0), (3, 100, 130))):
        image = open_image(f"{server.url}/a.zarr", axes="zyx")
        np.testing.assert_array_equal(image.read(box)[0], CHANNELS[box.slices])


@pytest.mark.parametrize(
    "name",
    [
        "blastocyst_z060-099_v04.ome.zarr",
        "blastocyst_z070-099_v05_sharded.ome.zarr",
        "cardiomyocyte_3ch_v04.ome.zarr",
        "cardiomyocyte_3ch_v04.ome.zarr/labels/nuclei",
        "cardiomyocyte_3ch_v04.ome.zarr/1",
    ],
)
def test_real_images_are_read_as_from_a_disk(shared_data, name):
    path = shared_data(f"zarr/{name}")
    with serving(shared_data("zarr")) as server:
        image, local = open_image(f"{server.url}/{name}"), open_image(path)
        assert image.levels == local.levels
        assert image.channel_names == local.channel_names
        assert image.identity() == local.identity()
        np.testing.assert_array_equal(whole(image), whole(local))
        assert max(server.counts.values()) == 1


@pytest.mark.parametrize("name", ["my image é+%.zarr", "a=b&c;d.zarr"])
def test_any_name_can_be_an_address(tmp_path, server, name):
    path = plain_zarr(tmp_path, name=name)
    from urllib.parse import quote

    image = open_image(f"{server.url}/{quote(name)}/")
    np.testing.assert_array_equal(whole(image), whole(open_image(path)))
    np.testing.assert_array_equal(whole(open_image(image.name)), whole(image))
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(image))), whole(image))


def test_a_remote_image_is_segmented_into_the_bytes_of_a_local_one(tmp_path, server, tilenet_command):
    path = plain_zarr(tmp_path)
    url = f"{server.url}/image.zarr"
    segmented(path, tmp_path / "local.zarr")
    mask = segmented(url, tmp_path / "remote.zarr")
    assert 0 < np.asarray(mask).mean() < 1
    assert mask.pixel_size == (0.5, 0.5)
    assert same_masks(tmp_path / "local.zarr", tmp_path / "remote.zarr")
    assert mask.info["image"]["path"] == url


def test_every_command_takes_an_address(tmp_path, server, tilenet_command):
    plain_zarr(tmp_path, sides=(200, 240))
    url, out = f"{server.url}/image.zarr", tmp_path / "mask.zarr"
    for command, says in (
        (("info", url), "200, 240"),
        (("plan", url), "200 x 240"),
        (("segment", url, "--out", out, "--level", "0"), "200 x 240"),
        (("verify", out), "as the network gives"),
        (("overlay", url, out, "--out", tmp_path / "o.png"), "200 x 240"),
        (("batch", url, "--out", tmp_path / "masks", "--level", "0"), "1 done"),
    ):
        code, printed, err = tilenet_command(*command)
        assert (code, err) == (0, ""), command
        assert says in printed
    assert (tmp_path / "masks" / "image.zarr").is_dir()


def test_a_list_may_name_addresses(tmp_path, server, tilenet_command):
    plain_zarr(tmp_path, sides=(64, 64), name="a.zarr")
    plain_zarr(tmp_path, sides=(64, 64), name="b.ome.zarr")
    (tmp_path / "list.txt").write_text(f"{server.url}/a.zarr\nb.ome.zarr\n")
    (tmp_path / "list.csv").write_text(f"image,name\n{server.url}/b.ome.zarr?x=1,third\n")
    code, out, _ = tilenet_command("batch", tmp_path / "list.txt", tmp_path / "list.csv", "--out", tmp_path / "masks")
    assert (code, "3 done" in out) == (0, True)
    assert sorted(p.name for p in (tmp_path / "masks").glob("*.zarr")) == ["a.zarr", "b.zarr", "third.zarr"]


def test_lazy_reads_only_what_a_slice_needs(tmp_path, server):
    path = plain_zarr(tmp_path, sides=(512, 512))
    array = tilenet.lazy(f"{server.url}/image.zarr", model=Bright(), tile=64, threads=1)
    assert not [key for key in server.counts if "/c/" in key[0]]
    part = pickle.loads(pickle.dumps(array))[70:100, 200:210].compute()
    assert {key for key, _ in server.counts if "/c/" in key} == {
        f"/image.zarr/0/c/{y}/{x}" for y, x in product((0, 1, 2), (2, 3, 4))
    }
    expected = tilenet.segment(path, model=Bright(), tile=64, threads=1)
    np.testing.assert_array_equal(part, expected[70:100, 200:210])


def test_https_is_spoken_and_a_certificate_is_checked(tmp_path, monkeypatch):
    path = plain_zarr(tmp_path)
    extensions = ("subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE")
    cert, key = certificate(tmp_path, *(word for one in extensions for word in ("-addext", one)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(tmp_path, context=context) as server:
        with pytest.raises(EnvironmentFault, match="the connection to the server failed"):
            open_image(f"{server.url}/image.zarr")
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert server.url.startswith("https://")
        np.testing.assert_array_equal(whole(open_image(f"{server.url}/image.zarr")), whole(open_image(path)))


# Few requests


def test_metadata_are_fetched_once(tmp_path, server):
    write_channels(tmp_path)
    open_image(f"{server.url}/image.zarr")
    assert [path for path, _ in server.seen] == [f"/image.zarr{k}/zarr.json" for k in ("", "/0", "/1")]


@pytest.mark.parametrize("options", [{}, {"shards": (128, 128)}])
def test_what_fits_the_cache_is_fetched_once(tmp_path, server, options):
    plain_zarr(tmp_path, **options)
    segmented(f"{server.url}/image.zarr", tmp_path / "mask.zarr")
    assert len(server.counts) > 80
    assert set(server.counts.values()) == {1}


@pytest.mark.parametrize(("rows_kept", "enough"), [(6, True), (1, False)])
def test_a_chunk_is_fetched_once_per_row_of_blocks_that_needs_it(tmp_path, server, monkeypatch, rows_kept, enough):
    plain_zarr(tmp_path, sides=(1024, 512), compressors=None)
    row = (64 * 64 + caches.OVERHEAD) * 8
    monkeypatch.setattr(caches.FetchCache.__init__, "__defaults__", (rows_kept * row,))
    monkeypatch.setattr(caches.PieceCache.__init__, "__defaults__", (rows_kept * 64 * 64 * 8,))
    job = make_job(f"{server.url}/image.zarr", Bright(), Options(tile=64, block=256, batch=1, threads=1))
    blocks = [job.plan[i].box for i in range(len(job.plan))]
    assert len(blocks) == 8
    server.counts.clear()
    to_array(job, job.resolve_scaling())
    most = dict.fromkeys(product(range(16), range(8)), 0)
    for first, last in {(box.start[0], box.stop[0]) for box in blocks}:
        for y in range(max(0, first - 1) // 64, min(1023, last) // 64 + 1):  # the network sees a pixel more
            for x in range(8):
                most[y, x] += 1
    found = {tuple(map(int, path.split("/")[-2:])): n for (path, _), n in server.counts.items()}
    assert set(most.values()) == {1, 2}
    assert found.keys() == most.keys()
    assert all(found[chunk] <= n for chunk, n in most.items()) == enough


def test_the_cache_is_bounded_and_one_fetch_serves_many():
    from zarr.core.sync import sync

    cache, fetches = caches.FetchCache(10 * (100 + caches.OVERHEAD)), []

    async def fetch():
        import asyncio

        fetches.append(1)
        await asyncio.sleep(0.01)
        return bytes(100)

    async def many(key):
        import asyncio

        return await asyncio.gather(*(cache.get(key, fetch) for _ in range(5)))

    for key in range(30):
        assert sync(many(key)) == [bytes(100)] * 5
    assert len(fetches) == 30
    assert cache.n_bytes <= cache.max_bytes
    assert sync(cache.get(0, fetch)) is not None
    assert len(fetches) == 31
