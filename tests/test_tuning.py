"""`tilenet tune`: with a clock that the predictor moves, so that nothing depends on the machine."""

import json
import shlex

import numpy as np
import pytest
import tifffile
from oracles import random_network

import tilenet
from tilenet.cli import tuning
from tilenet.footprint import Footprint
from tilenet.jobs.options import Options
from tilenet.tuning import Setting, Trial, Tuning, tune

IMAGE = np.random.default_rng(0).integers(0, 200, (3000, 2000), dtype=np.uint8)
MEMORY = 3_000_000_000


class Timed:
    """A predictor that says how long it takes: so much a pass, and so much a pixel."""

    footprint = Footprint.valid(2, step=16, lost=12)

    def __init__(self, a_pass, a_pixel=1e-7):
        self.a_pass, self.a_pixel, self.now, self.shapes = a_pass, a_pixel, 0.0, []

    def clock(self):
        return self.now

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        self.now += self.a_pass + self.a_pixel * batch.size
        inside = batch[..., 12:-12, 12:-12].astype(np.float32)
        return np.concatenate([inside, 100 - inside], axis=1)


def tuned(predictor, *, seconds=1e6, **options):
    options = {"memory": MEMORY, "device": "cpu", "threads": 1} | options
    return tune(IMAGE, predictor, Options(**options), seconds=seconds, clock=predictor.clock)


def test_the_fastest_is_found_and_is_on_the_grid():
    found = tuned(Timed(a_pass=10.0))  # passes are dear: as many pixels in each as fit
    assert found.best.px_per_s == max(trial.px_per_s for trial in found.trials) > found.trials[0].px_per_s
    assert found.gain == pytest.approx(found.best.px_per_s / found.trials[0].px_per_s)
    assert np.prod(found.best.setting.tile) * found.best.setting.batch > 1000**2
    assert len(found.trials) > 3
    for trial in found.trials:
        assert all(side % 16 == 0 for side in trial.setting.tile)
    settings = [trial.setting for trial in found.trials]
    assert len(set(settings)) == len(settings)


def test_rates_are_pixels_written_over_the_time_of_the_fastest_pass_but_the_first():
    predictor = Timed(a_pass=2.0, a_pixel=0)
    found = tuned(predictor, tile=256, batch=1)
    assert [trial.px_per_s for trial in found.trials] == [256 * 256 / 2]
    assert predictor.shapes[-3:] == [(1, 1, 280, 280)] * 3
    assert (1, 1, 280, 280) not in predictor.shapes[:-3]


@pytest.mark.parametrize(("axes", "roi", "passes"), [("zyx", None, 12), ("zyx", "0:1,0:256,256:768", 2)])
def test_the_whole_image_takes_as_long_as_its_tiles(axes, roi, passes):
    predictor, stack = Timed(a_pass=2.0, a_pixel=0), IMAGE[:512, :1536].reshape(512, 2, 768).swapaxes(0, 1)
    options = Options(tile=256, batch=1, threads=1, device="cpu", axes=axes, roi=roi)
    found = tune(stack, predictor, options, seconds=1e6, clock=predictor.clock)
    assert found.pixels == passes * 256 * 256 and found.seconds == pytest.approx(passes * 2.0)


def test_nothing_that_may_not_fit_the_memory_is_tried():
    found = tuned(Timed(a_pass=10.0))
    assert max(trial.n_bytes for trial in found.trials) <= MEMORY
    more = tuned(Timed(a_pass=10.0), memory=3 * MEMORY)
    assert max(trial.n_bytes for trial in more.trials) > MEMORY


def test_what_was_said_is_not_varied():
    found = tuned(Timed(a_pass=10.0), tile=128, batch=2)
    assert {(trial.setting.tile, trial.setting.batch) for trial in found.trials} == {((128, 128), 2)}


def test_what_would_take_too_long_is_left_out_and_said():
    found = tuned(Timed(a_pass=10.0), seconds=35)  # three passes of the default take 30 s
    assert len(found.trials) == 1
    assert found.left_out > 2


class Unsteady(Timed):
    """A predictor whose passes over tiles of 128 px take so much, one after the other, of the time that they should."""

    def __init__(self, shares):
        super().__init__(a_pass=0)
        self.shares = iter(shares)

    def __call__(self, batch):
        before = self.now
        made = super().__call__(batch)
        if batch.shape[-1] == 128 + 2 * 12:
            self.now = before + (self.now - before) * next(self.shares, 1.0)
        return made


@pytest.mark.parametrize("shares", [[1.2] * 3, [1.0] * 4 + [0.8] * 2], ids=["default by chance slow", "other fast"])
def test_what_is_faster_by_chance_is_not_given(shares):
    found = tuned(Unsteady(shares), tile=128)
    assert max(trial.px_per_s for trial in found.trials) > 1.1 * found.trials[0].px_per_s
    assert found.gain == pytest.approx(1) and found.best is found.trials[0]


@pytest.mark.parametrize(("gain", "given"), [(1.04, False), (1.06, True)])
def test_a_gain_of_less_than_five_percent_is_none(gain, given):
    trials = tuple(Trial(Setting((64, 64), batch, 1, "auto"), rate, 1) for batch, rate in ((1, 100.0), (2, 120.0)))
    assert Tuning(trials, 0, gain, pixels=1).best is trials[given]


def test_engines_and_threads_of_a_network_are_varied_and_the_caller_keeps_his():
    import torch

    before = torch.get_num_threads()
    network = random_network(depth=2, wf=5)
    found = tune(IMAGE[:256, :256], network, Options(threads=None, tile=64, batch=1, device="cpu"))
    engines = {trial.setting.engine for trial in found.trials}
    assert engines == {"auto", "plain"}
    assert {trial.setting.threads for trial in found.trials} <= {before, before // 2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("tile", "said"), [((64, 64), "64"), ((8, 64, 32), "8,64,32")])
def test_a_setting_is_said_in_options(tile, said):
    expected = f"--tile {said} --batch 3 --threads 2 --engine plain"
    assert tuning.options_of(Setting(tile, 3, 2, "plain")) == expected


def test_the_command_prints_a_table_and_options_that_segment_takes(tmp_path, tilenet_command):
    slide, model = tmp_path / "slide.tif", tmp_path / "small.safetensors"
    tifffile.imwrite(slide, IMAGE[:200, :300])
    tilenet.save_model(random_network(depth=2, wf=1), model)
    command = ("tune", slide, "--model", model, "--tile", 64, "--seconds", 5)
    code, out, err = tilenet_command(*command)
    assert (code, err) == (0, "")
    assert "Mpx/s" in out
    assert "default" in out
    assert "all 60000 px take less than a minute; reading" in out
    hurried = tilenet_command(*command[:-1], 0)[1]
    assert "more; give more --seconds\nthe defaults, beside which nothing was tried: --tile 64 " in hurried
    code, out, _ = tilenet_command(*command, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["trials"][0]["tile"] == [64, 64]
    rates = [trial["px_per_s"] for trial in found["trials"]]
    assert found["seconds"] == pytest.approx(60_000 / (rates[0] if found["default"] else max(rates)), abs=0.1)
    mask = tmp_path / "mask.zarr"
    code, _, err = tilenet_command("segment", slide, "--model", model, "--out", mask, *shlex.split(found["options"]))
    assert (code, err) == (0, "")
    assert tilenet.open_mask(mask).info["record"]["tile"] == [64, 64]
