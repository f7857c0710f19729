"""Which modules' examples are run, in which order processes take files, and what they never look through again."""

import gc
from importlib.util import find_spec

import pytest

# They import Triton, which PyTorch for CUDA brings along, and the one for CPUs does not.
collect_ignore = (
    [] if find_spec("triton") else [f"tilenet/fast/{name}.py" for name in ("kernels", "frames", "frame_network")]
)


def pytest_configure(config):
    """Have processes take files by their names: the last ones are many short ones.

    Else pytest-xdist puts those of the fewest tests last, which are some of the longest, and gives them to one process.
    """
    config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Have the garbage collector leave alone the half million objects of modules and tests: they stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
