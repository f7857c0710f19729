"""Which modules' examples are run."""

from importlib.util import find_spec

# They import Triton, which PyTorch for CUDA brings along, and the one for CPUs does not.
collect_ignore = (
    [] if find_spec("triton") else [f"tilenet/fast/{name}.py" for name in ("kernels", "frames", "frame_network")]
)
