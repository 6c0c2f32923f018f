"""Weights: formats, key tables, files, loaders, alignment check."""
