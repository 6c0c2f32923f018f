"""How images go through the model in evaluation and prediction: whole, at one scale.

Test-time augmentation is `inference.scales=[0.75,1.0,1.25] inference.flip=True`.
"""

from libai.config import LazyCall

from projects.SegFormer.evaluation.inference import Inference

inference = LazyCall(Inference)(
    # Windows (slide inference): their height and width, and the step from one to the next.
    crop_size=None,
    stride=None,
    # Image scale that the network was trained for, (height, width); sides rounded up to a multiple.
    resize=None,
    divisor=1,
    scales=[1.0],
    flip=False,
)
