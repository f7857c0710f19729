"""Scores of a segmentation against the truth: pixels, objects, partitions.

Everything is counted first and divided last, so that counts of several images can be added
(``a + b``) and scored together. Nothing here depends on networks or files.
"""

from tilenet.metrics.objects import (
    AP_THRESHOLDS,
    THRESHOLDS,
    ObjectCounts,
    count_objects,
    mean_average_precision,
    panoptic_quality,
)
from tilenet.metrics.partitions import PartitionScores, information_scores, rand_scores, thin_borders
from tilenet.metrics.pixels import PixelCounts, count_pixels, dice, iou, pixel_error

__all__ = [
    "AP_THRESHOLDS",
    "THRESHOLDS",
    "ObjectCounts",
    "PartitionScores",
    "PixelCounts",
    "count_objects",
    "count_pixels",
    "dice",
    "information_scores",
    "iou",
    "mean_average_precision",
    "panoptic_quality",
    "pixel_error",
    "rand_scores",
    "thin_borders",
]
