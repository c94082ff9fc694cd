"""What is measured in MXNet."""
