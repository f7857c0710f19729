"""Models: their weights on disk, packaged ones, and networks by name."""
