"""Measure speed and write the tables in README.md and docs/figures.md, or only write the tables.

    python benchmarks/table.py             twenty minutes on a quiet machine; results go to benchmarks/speed.json
    python benchmarks/table.py --write     the tables from benchmarks/speed.json, without measuring

Runs `efficiency.py` for three networks, and `peers.py`. What they gave goes between two markers on each page: all of it
into docs/figures.md; into the README each way with the tile size that is fastest for it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
README, FIGURES, RESULTS = HERE.parent / "README.md", HERE.parent / "docs" / "figures.md", HERE / "speed.json"
BEGIN, END = "<!-- speed: python benchmarks/table.py -->\n", "<!-- end of speed -->"
EFFICIENCY = (["--wf", "6", "--rounds", "2"], ["--wf", "5"], ["--model", "nuclei", "--rounds", "3"])
PEERS = ("--side", "3072", "--tiles", "256", "512", "1024", "1536")
NAMES = {"depth 5, wf 6": "the paper's (depth 5, wf 6)", "nuclei": "the packaged one (depth 4, wf 4)"}


def measured(script, *arguments):
    """Return what a benchmark prints as JSON."""
    command = [sys.executable, str(HERE / script), *arguments, "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def measure():
    """Return all results; takes some twenty minutes, during which nothing else should run."""
    return {
        "efficiency": [measured("efficiency.py", *network) for network in EFFICIENCY],
        "peers": measured("peers.py", *PEERS),
    }


def efficiency_table(results):
    """Return a table with one row per network: efficiency and speed of each way."""
    rows = [
        "| network | whole command | same engine, in memory | plain, channels last | the paper's loop |",
        "|---|---|---|---|---|",
    ]
    for found in results:
        ways = {row["way"]: f"**{row['efficiency']:.2f}**, {row['px_per_s'] / 1e6:.2f} Mpx/s" for row in found["rows"]}
        cells = [ways["command"], *(ways[way].replace("*", "") for way in ("network", "plain", "paper loop"))]
        rows.append(f"| {NAMES.get(found['model'], found['model'])} | {' | '.join(cells)} |")
    return "\n".join(rows)


def at_their_best(rows):
    """Return the fastest row of each way."""
    ways = dict.fromkeys(row["way"] for row in rows)
    return [max((row for row in rows if row["way"] == way), key=lambda row: row["px_per_s"]) for way in ways]


def peers_table(rows_found):
    """Return a table with one row per way and tile size."""
    rows = [
        "| way, tile | px/s | peak memory | error at seams | error at the border | tilenet is faster by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows_found:
        errors = " | ".join(f"{row[name]:.0e}" if row[name] else "none" for name in ("seams", "border"))
        times = f"{row['times']:.1f}" if row["times"] else ""
        name = f"{row['way']}, {row['tile']}" if row["way"] != "whole" else "one pass over the whole image"
        rows.append(f"| {name} | {row['px_per_s']:,} | {row['peak_bytes'] / 1e9:.2f} GB | {errors} | {times} |")
    return "\n".join(rows)


def render(results):
    """Return the text between the markers of the README."""
    peers = results["peers"]
    commands = [{row["way"]: row for row in found["rows"]}["command"] for found in results["efficiency"]]
    paper, half, packaged = (f"{row['efficiency']:.2f}" for row in commands)
    return f"""{BEGIN}
{peers_table(at_their_best(peers["rows"]))}

The network has depth 5 and 2^{peers["wf"]} channels in its first block; each way takes a slide of {peers["side"]} px a
side from file to mask, with the tile that is fastest for it. The errors are the largest differences of the logits from
one pass over the mirrored image, as a fraction of their range. The paper's loop does not lay its tiles on the network's
pooling grid; `map_overlap` has no seams here because we gave it an overlap that fits the network and chunks that fit
the grid. At the border MONAI pads with zeros and Dask repeats the edge pixel. The last column compares with the fastest
tile of tilenet that takes no more memory. `benchmarks/peers.py`; [all tiles](docs/figures.md#speed-on-a-cpu).

From file to mask, useful work (without the halo) runs at {paper} times the rate of a matrix product for the paper's
network, {half} times for the one of the table, and {packaged} times for the packaged one (at
{commands[2]["px_per_s"] / 1e6:.1f} Mpx/s). More than 1 is possible because Winograd's convolutions need fewer products
([more](docs/figures.md#speed-on-a-cpu)).

{END}"""


def render_figures(results):
    """Return the text between the markers of docs/figures.md."""
    return f"""{BEGIN}
{efficiency_table(results["efficiency"])}

The comparison with others, with all tile sizes. The last column is empty where no tile of tilenet takes as little
memory. The errors were measured on a corner of the slide that is larger than the tile, at least 128 px from its border
(seams) and nearer to it:

{peers_table(results["peers"]["rows"])}

{END}"""


def put(path, text):
    """Replace the text between the markers of a page, markers included."""
    page = path.read_text(encoding="utf-8")
    before, after = page.index(BEGIN), page.index(END) + len(END)
    path.write_text(page[:before] + text + page[after:], encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="do not measure")
    if not parser.parse_args().write:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    put(README, render(results))
    put(FIGURES, render_figures(results))


if __name__ == "__main__":
    main()
