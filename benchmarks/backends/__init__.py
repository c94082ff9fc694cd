"""One folder a framework: what is measured in it."""
