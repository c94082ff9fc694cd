"""Weights published for PyTorch, MXNet and Jittor, read without these; nothing that a file holds is executed."""
