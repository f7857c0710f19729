"""Job arrays: the option ``--shard`` and the command ``tilenet finish``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tilenet.cli.options import JSON, QUIET, SHARE
from tilenet.cli.output import progress_bar, remarks, show

shard_option = click.option(
    "--shard",
    type=SHARE,
    help="Write share I of N (from 1) of OUT, beside others; implies --resume. With --objects, run all shares twice.",
)


def share_result(out: Path, into: Path | None, share: tuple[int, int], seconds: float) -> tuple[dict[str, Any], str]:
    """Return the result of a share whose store is not complete yet, as a dict and as text."""
    from tilenet.masks.label_target import open_target
    from tilenet.runs.object_shares import how_far
    from tilenet.runs.shares import written_of

    name, took = "{}/{}".format(*share), {"seconds": round(seconds, 2)}
    result = {"out": str(out), "share": name, "complete": False}
    if found := how_far(out, open_target(into) if into else None):
        result |= {"written": found.written, "blocks": found.blocks, "step": found.step, "to_do": found.to_do}
        return result | took, f"{out}: share {name} done, {found}, {seconds:.1f} s. {found.to_do}"
    written, blocks = written_of(out)
    text = f"{out}: share {name} done, {written} of {blocks} blocks of the mask are there, {seconds:.1f} s"
    return result | {"written": written, "blocks": blocks} | took, text


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@JSON
@QUIET
def finish(out: Path, as_json: bool, quiet: bool) -> None:
    """Finish OUT, all of whose shares are written.

    This verifies it, builds its pyramid and calls it complete. The last share does so by itself; this is for when
    that one was killed.
    """
    from tilenet.runs.shares import finish_shares

    with progress_bar("blocks", out, shown=not quiet) as progress, remarks(shown=not (quiet or as_json)) as said:
        finish_shares(out, progress=progress)
    result = {"out": str(out), "complete": True, "remarks": said}
    show(result, f"{out}: complete, every file verified", as_json=as_json, quiet=quiet)
