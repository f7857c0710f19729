"""Zarr images behind a web server: the same pixels and masks as from a disk, few requests, and what goes wrong."""

import base64
import json
import pickle
import shutil
import ssl
import subprocess
import sys
from datetime import timedelta
from itertools import product

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from oracles import random_network
from serving import serving
from store_helpers import tree
from stub import Bright
from test_bad_images import METADATA, bomb_gzip, edit, ome_zarr
from test_readers_zarr import PIXELS, group

import tilenet
from tilenet import address
from tilenet.compute import to_array
from tilenet.errors import EnvironmentFault, ImageError, ImageNotFound, OutputError, OutputMismatch
from tilenet.geometry import Box
from tilenet.job import Options, settle
from tilenet.readers import fetched, open_image, remote
from tilenet.readers.cache import PieceCache
from tilenet.worker import Task

pytest.importorskip("obstore", reason='needs what reads remote images: pip install "tilenet[remote]"')

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Wait for milliseconds where a user waits for seconds."""
    short = {"base": 2, "init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5)}
    monkeypatch.setattr(remote, "BACKOFF", short)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as server:
        yield server


def whole(image):
    return image.read(Box.of_shape(image.box_shape))


def plain_zarr(folder, *, sides=(512, 640), chunk=64, name="image.zarr", **options):
    """Write an OME-Zarr image of one channel whose mask is neither empty nor full."""
    random = np.random.default_rng(3)
    pixels = random.integers(0, 136, sides, dtype=np.uint8) + np.linspace(0, 110, sides[1], dtype=np.uint8)
    group = zarr.create_group(folder / name)
    group.create_array("0", data=pixels, chunks=(chunk, chunk), **options)
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    scale = [{"type": "scale", "scale": [0.5, 0.5]}]
    about = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [about]}
    return folder / name


def segmented(image, out, **options):
    return tilenet.segment(image, out, model=Bright(), tile=64, threads=1, **options)


def same_masks(one, two):
    """Tell whether two masks have the same files, but for where the image lay."""
    trees = [tree(path) for path in (one, two)]
    for files, path in zip(trees, (one, two), strict=True):
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["tilenet"]["image"].pop("path")
        files["zarr.json"] = json.dumps(document)
    return {k: v for k, v in trees[0].items() if ".tilenet" not in k} == {
        k: v for k, v in trees[1].items() if ".tilenet" not in k
    }


# The same as from a disk


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_read_as_from_a_disk(tmp_path, server, version, consolidated):
    path = group(tmp_path, version=version)
    if consolidated:
        zarr.consolidate_metadata(path) if version == "0.4" else _consolidate_v3(path)
    local, image = open_image(path, level=1), open_image(f"{server.url}/image.zarr", level=1)
    assert (image.axes, image.levels, image.identity()) == (local.axes, local.levels, local.identity())
    np.testing.assert_array_equal(whole(image), PIXELS[:, ::2, ::2])


def _consolidate_v3(path):
    with pytest.warns(UserWarning, match="[Cc]onsolidated"):
        zarr.consolidate_metadata(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("options", [{}, {"shards": (2, 64, 64)}, {"compressors": None}])
def test_plain_arrays_are_read_in_any_part(tmp_path, server, zarr_format, options):
    if zarr_format == 2 and "shards" in options:
        pytest.skip("zarr v2 has no shards")
    zarr.create_array(tmp_path / "a.zarr", data=PIXELS, chunks=(1, 32, 32), zarr_format=zarr_format, **options)
    for box in (Box((1, 31, 5), (3, 66, 129)), Box((0, 0, 0), (3, 100, 130))):
        image = open_image(f"{server.url}/a.zarr", axes="zyx")
        np.testing.assert_array_equal(image.read(box)[0], PIXELS[box.slices])


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
    plain_zarr(tmp_path, name=name)
    from urllib.parse import quote

    image = open_image(f"{server.url}/{quote(name)}/")
    assert whole(image).any()
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
        (("batch", url, "--out", tmp_path / "masks"), "1 done"),
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


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl, to make a certificate")
def test_https_is_spoken_and_a_certificate_is_checked(tmp_path, monkeypatch):
    plain_zarr(tmp_path)
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    files = ["-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    subprocess.run([*make, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with serving(tmp_path, context=context) as server:
        with pytest.raises(EnvironmentFault, match="the remote is lost"):
            open_image(f"{server.url}/image.zarr")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
        assert server.url.startswith("https://")
        assert whole(open_image(f"{server.url}/image.zarr")).any()


# Few requests


def test_metadata_are_fetched_once(tmp_path, server):
    group(tmp_path)
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
    row = (64 * 64 + fetched.OVERHEAD) * 8
    monkeypatch.setattr(fetched.FetchCache.__init__, "__defaults__", (rows_kept * row,))
    monkeypatch.setattr(PieceCache.__init__, "__defaults__", (rows_kept * 64 * 64 * 8,))
    job = settle(f"{server.url}/image.zarr", Bright(), Options(tile=64, block=256, batch=1, threads=1))
    blocks = [job.plan[i].box for i in range(len(job.plan))]
    assert len(blocks) == 8
    server.counts.clear()
    to_array(job, job.numbers())
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

    cache, fetches = fetched.FetchCache(10 * (100 + fetched.OVERHEAD)), []

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


# What goes wrong


def test_a_server_that_dies_midway_is_exit_4_and_the_run_goes_on_when_it_is_back(tmp_path, tilenet_command):
    path, out = plain_zarr(tmp_path, sides=(1100, 1100)), tmp_path / "mask.zarr"
    network = tilenet.save_model(random_network(in_channels=1, n_classes=2, depth=2, wf=2), tmp_path / "n.safetensors")
    options = ("--model", network, "--tile", "128", "--batch", "1", "--threads", "1", "--quiet")

    def written(out=out):
        return sum(p.is_file() for p in (out / "0").rglob("c/*/*"))

    with serving(tmp_path) as server:
        server.fault = lambda path: "close" if written() else None
        port, url = server.port, f"{server.url}/image.zarr"
        code, _, err = tilenet_command("segment", url, "--out", out, *options)
    assert (code, err.count("\n")) == (4, 1)
    assert "the remote is lost" in err
    assert "--resume" in err
    there = written()
    assert there > 0
    code, _, err = tilenet_command("segment", url, "--out", out, "--resume", *options)
    assert (code, "no connection" in err) == (4, True)
    with serving(tmp_path, port=port):
        assert tilenet_command("segment", url, "--out", out, "--resume", *options)[0] == 0
    local = tmp_path / "local.zarr"
    assert tilenet_command("segment", path, "--out", local, *options)[0] == 0
    assert there < written(local)
    assert tree(out / "0") == tree(local / "0")


def test_a_server_that_is_busy_for_a_while_is_asked_again(tmp_path, server):
    plain_zarr(tmp_path)
    asked = {}

    def fault(path):
        asked[path] = asked.get(path, 0) + 1
        return (503, 429, None)[min(asked[path], 3) - 1]

    server.fault = fault
    assert whole(open_image(f"{server.url}/image.zarr")).any()
    assert set(asked.values()) == {3}


@pytest.mark.parametrize("fault", [500, "close", "cut"])
def test_a_server_that_fails_for_good_is_given_up(tmp_path, server, fault):
    plain_zarr(tmp_path)
    image = open_image(f"{server.url}/image.zarr")
    server.seen.clear()
    server.fault = lambda path: fault
    with pytest.raises(EnvironmentFault, match="the remote is lost"):
        image.read(Box((0, 0), (10, 10)))
    assert 1 <= len(server.seen) <= 1 + remote.RETRIES


def test_a_server_that_says_nothing_is_given_up(tmp_path, server, monkeypatch):
    plain_zarr(tmp_path)
    monkeypatch.setattr(remote, "SILENCE", timedelta(milliseconds=200))
    monkeypatch.setattr(remote, "RETRIES", 1)
    server.fault = lambda path: "hang"
    with pytest.raises(EnvironmentFault, match="no answer in time"):
        open_image(f"{server.url}/image.zarr")


def test_patience_is_bounded():
    options = remote._options()
    waits = [options["client_options"][name] for name in ("connect_timeout", "read_timeout", "timeout")]
    assert all(timedelta(0) < wait <= timedelta(minutes=10) for wait in waits)
    assert options["retry_config"]["retry_timeout"] <= timedelta(minutes=2)


@pytest.mark.parametrize("status", [401, 403])
def test_access_refused_is_a_refusal_on_opening_and_resumable_later(tmp_path, server, status):
    plain_zarr(tmp_path)
    server.fault = lambda path: status
    with pytest.raises(ImageError, match=f"access is refused .* {status}"):
        open_image(f"{server.url}/image.zarr")
    server.fault = lambda path: status if "/c/" in path else None
    with pytest.raises(EnvironmentFault, match="--resume"):
        whole(open_image(f"{server.url}/image.zarr"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_bucket_that_is_not_listed_refuses_what_is_not_there_and_is_read(tmp_path, server, version):
    path = group(tmp_path, version=version)
    server.opens = lambda asked, headers: (tmp_path / asked.lstrip("/")).is_file()
    np.testing.assert_array_equal(whole(open_image(f"{server.url}/image.zarr/1")), PIXELS[:, ::2, ::2])
    assert open_image(path / "1").pixel_size == open_image(f"{server.url}/image.zarr/1").pixel_size


def test_what_is_not_there_is_not_found(tmp_path, server, tilenet_command):
    code, _, err = tilenet_command("info", f"{server.url}/image.zarr")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no zarr metadata" in err
    with pytest.raises(ImageNotFound):
        open_image(f"{server.url}/image.zarr")


def test_only_zarr_is_read_from_afar(server):
    for name in ("slide.tif", "slide.svs?x=1", "a/slide.mrxs"):
        with pytest.raises(ImageError, match="only zarr is read from afar. Fetch it first"):
            open_image(f"{server.url}/{name}")
    assert not server.seen


@pytest.mark.parametrize("name", ["ftp://host/a.zarr", "gs://bucket/a.zarr", "file:///a.zarr"])
def test_other_kinds_of_address_are_refused(name):
    with pytest.raises(ImageError, match="https, http, s3 are read"):
        open_image(name)


@pytest.mark.parametrize("name", ["http:///a.zarr", "http://host:port/a.zarr", "http://[::1/a.zarr", "s3://"])
def test_addresses_that_are_none_are_refused(name):
    with pytest.raises(ImageError, match="\\. \\w+ .*address|Check"):
        open_image(name)


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_make_no_sound_image_are_refused(tmp_path, server, name):
    where, change, says = METADATA[name]
    edit(ome_zarr(tmp_path) / where / "zarr.json", change)
    with pytest.raises(ImageError) as caught:
        open_image(f"{server.url}/image.zarr")
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"null", b"<html>200</html>", b" " * (17 * 2**20)])
def test_documents_that_are_none_are_refused(tmp_path, server, content):
    (ome_zarr(tmp_path) / "zarr.json").write_bytes(content)
    with pytest.raises(ImageError, match="image.zarr") as caught:
        open_image(f"{server.url}/image.zarr")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cut off after 0 bytes"),
        (b"\xff" * 50, "cannot be decoded"),
        (bytes(2**20), "more than the"),
        (None, "unpacks to more"),
    ],
)
def test_chunks_that_cannot_be_are_refused(tmp_path, server, content, says):
    pixels = np.full((1024, 1024), 7, np.uint8)
    chunks = (1024, 1024) if content is None else (64, 64)
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=chunks, compressors=zarr.codecs.GzipCodec())
    (tmp_path / "a.zarr" / "c" / "0" / "0").write_bytes(bomb_gzip(2**29) if content is None else content)
    with pytest.raises(ImageError, match=says):
        whole(open_image(f"{server.url}/a.zarr"))


def test_a_server_without_parts_of_files_cannot_serve_parts_of_shards(tmp_path, server):
    plain_zarr(tmp_path, shards=(256, 256))
    server.fault = lambda path: "whole"
    with pytest.raises(ImageError, match="no parts of files"):
        open_image(f"{server.url}/image.zarr").read(Box((0, 0), (10, 10)))


def test_a_server_that_does_not_say_how_much_it_sends_is_refused(tmp_path, server):
    plain_zarr(tmp_path)
    server.fault = lambda path: "no length"
    with pytest.raises(ImageError, match="a server of this kind"):
        open_image(f"{server.url}/image.zarr")


def test_a_chunk_that_was_never_written_is_background_only_while_the_image_is_there(tmp_path, server):
    path = plain_zarr(tmp_path)
    (path / "0" / "c" / "0" / "0").unlink()
    image = open_image(f"{server.url}/image.zarr")
    assert not image.read(Box((0, 0), (64, 64))).any()
    assert image.read(Box((0, 64), (64, 128))).any()
    shutil.rmtree(path / "0" / "c" / "1")
    (path / "0" / "zarr.json").rename(tmp_path / "gone")
    with pytest.raises(EnvironmentFault, match="taken away or changed"):
        image.read(Box((64, 0), (128, 64)))


def test_a_changed_image_is_not_gone_on_with(tmp_path, server):
    path, url, out = plain_zarr(tmp_path), f"{server.url}/image.zarr", tmp_path / "mask.zarr"
    server.fault = lambda path: 500 if "/c/7/" in path else None
    with pytest.raises(EnvironmentFault):
        segmented(url, out)
    server.fault = None
    zarr.open_group(path).attrs["note"] = "changed"
    with pytest.raises(OutputMismatch, match="metadata_sha256"):
        segmented(url, out, resume=True)


# What must not be told


@pytest.fixture
def guarded(tmp_path, server):
    """Return the address of an image that opens only with a password and a signature."""
    plain_zarr(tmp_path, sides=(150, 150))
    login = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()

    server.opens = lambda asked, headers: asked.endswith(f"?sig={SECRET}") and headers["Authorization"] == login
    return f"{server.url.replace('://', f'://me:{SECRET}@')}/image.zarr?sig={SECRET}"


def test_passwords_and_signatures_open_images_and_are_stored_nowhere(tmp_path, server, guarded, tilenet_command):
    plain, out = f"{server.url}/image.zarr", tmp_path / "masks" / "image.zarr"
    said = []
    for command in (
        ("info", guarded),
        ("plan", guarded, "--json"),
        ("batch", guarded, "--out", tmp_path / "masks"),
        ("verify", out, "--image", guarded),
        ("info", out),
        ("overlay", guarded, out, "--out", tmp_path / "o.png"),
        ("segment", guarded, "--out", tmp_path / "m.ome.tif", "--json"),
    ):
        code, printed, err = tilenet_command(*command)
        assert code == 0, err
        said.append(printed + err)
    assert SECRET not in "".join(said)
    stored = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert len(stored) > 10
    assert not [data for data in stored if SECRET.encode() in data]
    assert tilenet.open_mask(out).info["image"]["path"] == plain
    assert tilenet_command("verify", out)[0] == 2


@pytest.mark.parametrize("fault", [401, 403, 404, 410, 500, 301, "close", "cut", "no length"])
def test_errors_tell_no_secrets(server, guarded, tilenet_command, fault, caplog):
    server.fault = lambda path: fault
    for debug in ((), ("--debug",)):
        if not debug:
            _, out, err = tilenet_command(*debug, "info", guarded)
            assert SECRET not in out + err
    with pytest.raises((ImageError, EnvironmentFault)) as caught:
        open_image(guarded)
    error = caught.value
    while error is not None:
        assert SECRET not in str(error) + repr(error)
        error = None if error.__suppress_context__ else error.__cause__ or error.__context__
    assert SECRET not in caplog.text


def test_what_is_sent_to_workers_does_not_print_the_address():
    assert SECRET not in repr(Task("out", "run", f"https://host/a.zarr?{SECRET}", "nuclei"))


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="@/?#"), min_size=5),
    st.sampled_from(["https://me:{}@host/a.zarr", "https://host/a.zarr?sig={}", "http://h:80/a#{}", "https://{}@h/a"]),
)
def test_what_is_shown_of_an_address_has_no_secrets(secret, form):
    secret = f"<<{secret}>>"
    name = address.shown(form.format(secret))
    assert secret not in name
    assert name.startswith("http")


# Where it cannot go


@pytest.mark.parametrize("out", ["s3://bucket/mask.zarr", "https://me:hunter2@host/mask.zarr?x=hunter2"])
def test_outputs_are_local(tmp_path, monkeypatch, tilenet_command, out):
    monkeypatch.chdir(tmp_path)
    plain_zarr(tmp_path, sides=(64, 64))
    for command in (
        ("segment", "image.zarr", "--out", out),
        ("segment", "image.zarr", "--out", out, "--shard", "1/2"),
        ("segment", "image.zarr", "--into", out),
        ("batch", "image.zarr", "--out", out),
        ("verify", out),
        ("finish", out),
    ):
        code, _, err = tilenet_command(*command)
        assert (code, err.count("\n")) == (2, 1), command
        assert "is an address, and what tilenet writes is local" in err, command
        assert SECRET not in err
    with pytest.raises(OutputError):
        tilenet.segment("image.zarr", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.zarr"]


@pytest.mark.parametrize(("name", "module"), [("https://host/a.zarr", "obstore"), ("s3://bucket/a.zarr", "boto3")])
def test_a_missing_extra_is_named_with_what_installs_it(monkeypatch, tilenet_command, name, module):
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = tilenet_command("info", name)
    assert (code, err.count("\n")) == (2, 1)
    assert 'pip install "tilenet[remote]"' in err
