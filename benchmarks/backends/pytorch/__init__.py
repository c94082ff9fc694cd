"""What is measured in PyTorch."""
