"""This project's model on OneFlow, eager or as a graph, for tools/benchmark.py, which starts it."""

import projects.SegFormer.engine.process  # noqa: F401

import numpy as np
import oneflow as flow

from projects.SegFormer.engine.benchmark.worker import Work, peak_resident, serve
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.engine.libai_mends import mend_for_one_process
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation, to_input


def build(job: dict, images: np.ndarray, labels: np.ndarray) -> Work:
    mend_for_one_process()
    flow.set_num_threads(job["threads"])
    used_before = _gpu_memory() if job["device"] == "cuda" else 0
    model = SegFLoaderHuggerFace(SegformerForSemanticSegmentation, {}, job["model"]).load()
    if job["label_map"]:
        step, to_numpy = evaluation_step(model, images), np.asarray
    else:
        images, labels = (to_input(flow.from_numpy(array)) for array in (images, labels))
        kind = graph_step if job["engine"] == "graph" else eager_step
        step = kind(model, images, labels, job["optimizer"] if job["training"] else None)
        to_numpy = flow.Tensor.numpy

    def synchronised_step():
        result = step()
        flow._oneflow_internal.eager.Sync()
        return result

    return Work(
        synchronised_step,
        to_numpy,
        {"oneflow": flow.__version__},
        (lambda: _gpu_memory() - used_before) if job["device"] == "cuda" else peak_resident,
    )


def evaluation_step(model, images: np.ndarray):
    """As an evaluation has its label maps, int64 (N, H, W): whole images, on the host."""
    # Here, because it is 13 MiB that the other steps do without.
    from projects.SegFormer.evaluation.inference import Inference

    inference = Inference()
    return flow.no_grad()(lambda: inference(model, images, images.shape[2:]))


def eager_step(model, images, labels, settings: dict | None):
    """A training step where there are `settings` of an optimizer, else inference."""
    if settings is None:
        return flow.no_grad()(lambda: model(images)["prediction_scores"])
    model.train()
    optimizer = flow.optim.AdamW(model.parameters(), **settings)

    def step():
        loss = model(images, labels)["losses"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def graph_step(model, images, labels, settings: dict | None):
    """The same as a static graph."""
    if settings is None:
        graph = SegformerGraph(model, is_train=False)
        return lambda: graph(images=images)["prediction_scores"]
    model.train()
    graph = SegformerGraph(model, flow.optim.AdamW(model.parameters(), **settings))
    return lambda: graph(images=images, labels=labels)["losses"]


def _gpu_memory() -> int:
    """Bytes in use on the GPU. OneFlow gives nothing back, so that it is the peak too."""
    return flow._oneflow_internal.GetCUDAMemoryUsed() * 2**20


if __name__ == "__main__":
    serve(build)
