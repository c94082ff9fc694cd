"""Preparing data sets: python -m data NAME. No images are committed to this project."""
