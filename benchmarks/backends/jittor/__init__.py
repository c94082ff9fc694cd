"""What is measured in Jittor."""
