"""Images in a bucket, served by moto, which checks signatures: found and opened as the AWS tools would."""

import json
import logging
import urllib.request

import numpy as np
import pytest
from contents import whole
from remote_images import plain_zarr, same_masks
from serving import nobody_at, serving
from stub import Bright

import tilenet
from tilenet.errors import EnvironmentFault, ImageError, ImageNotFound
from tilenet.readers import open_image

WHY = 'needs a local S3: pip install "moto[s3]" flask flask-cors, and pip install "tilenet[remote]"'
pytest.importorskip("obstore", reason=WHY)
boto3 = pytest.importorskip("boto3", reason=WHY)
moto = pytest.importorskip("moto.server", reason=WHY)

IMAGE, PUBLIC = "s3://slides/a folder/image.zarr", "s3://public/a folder/image.zarr"
ALLOWED = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return plain_zarr(tmp_path_factory.mktemp("bucket"), sides=(150, 200), shards=(128, 128))


@pytest.fixture(scope="module")
def bucket(folder):
    """Return the endpoint of a server that has the image, and the keys of a user who may see it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    try:
        session = boto3.Session("root", "root", region_name="us-east-1")
        s3, iam = (session.client(name, endpoint_url=endpoint) for name in ("s3", "iam"))
        for bucket, access in (("slides", "private"), ("public", "public-read")):
            s3.create_bucket(Bucket=bucket)
            for file in folder.rglob("*"):
                if file.is_file():
                    key = f"a folder/image.zarr/{file.relative_to(folder)}"
                    s3.put_object(Bucket=bucket, Key=key, Body=file.read_bytes(), ACL=access)
        iam.create_user(UserName="reader")
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(ALLOWED))
        keys = iam.create_access_key(UserName="reader")["AccessKey"]
        for client in (s3, iam):
            client.close()
        yield endpoint, keys["AccessKeyId"], keys["SecretAccessKey"]
    finally:
        server.stop()


@pytest.fixture
def aws(tmp_path, monkeypatch, bucket):
    """Clear what this machine knows of AWS; return what sets the environment, `checked` where signatures are."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def set_(*, checked, **environ):
        request = urllib.request.Request(
            f"{bucket[0]}/moto-api/reset-auth",
            data=b"0" if checked else b"inf",
            method="POST",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()
        nowhere = str(tmp_path / "nowhere")
        defaults = {
            "AWS_ENDPOINT_URL": bucket[0],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
            "AWS_CONFIG_FILE": nowhere,
        }
        for name, value in (defaults | environ).items():
            monkeypatch.setenv(name, value)

    yield set_
    set_(checked=False)


def test_a_public_bucket_needs_no_credentials(folder, aws):
    aws(checked=False)
    image, local = open_image(PUBLIC), open_image(folder)
    assert image.name == PUBLIC
    assert image.identity() == local.identity()
    np.testing.assert_array_equal(whole(image), whole(local))
    aws(checked=False, AWS_ACCESS_KEY_ID="of another bucket", AWS_SECRET_ACCESS_KEY="x", AWS_SKIP_SIGNATURE="true")
    np.testing.assert_array_equal(whole(open_image(PUBLIC)), whole(local))
    assert open_image(f"{PUBLIC}/0").shape == (150, 200)


def test_keys_of_the_environment_open_a_bucket(folder, aws, bucket, tmp_path):
    _, key, secret = bucket
    aws(checked=True, AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret)
    options = {"model": Bright(), "tile": 64, "threads": 1}
    tilenet.segment(IMAGE, tmp_path / "remote.zarr", **options)
    tilenet.segment(folder, tmp_path / "local.zarr", **options)
    assert same_masks(tmp_path / "remote.zarr", tmp_path / "local.zarr")
    stored = b"".join(p.read_bytes() for p in (tmp_path / "remote.zarr").rglob("*") if p.is_file())
    assert IMAGE.encode() in stored
    assert key.encode() not in stored
    assert secret.encode() not in stored


def test_a_profile_opens_a_bucket_and_names_its_endpoint(aws, bucket, folder, tmp_path):
    endpoint, key, secret = bucket
    (tmp_path / "keys").write_text(f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-west-1\nendpoint_url = {endpoint}\n")
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys"), "AWS_CONFIG_FILE": str(tmp_path / "config")}
    aws(checked=True, AWS_PROFILE="lab", AWS_ENDPOINT_URL="", **files)
    np.testing.assert_array_equal(whole(open_image(IMAGE)), whole(open_image(folder)))
    aws(checked=True, AWS_PROFILE="other", **files)
    with pytest.raises(ImageError, match=r"the settings of AWS cannot be used \(.*other"):
        open_image(IMAGE)


@pytest.mark.parametrize("key", ["none", "wrong", "unsigned"])
def test_a_bucket_that_does_not_open_says_what_to_set(aws, bucket, tilenet_command, key):
    _, good, secret = bucket
    keys = {"AWS_ACCESS_KEY_ID": good, "AWS_SECRET_ACCESS_KEY": secret if key == "unsigned" else "wrong"}
    keys = {} if key == "none" else keys
    aws(checked=key == "wrong", **keys, **({"AWS_SKIP_SIGNATURE": "true"} if key == "unsigned" else {}))
    code, _, err = tilenet_command("info", IMAGE)
    assert (code, err.count("\n")) == (2, 1)
    assert "access is refused (HTTP status 403" in err
    assert "Set AWS_ACCESS_KEY_ID or AWS_PROFILE, or for a public bucket AWS_SKIP_SIGNATURE=true" in err
    assert good not in err


def test_a_bucket_that_does_not_exist_is_named(aws, tilenet_command):
    aws(checked=False)
    code, _, err = tilenet_command("info", "s3://no-such-bucket/image.zarr")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no bucket no-such-bucket. Check its name" in err


@pytest.mark.parametrize("name", ["s3://public/other.zarr", "s3://public"])
def test_what_is_not_there_is_not_found(aws, name):
    aws(checked=False)
    with pytest.raises(ImageNotFound, match="has no zarr metadata"):
        open_image(name)


def test_a_bucket_of_another_region_says_what_to_set(aws, tmp_path):
    with serving(tmp_path) as server:
        server.fault = lambda path: 301
        aws(checked=False, AWS_ENDPOINT_URL=server.url)
        with pytest.raises(ImageError, match="another region. Set AWS_REGION"):
            open_image(IMAGE)


def test_an_endpoint_that_is_not_reached_is_lost(aws):
    with nobody_at() as port:
        aws(checked=False, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        with pytest.raises(EnvironmentFault, match="the connection to the server failed"):
            open_image(IMAGE)


def test_credentials_are_not_taken_from_an_address(aws):
    aws(checked=False)
    with pytest.raises(ImageError, match="credentials are not taken") as caught:
        open_image("s3://key:hunter2@slides/image.zarr")
    assert "hunter2" not in str(caught.value)
