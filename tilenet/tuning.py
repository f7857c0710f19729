"""Measure which settings are fastest on this machine: only when the user asks, never during a run.

Tile, engine, threads and batch are varied one after the other, and the fastest setting so far is kept.
Options that the caller gave stay as they are. Settings that exceed the memory, or would not finish in
time, are not tried.

The fastest setting of this search may be so by chance, or because the machine became faster meanwhile. So it is then
compared with the default: both run in turn, several times, and only a clear gain in the medians counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from tilenet import machine
from tilenet.jobs.job import Job
from tilenet.jobs.options import Options
from tilenet.jobs.setup import make_job
from tilenet.plan import Tile
from tilenet.predict.memory import demand_of
from tilenet.runner import deciding
from tilenet.scaling import Scaling
from tilenet.sizes import DEFAULT_MEMORY, plan_tiles

SECONDS = 60.0
# Passes per setting. The first one allocates memory and is not counted; the fastest of the others counts.
PASSES = 3
# Sides of the tiles to try, relative to the default: numerator, denominator.
FACTORS = ((1, 2), (1, 4), (2, 1))
# How often the fastest setting and the default run in turn, and from which gain on the default is not as fast.
TURNS, GAIN = 5, 1.05


@dataclass(frozen=True)
class Setting:
    """The settings that are varied."""

    tile: tuple[int, ...]
    # Tiles per batch; 0 for as many as the plan chooses.
    batch: int
    threads: int
    # May be ``auto``.
    engine: str


@dataclass(frozen=True)
class Trial:
    """One measurement: the pixels per second of network and decision alone, and the bytes that a run may take."""

    setting: Setting
    px_per_s: float
    n_bytes: int


@dataclass(frozen=True)
class Tuning:
    """What `tune` measured."""

    # The trials, the default first.
    trials: tuple[Trial, ...]
    # How many settings were not tried for lack of time.
    left_out: int
    # How many times as fast as the default the fastest trial is, in the medians of runs in turn; 1 if it is the
    # default itself.
    gain: float
    # How many pixels the mask of the image has.
    pixels: int

    @property
    def best(self) -> Trial:
        """The fastest trial if its gain is clear, else the default."""
        return fastest(self.trials) if self.gain >= GAIN else self.trials[0]

    @property
    def seconds(self) -> float:
        """How long the whole image takes with the best setting, if only the network and the decision take time."""
        return self.pixels / self.best.px_per_s


def fastest(trials: Sequence[Trial]) -> Trial:
    """Return the fastest trial, the first of several."""
    return max(trials, key=lambda trial: trial.px_per_s)


def tune(
    source: Any,
    model: Any,
    options: Options,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = perf_counter,
) -> Tuning:
    """Measure settings on a batch of real tiles from the middle of an image; options that are given are not varied.

    A setting that is expected to take longer than `seconds`, with its comparison with the default, is not tried. The
    default setting always is. `clock` returns the time in seconds.
    """
    with make_job(source, model, options) as job:
        search = _Search(job, options, deadline=clock() + seconds, clock=clock)
        for vary in (search.tiles, search.engines, search.threads, search.batches):
            for setting in list(vary(fastest(search.trials).setting)):
                search.attempt(setting)
        return Tuning(tuple(search.trials), search.left_out, search.gain(), prod(job.plan.shape))


class _Passes:
    """Passes of one setting over one batch of tiles from the middle of the image."""

    def __init__(self, job: Job, threads: int, scaling: Scaling, clock: Callable[[], float]) -> None:
        self._tiles, self._threads, self._clock, self._decision = _middle_batch(job), threads, clock, job.decision
        self._batch = np.concatenate([job.read(tile) for tile in self._tiles])
        self._predictor = deciding(job.predictor(scaling))

    def rate(self) -> float:
        """Make one pass, and return the pixels written per second."""
        with machine.threads(self._threads):
            started = self._clock()
            self._predictor.begin(self._batch, self._tiles, self._decision)()
            return sum(tile.write.size for tile in self._tiles) / (self._clock() - started)


class _Search:
    def __init__(self, job: Job, options: Options, *, deadline: float, clock: Callable[[], float]) -> None:
        self._job, self._options, self._clock, self._deadline = job, options, clock, deadline
        self._scaling = job.resolve_scaling()
        self._memory = DEFAULT_MEMORY if options.memory is None else options.memory
        self.trials: list[Trial] = []
        self.left_out = 0
        tile = job.plan.tile[-job.footprint.ndim :]
        self._measure(job, Setting(tile, job.plan.batch, job.record["threads"], options.engine or "auto"))

    def tiles(self, now: Setting) -> Iterator[Setting]:
        """Yield settings with smaller and larger tiles, multiples of the footprint's step."""
        steps = self._job.footprint.step
        for a, b in FACTORS if self._options.tile is None else ():
            tile = tuple(side * a // b for side in now.tile)
            if all(side * a % (b * step) == 0 for side, step in zip(now.tile, steps, strict=True)):
                yield replace(now, tile=tile, batch=0)

    def engines(self, now: Setting) -> Iterator[Setting]:
        """Yield the setting with the plain engine, if the default engine is another."""
        if self._options.engine is None and self._job.record["engine"] != "plain":
            yield replace(now, engine="plain")

    def threads(self, now: Setting) -> Iterator[Setting]:
        """Yield the setting with half the threads: two threads on one core may only slow each other down."""
        if self._options.threads is None and self._job.device == "cpu" and now.threads > 1:
            yield replace(now, threads=now.threads // 2)

    def batches(self, now: Setting) -> Iterator[Setting]:
        """Yield the settings with one tile per batch, and with twice as many as now."""
        if self._options.batch is None:
            yield from (replace(now, batch=n) for n in sorted({1, 2 * now.batch} - {now.batch}))

    def attempt(self, setting: Setting) -> None:
        """Measure a setting, unless it takes too much memory or time, or equals one already measured."""
        job = self._with(setting)
        setting = replace(setting, batch=job.plan.batch)
        if _bytes_of(job) > self._memory or setting in {trial.setting for trial in self.trials}:
            return
        here, default = (sum(tile.write.size for tile in _middle_batch(j)) for j in (job, self._job))
        # The passes of the trial, and those of the comparison.
        expected = ((PASSES + 1 + TURNS) * here + (1 + TURNS) * default) / self.trials[0].px_per_s
        if self._clock() + expected > self._deadline:
            self.left_out += 1
        else:
            self._measure(job, setting)

    def gain(self) -> float:
        """Return how many times as fast as the default the fastest setting is; see `Tuning`."""
        default, other = self.trials[0].setting, fastest(self.trials).setting
        if other == default:
            return 1.0
        passes = [self._passes(self._job, default), self._passes(self._with(other), other)]
        rates = [[each.rate() for each in passes] for _ in range(1 + TURNS)][1:]  # the first allocate memory
        before, after = (float(median(of_one)) for of_one in zip(*rates, strict=True))
        return after / before

    def _with(self, setting: Setting) -> Job:
        job = self._job
        engine = "plain" if setting.engine == "plain" else job.record["engine"]
        precision, device = job.record["precision"], job.record["device"]
        demand = demand_of(job.network, job.footprint, precision, job.image.n_channels, engine=engine, device=device)
        plan = plan_tiles(
            job.plan.shape,
            job.footprint,
            tile=setting.tile,
            batch=setting.batch or None,
            memory=self._memory,
            demand=demand,
            origin=job.plan.origin,
        )
        return replace(
            job, plan=plan, demand=demand, record=job.record | {"threads": setting.threads, "engine": engine}
        )

    def _passes(self, job: Job, setting: Setting) -> _Passes:
        return _Passes(job, setting.threads, self._scaling, self._clock)

    def _measure(self, job: Job, setting: Setting) -> None:
        passes = self._passes(job, setting)
        rates = [passes.rate() for _ in range(PASSES)]
        self.trials.append(Trial(setting, max(rates[1:]), _bytes_of(job)))


def _middle_batch(job: Job) -> Sequence[Tile]:
    """Return a batch of tiles from the middle of the image."""
    return next(job.plan[len(job.plan) // 2].batches(job.plan.batch))


def _bytes_of(job: Job) -> int:
    needs = job.needs()
    return needs["device_bytes"] or needs["host_bytes"]
