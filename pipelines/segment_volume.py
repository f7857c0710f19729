"""Segment a large volume with a network of your own, on a few processes.

    python pipelines/segment_volume.py volume.zarr mask.zarr --model network.safetensors --axes zyx --workers 4

A 3-D network runs over zyx, a 2-D network over each plane. The volume is never in memory whole. If the script is
killed, run it again to resume.
"""

import argparse
from pathlib import Path

import tilenet
from tilenet.workers.clusters import local_cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("mask", type=Path)
    parser.add_argument("--model", required=True, help="any that --model of tilenet segment takes")
    parser.add_argument("--axes", help="where the file does not say, such as zyx")
    parser.add_argument("--channel", type=int, help="of a volume with several")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    channels = None if options.channel is None else [options.channel]
    how = {"model": options.model, "axes": options.axes, "channels": channels, "resume": True}
    with local_cluster(options.workers) as client:
        mask = tilenet.segment(options.volume, options.mask, client=client, **how)
    for z in range(0, mask.shape[0], max(1, mask.shape[0] // 8)):
        print(f"plane {z}: {100 * (mask[z] > 0).mean():.1f} % foreground")


# Workers import this file; without the guard each would start a run of its own.
if __name__ == "__main__":
    main()
