"""LiBai's trainer, fitted to this project and to OneFlow 0.9."""
