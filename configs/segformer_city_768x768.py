"""SegFormer on Cityscapes at 768x768, faster than 1024x1024: for B0 in the paper.

    bash tools/train.sh configs/segformer_city_768x768.py 4

Images are scaled to 768x1536 before they are cropped, and evaluated at that scale in windows of
768x768.
The paper's mIoU for B0 is 75.3.
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

data.scale = (768, 1536)
data.crop = (768, 768)


train.output_dir = "output/segformer_city_768x768"
