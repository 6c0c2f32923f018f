"""How much a file may ask for: what it says of its size is held against this table before memory is
taken for it.

The bounds are far above what SegFormer and its data need, and low enough that nothing below them
fills a machine.
"""

import os

from projects.SegFormer.modeling.errors import InputError

MIB = 2**20

# Files that are read as a whole, in bytes.
META_BYTES = 65_536  # shape and dtype of a tensor in a folder of LiBai
JSON_BYTES = 32 * MIB  # the index of a thousand shards has 1
LABEL_JSON_BYTES = 512 * MIB  # the labels of a data set; those of COCO's train2017 have 428
YAML_BYTES = MIB // 2  # the config of an ImageNet training has 0.03
YAML_VALUES = 50_000  # with each anchor written out where it is used
YAML_REFERENCES = 1_000
TABLE_BYTES = 64 * MIB  # .mat files, unpacked too
LIST_BYTES = 8 * MIB  # lists of images, solutions as CSV; ImageNet's has 3
HEADER_BYTES = 16 * MIB  # of safetensors; B5's has 0.1
IMAGE_BYTES = 1024 * MIB
ONNX_BYTES = 2048 * MIB  # protobuf's own limit

NESTING = 50  # containers in containers, of JSON and pickles

# Pickles, in torch files and in LiBai's folders; tensors lie outside of them.
PICKLE_BYTES = 64 * MIB
PICKLE_STEPS = 1_000_000  # opcodes; B5 with its optimizer has 0.1 million
TENSORS = 20_000  # B5 with its optimizer has 3,200
TENSOR_AXES = 16
TENSOR_ELEMENTS = 2**40
# How often the tensors of a file, all together, may read over its bytes: shared weights do.
TENSOR_BYTES_OF_A_FILE = 4

IMAGE_PIXELS = 2**28  # 16384 x 16384, unless this environment variable says another number
IMAGE_PIXELS_SETTING = "SEGFORMER_IMAGE_PIXELS"
MOST_IMAGE_PIXELS = 2**30  # OpenCV's own limit
IMAGE_BANDS = 4  # bytes a pixel in an image of so many pixels; with more, fewer pixels

# Settings of a model: the lowest and the highest value, of a stage where there is one a stage.
MODEL_SETTINGS = {
    "num_channels": (1, 1024),
    "depths": (1, 1000),
    "hidden_sizes": (1, 8192),
    "num_attention_heads": (1, 1024),
    "sr_ratios": (1, 64),
    "mlp_ratios": (0.01, 64),
    "patch_sizes": (1, 64),
    "strides": (1, 64),
    "decoder_hidden_size": (1, 16384),
    "num_classes": (1, 65535),
    "drop_path_rate": (0, 0.99),
    "decoder_dropout": (0, 0.99),
    "layer_norm_eps": (0, 1),
    "embed_norm_eps": (0, 1),
    "label_smoothing": (0, 1),
    "ignore_index": (-(2**31), 2**31 - 1),
}
MODEL_STAGES = 16
MODEL_PARAMETERS = 2 * 10**9  # B5 has 85 million
# A config that comes with weights may describe a larger model than they are of, up to this.
PARAMETERS_BEYOND_WEIGHTS = 100_000_000


def image_pixels() -> int:
    """How many pixels an image or a label may have. Raises InputError for a setting that is no
    number from 1 to MOST_IMAGE_PIXELS."""
    text = os.environ.get(IMAGE_PIXELS_SETTING) or str(IMAGE_PIXELS)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:20]) <= MOST_IMAGE_PIXELS:
        raise InputError(
            f"{IMAGE_PIXELS_SETTING}={text}: expected a whole number of pixels from 1 to "
            f"{MOST_IMAGE_PIXELS}"
        )
    return int(text)
