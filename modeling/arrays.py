"""Layers on NumPy arrays: how the model computes in eager mode on a CPU.

OneFlow's own CPU operators have no threads, and every change between its tensors and NumPy costs a
wait. So a module that is called with OneFlow's tensors on a CPU (`on_cpu`) goes through all of its
layers with this rank's part of them as arrays, and is one operation for OneFlow: what `cpu_kernels`
computes is recorded here, and played back for the gradients.
"""

from collections.abc import Callable, Iterator
from functools import wraps

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from oneflow import nn
from oneflow.autograd import Function


class Array:
    """This rank's part of a tensor on its way through the layers.

    Args:
        values: float32.
        run: the pass through the layers that it belongs to.
        slot: where its gradient is gathered; None where none is wanted.
    """

    __slots__ = ("values", "run", "slot")

    def __init__(self, values: np.ndarray, run: "Run", slot: "Slot | None" = None):
        self.values, self.run, self.slot = values, run, slot

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def learns(self) -> bool:
        return self.slot is not None

    def __add__(self, other: "Array") -> "Array":
        return _add(self, other)

    def __mul__(self, factors: "Array") -> "Array":
        """By one factor for each index of the last axis."""
        return _multiply(self, factors)

    def transpose(self, *axes: int) -> "Array":
        return _transpose(self, axes=axes)

    def reshape(self, *shape: int) -> "Array":
        return _reshape(self, shape=shape)

    def narrow(self, axis: int, start: int, length: int) -> "Array":
        return _narrow(self, part=(*[slice(None)] * axis, slice(start, start + length)))


class Slot:
    """The gradient of one array."""

    __slots__ = ("gradient",)

    def __init__(self):
        self.gradient = None

    def add(self, gradient: np.ndarray) -> None:
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


class Run:
    """One pass through layers: the operations in their order, for the way back.

    Args:
        learns: whether gradients are asked for.
    """

    def __init__(self, learns: bool):
        self.learns = learns
        self._is_back = False
        self._operations = []
        self._leaves = {}

    def take(self, value: "Array | flow.Tensor | None") -> Array | None:
        """An operation's argument as an array: a parameter or an input once for the whole run."""
        if value is None or isinstance(value, Array):
            return value
        if id(value) not in self._leaves:
            values = local_values(value)
            if values.dtype in (np.float16, np.float64):
                values = values.astype(np.float32)
            self._add_leaf(value, values)
        return self._leaves[id(value)][0]

    def take_together(self, parameters: list[flow.Tensor]) -> None:
        """Take all parameters by one change from OneFlow to NumPy.

        That waits for OneFlow's thread, which takes 60 us, and 3 ms where the cores are busy. A
        copy of the parameters takes less than a wait for each of them.
        """
        parts = [_whole_for_data(parameter).to_local() for parameter in parameters]
        if not parts:
            return
        together = flow.cat([part.reshape(-1) for part in parts]).numpy()
        ends = np.cumsum([part.numel() for part in parts])
        for parameter, part, values in zip(parameters, parts, np.split(together, ends[:-1])):
            self._add_leaf(parameter, values.reshape(tuple(part.shape)))

    def _add_leaf(self, tensor: flow.Tensor, values: np.ndarray) -> None:
        slot = Slot() if self.learns and tensor.requires_grad else None
        # With the tensor, so that no other one gets its id.
        self._leaves[id(tensor)] = Array(values, self, slot), tensor

    def give(self, result, inputs: list[Array | None], backward: Callable):
        """An operation's result, recorded where one of its inputs wants a gradient."""
        slots = [None if array is None else array.slot for array in inputs]
        results = result if isinstance(result, tuple) else (result,)
        learns = any(slots)
        arrays = tuple(Array(values, self, Slot() if learns else None) for values in results)
        if learns:
            self._operations.append(([array.slot for array in arrays], slots, backward))
        return arrays if isinstance(result, tuple) else arrays[0]

    def as_one_operation(self, result):
        """What the run resulted in, arrays in lists, tuples and dicts, as tensors.

        They have a gradient if one is asked for: once, since going back frees what was saved.
        """
        leaves = self._leaves.values()
        sources = [(tensor, array.slot) for array, tensor in leaves if array.learns]
        self._leaves.clear()  # they know this run: they would wait for the garbage collector
        if not sources:
            return _mapped(result, Array, _as_tensor)
        arrays = list(_found(result, Array))
        ends = [(array.slot, _sbp_of(array)) for array in arrays]
        tensors = tuple(map(_as_tensor, arrays))
        result = _mapped(result, Array, arrays.index)
        del arrays

        def forward(ctx, *_):
            return tensors

        def backward(ctx, *gradients):
            if self._is_back:
                raise RuntimeError(
                    "backward a second time through a module on a CPU: add up the losses and call "
                    "backward once"
                )
            self._is_back = True
            for (slot, sbp), gradient in zip(ends, gradients):
                if slot is not None:
                    slot.add(local_values(gradient.to_global(sbp=sbp)))
            self._go_back()
            return tuple(_gradient(*source) for source in sources)

        # Function.apply takes both from a class, and a class keeps what they hold until the garbage
        # collector comes.
        operations = Function.__base__.apply("Run", forward, backward, *(t for t, _ in sources))
        operations = [operations] if isinstance(operations, flow.Tensor) else operations
        return _mapped(result, int, lambda index: operations[index])

    def _go_back(self) -> None:
        """From the gradients of the results to those of the leaves; what was saved goes."""
        while self._operations:
            results, inputs, backward = self._operations.pop()
            gradients = [slot.gradient for slot in results]
            for slot in results:
                slot.gradient = None  # it takes no memory any more
            if all(gradient is None for gradient in gradients):
                continue
            found = backward(*gradients)
            for slot, gradient in zip(inputs, found if isinstance(found, tuple) else (found,)):
                if slot is not None:
                    slot.add(gradient() if callable(gradient) else gradient)


