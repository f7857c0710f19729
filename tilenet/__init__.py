"""Exact, seamless segmentation of images too large for memory."""
