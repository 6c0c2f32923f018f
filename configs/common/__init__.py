"""The shared part of every config."""
