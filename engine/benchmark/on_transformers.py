"""transformers' SegFormer in PyTorch, for tools/benchmark.py, which starts it in any Python.

    python engine/benchmark/on_transformers.py JOB.json
    python engine/benchmark/on_transformers.py --export FOLDER IMAGES.npy MODEL.onnx

The second form exports the model by torch.onnx, for images of that size and number.
"""

import json
import sys

import numpy as np
import torch
import transformers

from worker import Work, peak_resident, serve

VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


def build(job: dict, images: np.ndarray, labels: np.ndarray) -> Work:
    torch.set_num_threads(job["threads"])
    model = load(job["model"]).to(job["device"]).train(job["training"])
    if job["engine"] == "transformers-compiled":
        model = compiled(model)
    images, labels = (torch.from_numpy(array).to(job["device"]) for array in (images, labels))
    if job["training"]:
        step = training_step(model, images, labels, job["optimizer"])
    elif job["label_map"]:
        step = evaluation_step(model, images)
    else:

        def step():
            with torch.inference_mode():
                return model(images).logits

    on_gpu = job["device"] == "cuda"

    def synchronised_step():
        result = step()
        if on_gpu:
            torch.cuda.synchronize()
        return result

    return Work(
        synchronised_step,
        lambda result: np.asarray(result.detach().cpu()),
        VERSIONS,
        torch.cuda.max_memory_reserved if on_gpu else peak_resident,
    )


def load(folder: str) -> transformers.SegformerForSemanticSegmentation:
    return transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()


def compiled(model):
    """Through torch.compile, which does its work in the first steps. Those are not timed."""
    if not hasattr(torch, "compile"):
        sys.exit(f"torch {torch.__version__} has no torch.compile: it needs 2.0 or later")
    return torch.compile(model)


def evaluation_step(model, images):
    """Label maps, int64 (N, H, W), as transformers makes them of its logits, on the host."""
    # transformers 5 has a second one, which needs no torchvision.
    names = ("SegformerImageProcessorPil", "SegformerImageProcessor")
    name = next(name for name in names if hasattr(transformers, name))
    try:
        processor = getattr(transformers, name)()
    except ImportError:
        sys.exit(
            f"the {name} of transformers {transformers.__version__} finds no Pillow: install it "
            "there, or leave out --label-map"
        )
    sizes = [tuple(images.shape[2:])] * len(images)

    def step():
        with torch.inference_mode():
            outputs = model(images)
            maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            return torch.stack(maps).cpu()

    return step


def training_step(model, images, labels, settings: dict):
    optimizer = torch.optim.AdamW(model.parameters(), **settings)

    def step():
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


class _Logits(torch.nn.Module):
    """The model with a tensor as its result, as all versions of torch.onnx take it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


def export(folder: str, images: str, file: str) -> None:
    """Write `file` and print the versions."""
    names = dict(input_names=["images"], output_names=["prediction_scores"])
    batch = torch.from_numpy(np.load(images))
    torch.onnx.export(_Logits(load(folder)).eval(), (batch,), file, **names)
    print(json.dumps(VERSIONS))


if __name__ == "__main__":
    if sys.argv[1] == "--export":
        export(*sys.argv[2:])
    else:
        serve(build)
