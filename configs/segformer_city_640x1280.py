"""SegFormer on Cityscapes at 640x1280, faster than 1024x1024: for B0 in the paper.

    bash tools/train.sh configs/segformer_city_640x1280.py 4

Images are scaled to 640x1280 before they are cropped, and evaluated at that scale in whole images.
The paper's mIoU for B0 is 73.7.
"""

from .segformer_city import (
    cfg,
    data,
    dataloader,
    graph,
    inference,
    model,
    model_size,
    optim,
    train,
)

data.scale = (640, 1280)
data.crop = (640, 1280)

inference.crop_size = None
inference.stride = None

train.output_dir = "output/segformer_city_640x1280"
