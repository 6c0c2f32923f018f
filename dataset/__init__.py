"""Images and labels from disk to tensors: datasets, joint transforms, samplers, loaders."""
