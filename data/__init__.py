"""Prepare data sets: python -m data NAME. This project holds no images."""
