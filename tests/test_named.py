"""Models by name: functions of Python modules that return a network or a predictor."""

import json
import sys

import numpy as np
import pytest
import tifffile
import torch
from ome_images import write_ome_zarr

import tilenet
from tilenet.errors import ModelError, ModelNotFound, OutputExists
from tilenet.models.named import function_of, load_named, name_of, source_of
from tilenet.workers.distributed import check_sendable
from tilenet.workers.worker import _load

SOURCE = """
import torch
import tilenet

class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.last = torch.nn.Conv2d(4, 2, 3, padding=1)
        self.footprint = tilenet.Footprint.same(2, reach=2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))

def build():
    return Own()

SHARED = Own()

def carded():
    network = Own()
    network.card = tilenet.ModelCard(name="cells")
    return network

def carded_too():
    return carded()

def shared():
    return SHARED

def bare():
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 2, 3, padding=1)

def nothing():
    return None

def leaves():
    raise SystemExit("no licence")

def fails():
    raise RuntimeError("no weights here")

def wants(path):
    return Own()
"""


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (90, 70), dtype=np.uint8)


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Write a module into the working directory; return its name, which no other test uses."""
    name = f"own_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, PIXELS)
    return path


def own_mask(module):
    return tilenet.segment(PIXELS, model=load_named(f"{module}:build"))


def test_a_function_gives_the_mask_of_the_network_that_it_returns(module):
    mask = tilenet.segment(PIXELS, model=f"{module}:build", tile=32)
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(mask, own_mask(module))


def test_a_lazy_array_takes_a_function(module):
    part = tilenet.lazy(PIXELS, model=f"{module}:build", tile=32)[10:50, 20:60].compute()
    np.testing.assert_array_equal(part, own_mask(module)[10:50, 20:60])


def test_a_lazy_array_keeps_the_network_as_it_was_even_if_the_function_returns_one_that_is_shared(module):
    mask = tilenet.lazy(PIXELS, model=f"{module}:shared", tile=32)
    with torch.no_grad():
        sys.modules[module].SHARED.last.bias[0] += 1e6
    np.testing.assert_array_equal(mask.compute(), own_mask(module))


def test_the_command_line_takes_a_function_of_the_working_directory_and_verifies_with_it(
    module, image, tilenet_command, monkeypatch
):
    def run(*words):
        sys.modules.pop(module, None)
        monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(image.parent))])
        code, said, _ = tilenet_command(*words)
        assert code == 0
        return said

    run("segment", image, "--model", f"{module}:build", "--out", "m.zarr", "--quiet")
    found = json.loads(run("verify", "m.zarr", "--model", f"{module}:build", "--json"))
    assert found["ok"] and found["windows"] > 0
    np.testing.assert_array_equal(np.asarray(tilenet.open_mask("m.zarr")), own_mask(module))


def test_code_that_an_output_names_is_not_run(module, image, tmp_path):
    tilenet.segment(image, "m.zarr", model=f"{module}:build")
    (tmp_path / f"{module}.py").write_text("open('it_ran', 'w')")
    del sys.modules[module]
    found = tilenet.verify("m.zarr")
    assert f"--model {module}:build" in found.not_recomputed and not (tmp_path / "it_ran").exists()


def test_a_run_is_resumed_by_the_same_function_and_refused_by_another(module, image, tmp_path):
    tilenet.segment(image, "m.zarr", model=f"{module}:build")
    tilenet.segment(image, "m.zarr", model=f"{module}:build", resume=True)
    (tmp_path / f"{module}.py").write_text(SOURCE.replace("manual_seed(0)", "manual_seed(1)"))
    del sys.modules[module]
    with pytest.raises(tilenet.OutputMismatch, match="another"):
        tilenet.segment(image, "m.zarr", model=f"{module}:build", resume=True)


def test_a_worker_calls_the_function_itself(module):
    check_sendable("image.tif", f"{module}:build")
    assert type(_load(f"{module}:build")).__name__ == "Own"


def test_a_batch_takes_a_function_for_each_image(module, image, tmp_path):
    (tmp_path / "list.csv").write_text(f"image,model\nimage.tif,{module}:build\n")
    (result,) = tilenet.batch(tmp_path / "list.csv", tmp_path / "masks")
    assert result.status == "done"
    np.testing.assert_array_equal(np.asarray(tilenet.open_mask(tmp_path / "masks" / "image.zarr")), own_mask(module))


def test_the_footprint_of_a_batch_is_that_of_a_function_without_one(module, image, tmp_path):
    how = {"model": f"{module}:bare", "footprint": tilenet.Footprint.same(2, reach=1)}
    (result,) = tilenet.batch(image, tmp_path / "masks", table=True, min_area=5, **how)
    assert (result.status, result.error) == ("done", "")
    mask = np.asarray(tilenet.open_mask(tmp_path / "masks" / "image.zarr"))
    np.testing.assert_array_equal(mask, tilenet.segment(PIXELS, **how))


def test_a_function_is_told_from_files_and_packaged_names_by_its_colon(module):
    assert function_of("a.b:c") == ("a.b", "c") and source_of("a.b:c") == "a.b:c"
    for other in ("nuclei", "a:b:c", "C:\\weights.pt", "s3://bucket", "weights.pt", ":build", torch.nn.Identity()):
        assert function_of(other) is None


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("no_such_module:build", ModelNotFound, "there is no module no_such_module"),
        ("no_such_package.networks:build", ModelNotFound, "there is no module no_such_package"),
        ("{}:biuld", ModelNotFound, "has no biuld"),
        ("{}:fails", ModelError, r"failed \(RuntimeError: no weights here\)"),
        ("{}:leaves", ModelError, r"failed \(SystemExit: no licence\)"),
        ("{}:wants", ModelError, "called without arguments"),
        ("{}:nothing", ModelError, "own_[0-9]+:nothing: returned a NoneType. Return the model"),
        ("{}.py", ModelNotFound, r"is a file of Python\. Give MODULE:FUNCTION, here own_[0-9]+:FUNCTION"),
        ("{}.py:build", ModelNotFound, r"is a file of Python\. Give MODULE:FUNCTION, here own_[0-9]+:build"),
        ("{}:Own.build", ModelNotFound, "no such model"),
    ],
)
def test_a_function_that_gives_no_model_is_refused(module, model, kind, text):
    with pytest.raises(kind, match=text):
        tilenet.segment(PIXELS, model=model.format(module))


@pytest.mark.parametrize("code", ["import no_such_library", "raise SystemExit", "1 +"])
def test_a_module_that_cannot_be_imported_is_refused_and_says_why(module, tmp_path, code):
    (tmp_path / f"{module}.py").write_text(code)
    with pytest.raises(ModelError, match=f"{module}:build: cannot be imported"):
        load_named(f"{module}:build")


def test_a_function_is_called_as_the_card_of_its_network_says_or_else_as_its_module(module):
    assert (name_of(f"{module}:carded"), name_of(f"{module}:build")) == ("cells", module)


@pytest.mark.parametrize("objects", [False, True])
def test_labels_of_a_function_have_the_name_of_its_card(module, tmp_path, tilenet_command, objects):
    image, model = tmp_path / "i.zarr", f"{module}:carded"
    write_ome_zarr(image, [(PIXELS, [1.0, 1.0], [0.0, 0.0])], version="0.5", axes="yx")
    how = ("segment", image, "--into", image, "--model", model, *(["--objects"] * objects))
    code, said, error = tilenet_command(*how)
    assert (code, f"{image}/labels/cells: " in said) == (0, True), error
    assert tilenet_command(*how)[0] == 2 and tilenet_command(*how, "--resume")[0] == 0
    # Another function of the module has nothing to do with them.
    with pytest.raises(OutputExists, match="labels/cells: exists already"):
        tilenet.segment(image, into=image, model=f"{module}:carded_too", objects=objects)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", ["jit", "export"])
def test_a_saved_program_is_told_from_weights(tmp_path, kind):
    network, path = torch.nn.Conv2d(1, 2, 3), tmp_path / "program.pt"
    if kind == "jit":
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 8, 8)), path)
    else:
        exported = torch.export.export(network, (torch.zeros(1, 1, 8, 8),))
        torch.export.save(exported, path.with_suffix(".pt2"))
        path.with_suffix(".pt2").rename(path)
    with pytest.raises(ModelError, match=r"program\.pt: is a program of torch\.jit or torch\.export.*MODULE:FUNCTION"):
        tilenet.load_model(path)


def test_only_a_unet_is_saved(tmp_path):
    with pytest.raises(ModelError, match="Identity: only a UNet can be saved.*MODULE:FUNCTION"):
        tilenet.save_model(torch.nn.Identity(), tmp_path / "x.safetensors")
