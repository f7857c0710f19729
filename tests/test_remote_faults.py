"""What goes wrong with images behind a web server, what is told of them, and where they cannot be."""

import base64
import shutil
import sys
from datetime import timedelta

import numpy as np
import pytest
import zarr
from bad_images import METADATA, bomb_gzip, edit, ome_zarr
from contents import whole
from hypothesis import given
from hypothesis import strategies as st
from ome_images import CHANNELS, write_channels
from oracles import random_network
from remote_images import a_server, milliseconds, plain_zarr, same_masks, segmented  # noqa: F401
from serving import nobody_at, serving
from store_helpers import tree

import tilenet
from tilenet import address
from tilenet.errors import EnvironmentFault, ImageError, ImageNotFound, OutputError, OutputMismatch
from tilenet.geometry import Box
from tilenet.readers import open_image, remote
from tilenet.workers.worker import Task

pytest.importorskip("obstore", reason='needs what reads remote images: pip install "tilenet[remote]"')

SECRET = "hunter2"


# What goes wrong


def test_a_server_that_dies_midway_is_exit_4_and_the_run_goes_on_when_it_is_back(tmp_path, tilenet_command):
    path, out = plain_zarr(tmp_path, sides=(1100, 1100)), tmp_path / "mask.zarr"
    network = tilenet.save_model(random_network(in_channels=1, n_classes=2, depth=2, wf=2), tmp_path / "n.safetensors")
    options = ("--model", network, "--tile", "128", "--batch", "1", "--threads", "1", "--quiet")

    def written(out=out):
        return sum(p.is_file() for p in (out / "0").rglob("c/*/*"))

    with nobody_at() as port:
        with serving(tmp_path, port=port) as server:
            server.fault = lambda path: "close" if written() else None
            url = f"{server.url}/image.zarr"
            code, _, err = tilenet_command("segment", url, "--out", out, *options)
        assert (code, err.count("\n")) == (4, 1)
        assert "the connection to the server failed" in err
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
    path, asked = plain_zarr(tmp_path), {}

    def fault(path):
        asked[path] = asked.get(path, 0) + 1
        return (503, 429, None)[min(asked[path], 3) - 1]

    server.fault = fault
    np.testing.assert_array_equal(whole(open_image(f"{server.url}/image.zarr")), whole(open_image(path)))
    assert set(asked.values()) == {3}


@pytest.mark.parametrize("fault", [500, "close", "cut"])
def test_a_server_that_fails_for_good_is_given_up(tmp_path, server, fault):
    plain_zarr(tmp_path)
    image = open_image(f"{server.url}/image.zarr")
    server.seen.clear()
    server.fault = lambda path: fault
    with pytest.raises(EnvironmentFault, match="the connection to the server failed"):
        image.read(Box((0, 0), (10, 10)))
    assert 1 <= len(server.seen) <= 1 + remote.RETRIES


def test_an_answer_that_is_cut_off_once_is_asked_for_again(tmp_path, server):
    expected = whole(open_image(plain_zarr(tmp_path)))
    asked = {}

    def fault(path):
        asked[path] = asked.get(path, 0) + 1
        return "cut" if "/c/" in path and asked[path] == 1 else None

    server.fault = fault
    np.testing.assert_array_equal(whole(open_image(f"{server.url}/image.zarr")), expected)
    assert {count for path, count in asked.items() if "/c/" in path} == {2}


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
    path = write_channels(tmp_path, version=version)
    server.opens = lambda asked, headers: (tmp_path / asked.lstrip("/")).is_file()
    np.testing.assert_array_equal(whole(open_image(f"{server.url}/image.zarr/1")), CHANNELS[:, ::2, ::2])
    assert open_image(path / "1").pixel_size == open_image(f"{server.url}/image.zarr/1").pixel_size


def test_what_is_not_there_is_not_found(tmp_path, server, tilenet_command):
    code, _, err = tilenet_command("info", f"{server.url}/image.zarr")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no zarr metadata" in err
    with pytest.raises(ImageNotFound):
        open_image(f"{server.url}/image.zarr")


def test_only_zarr_is_read_from_afar(server):
    for name in ("slide.tif", "slide.svs?x=1", "a/slide.mrxs"):
        with pytest.raises(ImageError, match="only zarr can be read remotely. Download it"):
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


@pytest.mark.parametrize("name", ["a path out of the group", "a shape of 0", "an unknown codec"])
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
        (b"", "c/0/0: is empty"),
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
    with pytest.raises(ImageError, match="does not support HTTP range requests"):
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
    with pytest.raises(EnvironmentFault, match="removed or changed while it was being read"):
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


@pytest.mark.parametrize(
    "name",
    [
        "https://me:12/34@host/a.zarr",
        "https://12/34@host/a",
        "https://me:12?34@host/a",
        "http://me:12#34@host/a",
        "https://me:12/a?34@host/a",
        "s3://me:12/34@bucket/a",
    ],
)
def test_a_login_with_an_unencoded_slash_is_neither_shown_nor_taken_for_a_host(name):
    assert address.shown(name) == f"{name.partition(':')[0]}://..."
    with pytest.raises(ImageError) as caught:
        address.parse_address(name)
    assert "12" not in str(caught.value) and "34" not in str(caught.value)


def test_an_at_sign_in_a_path_is_written_encoded():
    with pytest.raises(ImageError, match=r"^https://\.\.\.: has an @ behind the host\. .* @ in a path as %40$"):
        address.parse_address("https://host/a@b.zarr")
    found = address.parse_address("https://host/a%40b.zarr")
    assert found.path == "a@b.zarr"
    assert address.shown(str(found)) == str(found) == "https://host/a%40b.zarr"
    assert str(address.parse_address("s3://bucket/a@b.zarr")) == address.shown("s3://bucket/a@b.zarr")


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
    assert 'pip install "tilenet[remote]", or ".[remote]" in a checkout' in err
