"""Which modules' examples are run."""

from importlib.util import find_spec

# They import Triton, which PyTorch for CUDA brings along, and the one for CPUs does not.
collect_ignore = [] if find_spec("triton") else ["tilenet/kernels.py", "tilenet/frames.py", "tilenet/framed.py"]
