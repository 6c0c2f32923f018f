"""The rows of a map, shared out to the cores of a CPU.

OneFlow 0.9 computes all eager operations of a process in one thread, one operation after the other,
and its CPU kernels have no threads within: a second core would do nothing. But it has threads that
a program can ask for (oneflow.asyncs). So a function that treats rows of a map alike is called for
a share of the rows in each lane, forward and backward. Lane 0 is the thread that is there anyway.
It can go when OneFlow's CPU kernels use more than one core.
"""

import os
from contextlib import nullcontext
from functools import cache

import oneflow as flow
from libai.utils import distributed as dist

LEAST_VALUES = 2**16  # of a lane's share: below it costs more to share out than it saves


def rowwise(function, x, *shared, parameters=(), halo: int = 0):
    """function(x, *shared), a share of the rows in each lane.

    In a graph, on a GPU, and where several ranks have the cores, it is just that call.

    Args:
        function: maps (N, rows, W, C) and the shared tensors to (N, rows, W, C'), of which a row
            depends on its own row and on `halo` rows on both sides. It draws no random numbers.
        x: (N, H, W, C).
        parameters: what `function` has parameters of, for their gradients.
    Shape: (N, H, W, C').
    """
    height = x.shape[1]
    lanes = min(lane_count(x), x.numel() // LEAST_VALUES, height)
    if lanes < 2:
        return function(x, *shared)
    bounds = [height * lane // lanes for lane in range(lanes + 1)]
    spans = list(zip(bounds, bounds[1:]))

    def share(x, span, shared):
        first, last = max(span[0] - halo, 0), min(span[1] + halo, height)
        result = function(x.narrow(1, first, last - first), *shared)
        return result.narrow(1, span[0] - first, span[1] - span[0]) if halo else result

    if not flow.is_grad_enabled():
        return flow.cat(in_turn(lambda span: share(x, span, shared), spans, lanes), dim=1)
    return _differentiable(share, spans, x, shared, list(parameters))


def lane_count(x) -> int:
    """The lanes that there are for computations with `x`.

    On a CPU as many as OMP_NUM_THREADS says, as for other libraries' threads; without it one for
    each core of this process.
    """
    device = x.placement.type if x.is_global else x.device.type
    if x.is_lazy or device != "cpu" or dist.get_world_size() > 1:
        return 1
    return core_count()


def core_count() -> int:
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores) if asked.isdigit() and int(asked) else cores


def in_turn(work, items: list, lanes: int) -> list:
    """work(item) of each item, the items dealt to the lanes in turn."""
    results = []
    for index, item in enumerate(items):
        lane = index % lanes
        with flow.asyncs.thread(_thread(lane)) if lane else nullcontext():
            results.append(work(item))
    return results


@cache
def _thread(lane: int):
    return flow.asyncs.Thread()


def _differentiable(share, spans, x, shared, parameters):
    """The same with a backward pass in lanes: OneFlow's own goes on in lane 0 alone."""
    graphs = []  # of each lane its inputs and its result

    def forward_of(span):
        inputs = [tensor.detach().requires_grad_() for tensor in (x, *shared)]
        with flow.enable_grad():
            graphs.append((inputs, share(inputs[0], span, inputs[1:])))
        return graphs[-1][1].detach()

    class Rows(flow.autograd.Function):
        @staticmethod
        def forward(ctx, *_):
            return flow.cat(in_turn(forward_of, spans, len(spans)), dim=1)

        @staticmethod
        def backward(ctx, grad):
            def backward_of(item):
                (start, end), (inputs, result) = item
                part = grad.narrow(1, start, end - start)
                return flow.autograd.grad(result, [*inputs, *parameters], part)

            gradients = in_turn(backward_of, list(zip(spans, graphs)), len(spans))
            graphs.clear()
            return tuple(sum(parts[1:], parts[0]) for parts in zip(*gradients))

    return Rows.apply(x, *shared, *parameters)
