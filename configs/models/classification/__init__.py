"""One file a model size, with the ImageNet classifier."""
