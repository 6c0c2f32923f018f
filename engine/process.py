"""How a process of this project starts: import this module before all others.

It sets what OneFlow reads from the environment, where a value that is there already stays, and
loads OneFlow and LiBai.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from contextlib import contextmanager, suppress
from types import ModuleType

# ---- Ranks --------------------------------------------------------------------------------------

# Only a training has several processes, and what tools/launch.py starts. Any other would wait for
# the ranks of a training whose variables are left over in the shell.
_launched = "SEGFORMER_PROGRESS" in os.environ
if not _launched and os.path.basename(sys.argv[0]) != "train_net.py":
    for _name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(_name, None)
for _name in ("MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
    # OneFlow itself leaves a rank of -1 to the processes that one of its own starts.
    if not os.environ.get(_name, "0").removeprefix("-").isdecimal():
        sys.exit(f"error: {_name}={os.environ[_name]} in the environment is no number: unset it")
_ranks = int(os.environ.get("WORLD_SIZE", 1))

# ---- What OneFlow reads -------------------------------------------------------------------------

with open("/proc/cpuinfo") as _info:
    _flags = next((set(line.split()) for line in _info if line.startswith("flags")), set())

# OpenBLAS takes a generic kernel, down to a fifth as fast, on CPUs that are newer than itself. Each
# library has its own and reads these variables when it is loaded: that of NumPy 1.23 knows kernels
# for AVX-512, that of OneFlow 0.9.0 does not.
if "OPENBLAS_CORETYPE" not in os.environ and {"avx2", "fma"} <= _flags:
    _avx512 = {f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl")} <= _flags
    os.environ["OPENBLAS_CORETYPE"] = "SkylakeX" if _avx512 else "Haswell"
    import numpy  # noqa: F401

    os.environ["OPENBLAS_CORETYPE"] = "Haswell"

# Where there is no GPU what OneFlow itself computes is small, and handing it to a second thread
# takes longer: up to 1 ms for each parameter that is read after a step.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD", "0")

# Errors only: without it every process warns about the CUDA driver on a machine without a GPU.
os.environ.setdefault("GLOG_minloglevel", "2")

# OneFlow 0.9.0 keeps what it has inferred of each eager operation, 50 kB a training step for ever.
# A step has some hundred operations; beyond this number it forgets.
os.environ.setdefault("ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE", "2000")

# LiBai asks for a setting that train_net.py fills in, and that one process has no use for.
logging.getLogger("libai.utils.distributed").addFilter(
    lambda record: "train.dist.pipeline_num_layers" not in record.getMessage()
)

# ---- Loading it ---------------------------------------------------------------------------------

NOISE = b"libibverbs not available"  # each process, on each machine without InfiniBand
A_WORD_EVERY = 30  # seconds
LOADED = b"\0"


def _load_oneflow() -> None:
    """Import OneFlow, whose lines to standard error go through a process that leaves out NOISE.

    A process and not a thread: while OneFlow waits for other ranks no Python code runs in this one.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        return
    reader, writer = os.pipe()
    listener = os.fork()
    if listener == 0:
        try:
            os.close(writer)
            _pass_on(reader, stderr)
        finally:
            os._exit(0)
    os.dup2(writer, 2)
    try:
        if _ranks > 1 and int(os.environ.get("RANK", 0)) > 0:
            _wait_for_rank_0()
        import oneflow  # noqa: F401
    finally:
        os.write(writer, LOADED)
        os.dup2(stderr, 2)
        for descriptor in (reader, writer, stderr):
            os.close(descriptor)
        with suppress(ChildProcessError):  # a parent that ignores SIGCHLD leaves that to us
            os.waitpid(listener, 0)


def _wait_for_rank_0() -> None:
    """Until it listens. OneFlow's other ranks ask for it once, and then every ten seconds: started
    together, as they are, all would wait for ten seconds.

    It can go when OneFlow asks more often.
    """
    address = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", 0))
    while True:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except (ConnectionRefusedError, TimeoutError):
            time.sleep(0.02)
        except OSError:  # OneFlow says what is wrong
            return


def _pass_on(reader: int, stderr: int) -> None:
    """Until OneFlow is loaded, or its process has ended; that ends it if its ranks do not come."""
    left, waited, limit = b"", 0, int(os.environ.get("NODE_WAIT") or 600)
    while True:
        if not select.select([reader], [], [], A_WORD_EVERY)[0]:
            waited += A_WORD_EVERY
            if _ranks > 1 and not _launched:
                _say_who_is_missing(stderr, waited, limit)
            continue
        data = os.read(reader, 65536)
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            if NOISE not in line:
                os.write(stderr, line + b"\n")
        if not data or left.endswith(LOADED):
            os.write(stderr, left.rstrip(LOADED))
            return


def _say_who_is_missing(stderr: int, waited: int, limit: int) -> None:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    words = f"rank {os.environ.get('RANK')} of WORLD_SIZE={_ranks} waits for the others at {where}"
    if waited < limit:
        os.write(stderr, f"{words}, {waited} s\n".encode())
        return
    os.write(
        stderr,
        f"error: {words}, and they did not come within {limit} s (NODE_WAIT): start them, or unset "
        "WORLD_SIZE and RANK for one process\n".encode(),
    )
    os.kill(os.getppid(), signal.SIGTERM)


class _Unused(ModuleType):
    """In the place of a module of which nothing is called here."""

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _in_place_of(name: str, stand_in: ModuleType | None):
    """Within, that is imported for the module `name`; None is as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


if "oneflow" not in sys.modules:
    _load_oneflow()

# Half of the time of a start: LiBai takes two correlations from SciPy for evaluations of other
# projects, and tensorboardX PyTorch, where it is there, for what this project does not write.
with _in_place_of("scipy.stats", _Unused("scipy.stats")), _in_place_of("torch", None):
    import libai.engine  # noqa: F401
    import tensorboardX  # noqa: F401
