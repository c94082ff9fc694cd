"""Read weights published for PyTorch, MXNet and Jittor without these; nothing in a file is executed."""
