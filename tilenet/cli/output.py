"""What commands print, and where: results on stdout; progress, remarks and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from tilenet.errors import EnvironmentFault

if TYPE_CHECKING:
    from tilenet.runner import Report
    from tilenet.store import Progress

# Shortest time in seconds for which a rate is meaningful.
MIN_SECONDS = 0.01
# Seconds until a log gets the first line of progress, and between the lines.
FIRST_LINE, NEXT_LINE = 60, 600
# The stages of a run, and what `profile_rows` says about each.
STAGES = {
    "read": "tiles read, by all readers together, in parallel with the network",
    "waited": "the network waited for tiles",
    "computed": "the network ran, and its output was decided upon",
    "written": "blocks written, in parallel with the network",
    "objects": "objects found and numbered",
    "finished": "pyramid built, and every file checked",
}


@contextmanager
def progress_bar(unit: str, name: str | Path, *, shown: bool) -> Iterator[Progress | None]:
    """Show the progress of an output on stderr: a bar in a terminal, else lines with its name."""
    if not (shown and sys.stderr):
        yield None
        return
    if not sys.stderr.isatty():
        yield _ProgressLines(unit, name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None, rate="")

        def advance(done: int, total: int) -> None:
            rate = _rate(unit, done, total, bars.tasks[task].speed or 0)
            bars.update(task, completed=done, total=total, rate=rate)

        yield advance


class _ProgressLines:
    """Progress for logs: a line after a minute, so that short runs have none, and then every ten minutes."""

    def __init__(self, unit: str, name: str | Path) -> None:
        self._unit, self._name, self._due = unit, name, monotonic() + FIRST_LINE
        self._last: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = monotonic()
        if self._last is None or done < self._last[1]:  # what an earlier run or step has done is no speed of this one
            self._last = (now, done)
        began, before = self._last
        if now < self._due or not before < done < total:
            return
        speed = (done - before) / (now - began)
        rate, left = _rate(self._unit, done, total, speed), time_text((total - done) / speed)
        tell(f"tilenet: {self._name}: {done / total:.0%} done, {rate}, about {left} left")
        self._due, self._last = now + NEXT_LINE, (now, done)


def time_text(seconds: float) -> str:
    """Return a time in minutes or hours.

    >>> time_text(5), time_text(600), time_text(36_000)
    ('1 min', '10 min', '10.0 h')
    """
    minutes = seconds / 60
    return f"{max(minutes, 1):.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _rate(unit: str, done: int, total: int, speed: float) -> str:
    return f"{speed / 1e6:.2f} M{unit}/s" if unit == "px" else f"{done}/{total} {unit}"


class _Remarks(logging.Handler):
    def __init__(self, level: int, *, shown: bool) -> None:
        super().__init__(level)
        self.lines: list[str] = []
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        said, _, advice = line.rpartition(". ")
        if line in self.lines or said in self.lines:  # both outputs of one command may say it
            return
        if said and any(other.endswith(f". {advice}") for other in self.lines):  # advice is given once in a batch
            line = said
        self.lines.append(line)
        if self._shown:
            tell(f"tilenet: {line}")


@contextmanager
def remarks(*, shown: bool, level: int = logging.INFO) -> Iterator[list[str]]:
    """Collect the package's log messages, such as which level a run reads, and show them on stderr."""
    handler, log = _Remarks(level, shown=shown), logging.getLogger("tilenet")
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield handler.lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def show(result: dict[str, Any], text: str, *, as_json: bool, quiet: bool = False) -> None:
    """Print a result as text for people, or as JSON for programs."""
    if not quiet:
        say(json.dumps(result) if as_json else text)


def say(text: str) -> None:
    """Print on stdout; raise `EnvironmentFault` if it cannot be written, such as to a full disk."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        print_nothing_more()
        raise EnvironmentFault(f"stdout: cannot be written ({error.strerror}). Only what is printed is lost") from error


def tell(line: str) -> None:
    """Print a line on stderr, and ignore it if stderr cannot be written."""
    with suppress(OSError):
        # Control characters in a file's name, or in content that a library quotes, must not reach the terminal.
        click.echo("".join(c if c.isprintable() else "?" for c in line), err=True)


def print_nothing_more() -> None:
    """Discard everything written to stdout from now on: otherwise Python would try to flush it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def reader_has_gone() -> bool:
    """Return whether nobody reads stdout any more, such as after ``| head``."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    return bool(stdout.poll(0))


def plain(value: Any) -> str:
    """Return a value as one line of text, with seven digits of every number that is no integer.

    >>> plain([0.3460559834973875, 2, None])
    '[0.346056, 2, null]'
    """
    return value if isinstance(value, str) else json.dumps(_rounded(value))


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.7g}")
        case list() | tuple():
            return [_rounded(entry) for entry in value]
        case dict():
            return {key: _rounded(entry) for key, entry in value.items()}
    return value


def profile_of(report: Report) -> dict[str, Any]:
    """Return the seconds that each stage of a run took, and its pixels per second."""
    seconds = {stage: getattr(report, stage) for stage in STAGES if stage != "objects" or report.objects}
    seconds["total"] = report.seconds + report.objects + report.finished
    rate = {stage: round(report.pixels / spent) if spent else None for stage, spent in seconds.items()}
    exact = {stage: round(spent, 6) for stage, spent in seconds.items()}
    return {"pixels": report.pixels, "seconds": exact, "px_per_s": rate}


def profile_rows(profile: dict[str, Any]) -> list[str]:
    """Return a table of where the time went, line by line."""
    rows = [f"{'':<9} {'seconds':>9} {'Mpx/s':>9}"]
    for stage, seconds in profile["seconds"].items():
        rate = profile["px_per_s"][stage]
        said = f"{rate / 1e6:>9.2f}" if rate and seconds >= MIN_SECONDS else f"{'-':>9}"
        rows.append(f"{stage:<9} {seconds:>9.2f} {said}  {STAGES.get(stage, '')}".rstrip())
    return rows
