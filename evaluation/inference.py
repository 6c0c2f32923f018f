"""From images to label maps."""

import oneflow as flow

from projects.SegFormer.modeling.layers import upsample_bilinear


def predict_labels(model, images, size: tuple[int, int]):
    """The class of every pixel at `size`: logits are interpolated before the arg max.

    Shape: images (N, 3, H, W) -> (N, *size) int64, global.
    """
    logits = model(images=images)["prediction_scores"].permute(0, 2, 3, 1)
    return flow.argmax(upsample_bilinear(logits, size), dim=-1)
