"""What a message says to do about a damaged mask mends it, whichever command made the mask."""

import shutil

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet
from tilenet.errors import REPAIR

RUN, BATCH = ("segment", "a.tif", "--out", "m/a.zarr"), ("batch", "a.tif", "--out", "m")


@pytest.mark.parametrize(("by", "share"), [(RUN, ()), (RUN, ("--shard", "1/1")), (BATCH, ())])
def test_a_damaged_mask_is_mended_by_what_the_message_says(tmp_path, monkeypatch, tilenet_command, by, share):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", np.random.default_rng(0).integers(0, 200, (70, 80), np.uint8))
    tilenet.save_model(random_network(depth=2, wf=1), "m.safetensors")
    command = (*by, "-m", "m.safetensors", "-q")
    export = ("export", "m/a.zarr", "--csv", "a.csv", "--overwrite", "-q")
    assert tilenet_command(*command, *share)[0] == tilenet_command(*export)[0] == 0
    shard = next(path for path in tmp_path.joinpath("m/a.zarr/0/c").rglob("*") if path.is_file())
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    for look in (export, ("verify", "m/a.zarr")):
        code, _, said = tilenet_command(*look)
        assert code == 3 and said.lower().endswith(f"{REPAIR}\n".lower())
    if by == BATCH:
        assert tilenet_command(*command, "--resume")[0] == 0 and tilenet_command(*export)[0] == 3, "it must be removed"
        shutil.rmtree("m/a.zarr")
    assert tilenet_command(*command, "--resume")[0] == tilenet_command(*export)[0] == 0
