"""Blocks computed by Dask workers, and the clusters that these belong to."""
