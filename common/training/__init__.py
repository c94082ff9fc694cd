"""The training loop: what it plans, logs and costs."""
