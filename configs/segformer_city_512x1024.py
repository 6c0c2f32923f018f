"""SegFormer on Cityscapes at 512x1024, faster than 1024x1024: for B0 in the paper.

    bash tools/train.sh configs/segformer_city_512x1024.py 4

Images are scaled to 512x1024 before they are cropped, and evaluated at that scale in whole images.
The paper's mIoU for B0 is 71.9.
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

data.scale = (512, 1024)
data.crop = (512, 1024)

inference.crop_size = None
inference.stride = None

train.output_dir = "output/segformer_city_512x1024"
