"""Damaged and hostile weights: one line and exit 2, soon and in little memory; nothing is run or written."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import write_image
from oracles import reference_state
from safetensors.torch import save_file
from torch import nn

from tilenet.card import ModelCard
from tilenet.errors import ModelError, SettingsError
from tilenet.models.saved import load_model
from tilenet.unet import UNet

OPTIONS = {"depth": 2, "wf": 1}
LIMITS = {"seconds": 10, "kibibytes": 512 * 1024}


class Runs:
    """Pickled, it runs something as it is opened."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        function, *arguments = self.call
        return function, tuple(arguments)


def state():
    return reference_state(depth=2)


def pytorch(content, **options):
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def cut(content, part):
    return content[: int(len(content) * part)]


def script():
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch will give the format up
        torch.jit.save(torch.jit.trace(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5)), out)
    return out.getvalue()


def packed_bomb():
    """Return a state dict whose records are packed: 256 MiB of zeros in 260 kB."""
    out = io.BytesIO()
    real = zipfile.ZipFile(io.BytesIO(pytorch({"w": torch.zeros(2**26)})))
    with real, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for record in real.infolist():
            file.writestr(record.filename, real.read(record))
    return out.getvalue()


def overlapping():
    """Return a zip file whose central directory names one record 5000 times."""
    content = pytorch(state())
    end = content.rindex(b"PK\x05\x06")
    _, _, _, here, total, size, offset, _ = struct.unpack("<4s4H2LH", content[end : end + 22])
    first = content[offset : offset + size]
    return (
        content[:offset]
        + first * 5000
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 5000 * here % 2**16, 5000 * total % 2**16, 0, offset, 0)
    )


def expanded():
    """Return a state dict of a few bytes whose tensors are 64 GiB: all their strides are 0."""
    content = {key: value[(0,) * value.ndim].expand(value.shape) for key, value in state().items()}
    content["last.weight"] = torch.zeros(1).expand(2**30, 2**6, 1, 1)
    content["last.bias"] = torch.zeros(1).expand(2**30)
    return pytorch(content)


