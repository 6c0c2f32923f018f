"""A model.onnx in ONNX Runtime, for tools/benchmark.py, which starts it."""

import numpy as np
import onnxruntime

from projects.SegFormer.engine.benchmark.worker import Work, peak_resident, serve


def build(job: dict, images: np.ndarray, labels: np.ndarray) -> Work:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    session = onnxruntime.InferenceSession(job["model"], options, ["CPUExecutionProvider"])
    return Work(
        lambda: session.run(None, {"images": images})[0],
        np.asarray,
        {"onnxruntime": onnxruntime.__version__},
        peak_resident,
    )


if __name__ == "__main__":
    serve(build)