def _gradient(source: flow.Tensor, slot: Slot) -> flow.Tensor:
    values = slot.gradient
    if values is None:
        values = np.zeros(source.to_local().shape, np.float32)
    sbp = list(source.sbp)
    if dist.get_data_parallel_size() > 1 and sbp[0] == flow.sbp.broadcast:
        sbp[0] = flow.sbp.partial_sum  # what this rank's images make of it
    tensor = flow.from_numpy(np.ascontiguousarray(values))
    # Comparing the shapes of all ranks' parts takes 2 ms; those of a parameter are equal.
    check = not isinstance(source, nn.Parameter)
    return tensor.to_global(placement=source.placement, sbp=sbp, check_meta=check)


def operator(function):
    """An operation on arrays, from a function of NumPy arrays that knows its gradient.

    The function returns its result (or a tuple) and `backward`, which maps the gradients of the
    results to those of the positional arguments. In the place of a gradient may stand a function
    that computes it: it is called if the gradient is wanted.
    """

    @wraps(function)
    def operate(*arguments, **options):
        run = next(argument.run for argument in arguments if isinstance(argument, Array))
        inputs = [run.take(argument) for argument in arguments]
        values = (None if array is None else array.values for array in inputs)
        result, backward = function(*values, **options)
        return run.give(result, inputs, backward)

    return operate


@operator
def _add(x, y):
    return x + y, lambda gradient: (gradient, gradient)


@operator
def _multiply(x, factors):
    def of_factors(gradient):
        return (gradient * x).reshape(-1, x.shape[-1]).sum(0)

    return x * factors, lambda gradient: (gradient * factors, of_factors(gradient))


@operator
def _transpose(x, *, axes):
    return np.swapaxes(x, *axes), lambda gradient: np.swapaxes(gradient, *axes)


@operator
def _reshape(x, *, shape):
    return x.reshape(shape), lambda gradient: gradient.reshape(x.shape)


@operator
def _narrow(x, *, part):
    def backward(gradient):
        whole = np.zeros_like(x)
        whole[part] = gradient
        return whole

    return x[part], backward


# ---- To and from OneFlow ------------------------------------------------------------------------


def on_cpu(forward):
    """A method of a module, or of what has no parameters, that computes on arrays on a CPU.

    The tensors among its arguments are split by the batch. In a graph, on a GPU, and where the
    ranks of a pipeline hold only parts of the module, it is as it stands; what it calls may then be
    `on_cpu` for itself.
    """

    @wraps(forward)
    def called(self, *arguments, **options):
        inputs = list(_found((arguments, options), flow.Tensor))
        if not inputs:
            return forward(self, *arguments, **options)
        parameters = list(self.parameters()) if isinstance(self, nn.Module) else []
        if not _computes_here([*inputs, *parameters]):
            return forward(self, *arguments, **options)
        inputs = _mapped((arguments, options), flow.Tensor, _split_by_batch)
        run = Run(flow.is_grad_enabled())
        with flow.no_grad():
            run.take_together(parameters)
            arguments, options = _mapped(inputs, flow.Tensor, run.take)
            result = forward(self, *arguments, **options)
        return run.as_one_operation(result)

    return called


