"""Segment every slide of a folder, on a few processes or on a cluster.

    python pipelines/segment_folder.py slides/ masks/ --workers 4
    python pipelines/segment_folder.py slides/ masks/ --cluster pipelines/cluster_slurm.yaml

If it is killed, run it again: complete masks are skipped, and incomplete ones are resumed.
"""

import argparse
from pathlib import Path

import tilenet
from tilenet.workers.clusters import described_cluster, local_cluster

ENDINGS = {".svs", ".ndpi", ".tif", ".tiff", ".zarr"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cluster", type=Path, help="a cluster file, in place of --workers")
    options = parser.parse_args()
    images = sorted(path for path in options.slides.iterdir() if path.suffix.lower() in ENDINGS)
    with described_cluster(options.cluster) if options.cluster else local_cluster(options.workers) as client:
        results = tilenet.batch(images, options.masks, model=options.model, client=client, tell=print)
    for result in results:
        if result.status != "failed":
            mask = tilenet.open_mask(options.masks / f"{result.slide}.zarr")
            coarsest = mask.levels[-1][...]
            names = " or ".join(mask.info["card"]["labels"].values())
            print(f"{result.slide}: {100 * (coarsest > 0).mean():.1f} % of the pixels are {names}")


# Workers import this file; without the guard each would start a batch of its own.
if __name__ == "__main__":
    main()
