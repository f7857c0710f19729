"""The command ``tilenet tune``: parses, calls, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tilenet.byte_counts import gigabytes
from tilenet.cli.options import JSON, FiniteRange, image_options
from tilenet.cli.output import remarks, show, time_text
from tilenet.geometry import sides_text

if TYPE_CHECKING:
    from tilenet.tuning import Setting, Tuning


@click.command()
@click.argument("image")
@image_options
@click.option(
    "--seconds", type=FiniteRange(0), default=60, show_default=True, help="Start no new trial after this time."
)
@JSON
def tune(image: str, seconds: float, as_json: bool, **options: Any) -> None:
    """Measure which settings segment IMAGE fastest here.

    These are tiles, engines, threads and batches; it says which options to give to segment. Options given are kept
    fixed; nothing above --memory is tried. No default is changed.
    """
    from tilenet import machine
    from tilenet.jobs.options import Options
    from tilenet.tuning import tune as measure

    machine.keep_freed_memory()
    with remarks(shown=not as_json) as said:
        found = measure(image, options.pop("model"), Options(**options), seconds=seconds)
    trials = [{**vars(t.setting), "px_per_s": round(t.px_per_s), "bytes": t.n_bytes} for t in found.trials]
    best = options_of(found.best.setting)
    default = found.best is found.trials[0]
    result = {
        "trials": trials,
        "options": best,
        "default": default,
        "gain": round(found.gain, 3),
        "left_out": found.left_out,
        "pixels": found.pixels,
        "seconds": round(found.seconds, 1),
        "remarks": said,
    }
    show(result, "\n".join(_rows(found, best)), as_json=as_json)


def options_of(setting: Setting) -> str:
    """Return the options that give ``tilenet segment`` a setting."""
    same = len({*setting.tile}) == 1
    tile = str(setting.tile[0]) if same else ",".join(map(str, setting.tile))
    return f"--tile {tile} --batch {setting.batch} --threads {setting.threads} --engine {setting.engine}"


def _rows(found: Tuning, best: str) -> list[str]:
    """Return a table of the trials and the options to give, line by line."""
    rows = [f"{'tile':>15} {'batch':>6} {'threads':>8} {'engine':>7} {'Mpx/s':>8} {'memory':>9}"]
    for trial in found.trials:
        s = trial.setting
        note = "  default" if trial is found.trials[0] else ""
        numbers = f"{trial.px_per_s / 1e6:>8.3f} {gigabytes(trial.n_bytes):>9}"
        rows.append(f"{sides_text(s.tile):>15} {s.batch:>6} {s.threads:>8} {s.engine:>7} {numbers}{note}")
    if found.left_out:
        rows.append(f"not tried for want of time: {found.left_out} more; give more --seconds")
    if found.best is found.trials[0]:
        alone = found.left_out and len(found.trials) == 1
        rows.append(f"the defaults, {'beside which nothing was tried' if alone else 'as fast as any'}: {best}")
    else:
        rows.append(f"give: {best}  ({found.gain:.2f} times as fast as the defaults, run in turn with them)")
    took = f"about {time_text(found.seconds)}" if found.seconds >= 60 else "less than a minute"
    rows.append(f"with these, all {found.pixels} px take {took}; reading, writing and objects add to it")
    return rows