def _computes_here(tensors: list[flow.Tensor]) -> bool:
    first = tensors[0]
    return all(
        tensor.is_global and not tensor.is_lazy and tensor.placement == first.placement
        for tensor in tensors
    ) and (first.placement.type == "cpu" and first.placement.ranks.size == dist.get_world_size())


def _split_by_batch(tensor: flow.Tensor) -> flow.Tensor:
    sbp = tuple(batch_sbp())
    return tensor if tensor.sbp == sbp else tensor.to_global(sbp=sbp)


def _whole_for_data(parameter: flow.Tensor) -> flow.Tensor:
    """`parameter` as it was made: a graph with ZeRO leaves it shared out over the data ranks."""
    sbp = list(parameter.sbp)
    if dist.get_data_parallel_size() == 1 or sbp[0] == flow.sbp.broadcast:
        return parameter
    return parameter.to_global(sbp=[flow.sbp.broadcast, *sbp[1:]])


def local_values(tensor: flow.Tensor) -> np.ndarray:
    """This rank's part of a global tensor, in the same memory."""
    return tensor.detach().to_local().numpy()


def _as_tensor(array: Array) -> flow.Tensor:
    values = np.ascontiguousarray(array.values).reshape(array.shape)
    return flow.from_numpy(values).to_global(
        placement=dist.get_layer_placement(0), sbp=_sbp_of(array)
    )


def _sbp_of(array: Array) -> list:
    """Scalars are whole on each rank, all else is split by the batch."""
    return batch_sbp() if array.ndim else broadcast_sbp()


def broadcast_sbp() -> list:
    """The sbp of a tensor that every rank holds whole."""
    return dist.get_nd_sbp([flow.sbp.broadcast, flow.sbp.broadcast])


def batch_sbp() -> list:
    """The sbp of a tensor split over the data-parallel ranks along its first axis."""
    return dist.get_nd_sbp([flow.sbp.split(0), flow.sbp.broadcast])


def _found(value, kind: type) -> Iterator:
    """All of `kind` in lists, tuples and dicts."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _found(item, kind)
    elif isinstance(value, dict):
        yield from _found(list(value.values()), kind)


def _mapped(value, kind: type, function: Callable):
    """The same structure with function(x) in the place of each x of `kind`."""
    if isinstance(value, kind) and not isinstance(value, bool):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, kind, function) for item in value)
    if isinstance(value, dict):
        return {name: _mapped(item, kind, function) for name, item in value.items()}
    return value


# ---- Between the ranks --------------------------------------------------------------------------


def exchange(values: np.ndarray, before: tuple, after: tuple) -> np.ndarray:
    """This rank's part of what all ranks' `values` are, from one sbp to another.

    Args:
        before, after: sbp over the data-parallel and over the tensor-parallel ranks.
    """
    if dist.get_world_size() == 1:
        return values
    before, after = (dist.get_nd_sbp(list(sbp)) for sbp in (before, after))
    if before == after:
        return values
    tensor = flow.from_numpy(np.ascontiguousarray(values))
    tensor = tensor.to_global(placement=dist.get_layer_placement(0), sbp=before)
    return local_values(tensor.to_global(sbp=after))


SPLIT, WHOLE, PARTS = flow.sbp.split(0), flow.sbp.broadcast, flow.sbp.partial_sum


def sum_over_batch(values: np.ndarray) -> np.ndarray:
    """The sum over the data-parallel ranks."""
    return _sum(values, (PARTS, SPLIT), (WHOLE, SPLIT))


def sum_over_shares(values: np.ndarray) -> np.ndarray:
    """The sum over the tensor-parallel ranks."""
    return _sum(values, (SPLIT, PARTS), (SPLIT, WHOLE))


def _sum(values: np.ndarray, before: tuple, after: tuple) -> np.ndarray:
    if dist.get_world_size() == 1:
        return values
    # In parts of one length for all ranks: OneFlow's process ends where a rank has none.
    missing = -values.size % dist.get_world_size()
    summed = exchange(np.pad(values.reshape(-1), (0, missing)), before, after)
    return summed[: values.size].reshape(values.shape)


def join_shares(values: np.ndarray) -> np.ndarray:
    """The last axis, of which the tensor-parallel ranks hold parts, whole."""
    return exchange(values, (SPLIT, flow.sbp.split(values.ndim - 1)), (SPLIT, WHOLE))


def share_of(values: np.ndarray) -> np.ndarray:
    """This tensor-parallel rank's part of the last axis."""
    # LiBai places the tensor-parallel ranks side by side.
    shares = np.split(values, dist.get_tensor_parallel_size(), -1)
    return shares[flow.env.get_rank() % len(shares)]
