"""Initial values, layers and checkpoints of a network, and other formats of them."""
