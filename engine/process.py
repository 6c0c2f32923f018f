"""What OneFlow reads from the environment when it is loaded: import this module before it.

A value that is already in the environment stays.
"""

import os

with open("/proc/cpuinfo") as _info:
    _flags = next((set(line.split()) for line in _info if line.startswith("flags")), set())

# The OpenBLAS inside OneFlow 0.9.0 takes a generic kernel, half as fast, on CPUs that are newer
# than itself. Haswell's kernels are the best that it has for them.
if {"avx2", "fma"} <= _flags:
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")

# Errors only: without it every process warns about the CUDA driver on a machine without a GPU.
os.environ.setdefault("GLOG_minloglevel", "2")

# OneFlow 0.9.0 keeps what it has inferred of each eager operation, 50 kB a training step for ever.
# A step has some hundred operations; beyond this number it forgets.
os.environ.setdefault("ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE", "2000")
