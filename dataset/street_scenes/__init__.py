"""Drawn street scenes: what they are made of. tools/draw_street_scenes.py puts them together."""
