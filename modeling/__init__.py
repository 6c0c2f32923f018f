"""The network: layers, decode head, encoder and models."""
