"""One file a model size."""
