"""The two sides of tools/benchmark.py: their processes, and what those compute."""
