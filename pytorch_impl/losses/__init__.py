"""The loss heads in PyTorch: a folder that can be copied into another package as it is."""
