"""A network's initial values, layers and checkpoints, and files of other formats."""
