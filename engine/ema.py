"""The moving average of a model's weights over its training."""

from contextlib import contextmanager

import oneflow as flow
from oneflow import nn

from projects.SegFormer.modeling.errors import InputError


class WeightAverage:
    """The exponential moving average of all parameters and buffers of `model`.

    It begins as the weights of the model, and after every step of the optimizer `update` makes it
    decay * average + (1 - decay) * weight. The decay is the same from the first step on, as timm's:
    what the start still counts after n steps is decay ** n.

    Its state is named as the model's, so that it is read as weights wherever those are.

    Args:
        decay: in [0, 1); 1 / (1 - decay) steps are what it averages over.
    Raises InputError for another decay.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"train.ema.decay={decay}: expected a number from 0 to below 1")
        self._decay = decay
        self._weights = dict([*model.named_parameters(), *model.named_buffers()])
        self.restart()

    def restart(self) -> None:
        """Begin with the weights that the model has now."""
        self._averages = _copies(self._weights)

    def update(self) -> None:
        """Take in the model's weights, after a step of the optimizer."""
        with flow.no_grad():
            for key, average in self._averages.items():
                # ZeRO splits a parameter once its graph is built.
                weight = self._weights[key].to_global(placement=average.placement, sbp=average.sbp)
                average.mul_(self._decay).add_(weight, alpha=1 - self._decay)

    @contextmanager
    def applied(self):
        """Within, the model has the averages for its weights, in the memory that a graph reads."""
        weights = _copies(self._weights)
        _assign(self._weights, self._averages)
        try:
            yield
        finally:
            _assign(self._weights, weights)

    def state_dict(self) -> dict[str, flow.Tensor]:
        return self._averages

    def load_state_dict(self, state: dict[str, flow.Tensor]) -> None:
        """Raises InputError unless `state` has every tensor of the average, in its shape."""
        for key, average in self._averages.items():
            if key not in state or state[key].shape != average.shape:
                raise InputError(f"{key} is missing in it, or of another shape")
        _assign(self._averages, state)


def _copies(tensors: dict[str, flow.Tensor]) -> dict[str, flow.Tensor]:
    with flow.no_grad():
        return {key: tensor.detach().clone() for key, tensor in tensors.items()}


def _assign(targets: dict[str, flow.Tensor], sources: dict[str, flow.Tensor]) -> None:
    for key, target in targets.items():
        target.data.copy_(sources[key])
    flow._oneflow_internal.eager.Sync()  # the sources may go now
