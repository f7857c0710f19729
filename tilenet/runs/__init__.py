"""Runs: their outputs, begun or resumed; numbered objects; job arrays that share one mask."""
