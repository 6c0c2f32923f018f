"""SegFormer-B0 on CamVid from scratch: a small training that a CPU can do, on a folder data set.

    bash tools/train.sh configs/segformer_camvid.py 1 data.root=PATH

It is segformer_own.py with everything written down. PATH holds images/{train,val}/*.jpg and
annotations/{train,val}/*.png: indices of the 11 classes that SegNet uses, 255 for none.
docs/measurements.md has the mIoU to expect.
"""

from .segformer_own import cfg, data, dataloader, graph, inference, model, model_size, optim, train

_classes = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
for _loader in (dataloader.train, dataloader.test[0]):
    _loader.dataset.classes = list(_classes)
    _loader.dataset.palette = list(_classes.values())
cfg.num_classes = len(_classes)

data.root = "data/camvid"
data.scale = (360, 480)
data.crop = (256, 256)

# The paper's rates are for fine-tuning; from scratch encoder and head learn at one higher rate.
optim.params.lr = 6e-4
optim.params.head_lr_multiplier = 1.0

train.output_dir = "output/segformer_camvid"
train.global_batch_size = 4
train.train_iter = 1_500
train.checkpointer.period = 500
train.evaluation.eval_period = 500