def safetensors(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def claiming(*shape, size=8):
    return safetensors({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, bytes(8))


def with_card(text, tmp_path):
    save_file(UNet(**OPTIONS).state_dict(), tmp_path / "made", metadata={"tilenet": text})
    content = (tmp_path / "made").read_bytes()
    (tmp_path / "made").unlink()
    return content


def card(**fields):
    return json.dumps({"architecture": OPTIONS} | fields)


def changed(**keys):
    return {k: v for k, v in (state() | keys).items() if v is not None}


DEEP = b"[" * 10**6
NAN = torch.tensor([0.0, float("nan")])
PYTORCH = {
    "empty": lambda: b"",
    "an HTML page": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "a Git LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "zeros": lambda: bytes(10**6),
    "only the start of a zip": lambda: b"PK\x03\x04",
    "a pickle that makes a folder": lambda: pytorch({"state_dict": Runs(os.mkdir, "canary")}),
    "a pickle that calls the system": lambda: pytorch(Runs(os.system, "mkdir canary")),
    "a pickle that evaluates": lambda: pytorch(Runs(eval, "__import__('os').mkdir('canary')")),
    "an old pickle that runs": lambda: pytorch(Runs(os.system, "mkdir canary"), _use_new_zipfile_serialization=False),
    "a bare pickle that runs": lambda: pickle.dumps(Runs(os.system, "mkdir canary")),
    "a pickle that asks for a terabyte": lambda: pytorch({"a": Runs(bytearray, 2**40)}),
    "a whole pickled module": lambda: pytorch(nn.Conv2d(1, 2, 3)),
    "a TorchScript archive": script,
    "a list": lambda: pytorch([torch.zeros(2)]),
    "one tensor": lambda: pytorch(torch.zeros(2)),
    "numbers": lambda: pytorch({"epoch": 3}),
    "no weights at all": lambda: pytorch({}),
    "sparse tensors": lambda: pytorch(changed(**{"last.bias": torch.zeros(2).to_sparse()})),
    "complex tensors": lambda: pytorch(changed(**{"last.bias": torch.zeros(2, dtype=torch.complex64)})),
    "cut at half": lambda: cut(pytorch(state()), 0.5),
    "cut at its end": lambda: pytorch(state())[:-30],
    "an old file cut": lambda: cut(pytorch(state(), _use_new_zipfile_serialization=False), 0.7),
    "a deflate bomb": packed_bomb,
    "a zip whose records overlap": overlapping,
    "tensors larger than the file": expanded,
    "NaN": lambda: pytorch(changed(**{"last.bias": NAN})),
    "infinity": lambda: pytorch(changed(**{"last.bias": NAN.nan_to_num() + float("inf")})),
    "a wrong shape": lambda: pytorch(changed(**{"last.bias": torch.zeros(7)})),
    "a missing key": lambda: pytorch(changed(**{"last.bias": None})),
    "an extra key": lambda: pytorch(changed(**{"extra.weight": torch.zeros(2)})),
    "another network's keys": lambda: pytorch(nn.Conv2d(1, 2, 3).state_dict()),
    "a depth of a billion": lambda: pytorch(changed(**{"down_path.1000000000.x": torch.zeros(2)})),
    "no axes": lambda: pytorch(changed(**{"down_path.0.block.0.weight": torch.zeros(2, 1)})),
    "a scalar for a kernel": lambda: pytorch(changed(**{"last.weight": torch.tensor(1.0)})),
}
SAFETENSORS = {
    "empty": lambda: b"",
    "an HTML page": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "a Git LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a header beyond the end": lambda: safetensors({}, length=2**40),
    "a header of 2^64 - 1 bytes": lambda: safetensors({}, length=2**64 - 1),
    "a header of 100 MB": lambda: safetensors(b'{"a":"' + b"x" * 10**8 + b'"}'),
    "a header nested deep": lambda: safetensors(DEEP),
    "a header of a list": lambda: safetensors([]),
    "no tensors": lambda: safetensors({}),
    "a tensor of 2^62 bytes": lambda: claiming(2**30, 2**30, size=2**62),
    "a shape that is not its bytes": lambda: claiming(2**40),
    "a shape that overflows": lambda: claiming(2**63, 2**63, 2**63),
    "a negative shape": lambda: claiming(-1, -2),
    "a type unknown": lambda: safetensors({"w": {"dtype": "F7", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
}
CARDS = {
    "that is no JSON": "not a card",
    "of a list": "[]",
    "nested deep": DEEP.decode(),
    "of ten million characters": json.dumps({"notes": "x" * 10**7}),
    "of a key unknown": card(surprise=1),
    "of text for classes": card(classes=5),
    "of classes that are no text": card(classes=[1, 2]),
    "of a mask value 256": card(mask_of_class=[0, 256]),
    "of a mask value in text": card(mask_of_class=["0", "1"]),
    "of a threshold that is no number": '{"threshold": NaN}',
    "of a threshold in text": card(threshold="high"),
    "of colours in words": card(colors={"1": "red"}),
    "of colours of no label": card(colors={"one": [1, 2, 3, 4]}),
    "of colours that are none": card(colors={"1": [1, 2, 3, 999]}),
    "of labels in a list": card(labels=[1]),
    "of labels the wrong way round": card(labels={"nucleus": "1"}),
    "of a pixel size below 0": card(pixel_size=-1),
    "of a pixel size of text": card(pixel_size="0.5"),
    "of a scaling in text": card(scaling="linear"),
    "of an output unknown": card(output="magic"),
    "of a depth of a billion": card(architecture={"depth": 10**9, "wf": 1}),
    "of a width of 2^1000000000": card(architecture={"depth": 2, "wf": 10**9}),
    "of a width below 0": card(architecture={"depth": 2, "wf": -3}),
    "of a padding of a million": card(architecture=OPTIONS | {"padding": 10**6}),
    "of a pooling over a million": card(architecture=OPTIONS | {"up_mode": "upsample", "pool_size": [10**6, 10**6]}),
    "of a billion channels": card(architecture=OPTIONS | {"in_channels": 10**9}),
    "of an option unknown": card(architecture=OPTIONS | {"attention": True}),
    "of an option of the wrong kind": card(architecture={"depth": "two"}),
    "of seven axes": card(architecture=OPTIONS | {"ndim": 7}),
    "of another architecture": card(architecture={"depth": 3, "wf": 1}),
}
BAD = [
    *((f"{name} (.pth)", ".pth", make) for name, make in PYTORCH.items()),
    *((f"{name} (.safetensors)", ".safetensors", make) for name, make in SAFETENSORS.items()),
    *((f"a card {name}", ".safetensors", text) for name, text in CARDS.items()),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder to be in: what a hostile file writes would land there."""
    folder = tmp_path_factory.mktemp("models")
    write_image(folder / "slide.tif", sides=(300, 300))
    return folder


def refused(commands, work, model, **request):
    """Return the one line with which a model is refused."""
    before = sorted(work.rglob("*"))
    arguments = ("segment", work / "slide.tif", "-o", work / "m.zarr", "--model", model)
    run = commands.start(*arguments, measure=True, cwd=str(work), **request)
    code, said = run.wait()
    used = json.loads(Path(f"{run.prints}.used").read_text())
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith(f"tilenet: error: {model}: ")
    assert said.count(". ") >= 1, f"no way out is named: {said}"
    assert len(said) < 600
    assert all(used[name] < limit for name, limit in LIMITS.items()), used
    assert sorted(work.rglob("*")) == before, "something was written"
    return said


@pytest.mark.parametrize(("name", "suffix", "content"), BAD, ids=[name for name, _, _ in BAD])
def test_a_model_that_is_not_sound_is_one_line_and_exit_2(commands, work, tmp_path, name, suffix, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(with_card(content, tmp_path) if isinstance(content, str) else content())
    refused(commands, work, path)


@pytest.mark.parametrize("name", [name for name in PYTORCH if "pickle" in name])
def test_no_setting_of_the_environment_makes_a_pickle_run(commands, work, tmp_path, name):
    (tmp_path / "model.pth").write_bytes(PYTORCH[name]())
    refused(commands, work, tmp_path / "model.pth", environ={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"})


def test_the_pickles_would_leave_a_canary_if_they_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a pickle that makes a folder", "a pickle that calls the system", "a pickle that evaluates"):
        torch.load(io.BytesIO(PYTORCH[name]()), weights_only=False)
        assert (tmp_path / "canary").exists()
        (tmp_path / "canary").rmdir()


def test_the_weights_that_these_damages_start_from_are_sound(tmp_path):
    (tmp_path / "w.pth").write_bytes(pytorch(state()))
    (tmp_path / "old.pth").write_bytes(pytorch(state(), _use_new_zipfile_serialization=False))
    (tmp_path / "w.safetensors").write_bytes(with_card(card(), tmp_path))
    for name in ("w.pth", "old.pth", "w.safetensors"):
        assert load_model(tmp_path / name).depth == 2
    assert torch.equal(load_model(tmp_path / "w.pth").last.weight, state()["last.weight"])


@pytest.mark.parametrize("color", [[1, 2, 3], "ff0000", [1, 2, 3, 256]], ids=str)
def test_colours_that_cannot_be_are_refused_with_an_example_that_can(color):
    with pytest.raises(ModelError, match="red, green, blue and alpha, 0 to 255") as caught:
        ModelCard(colors={"1": color})
    assert str(caught.value).endswith("such as {'1': [0, 200, 100, 255]}")
    assert ModelCard(colors={"1": [0, 200, 100, 255]}).colors


def test_a_folder_a_pipe_and_a_device_are_no_models(commands, work, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert "no such model" in refused(commands, work, path)


@pytest.mark.parametrize(
    "scaling",
    [
        {"method": "magic"},
        {},
        {"method": "linear", "divide": 0},
        {"method": "linear", "divide": "much"},
        {"method": "linear", "subtract": [1, 2, 3, 4, 5]},
        {"method": "percentile"},
        {"method": "percentile", "low": -5, "high": 200},
        {"method": "none", "clip": [1]},
    ],
    ids=str,
)
def test_a_scaling_that_cannot_be_is_refused_before_anything_is_written(tmp_path, scaling):
    import tilenet

    network = UNet(**OPTIONS)
    network.card = ModelCard(scaling=scaling)
    with pytest.raises((ModelError, SettingsError), match="scaling|percentiles"):
        tilenet.segment(np.zeros((50, 60), np.uint8), tmp_path / "m.zarr", model=network)
    assert not (tmp_path / "m.zarr").exists()


def test_a_file_of_a_hundred_gigabytes_is_not_read(commands, work, tmp_path):
    header = {"last.weight": {"dtype": "F32", "shape": [5**2, 10**9], "data_offsets": [0, 10**11]}}
    path = tmp_path / "huge.safetensors"
    path.write_bytes(safetensors(header))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 10**11)  # sparse: takes no room on the disk
    refused(commands, work, path)
