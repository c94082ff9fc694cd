"""One adapter a framework: what is measured in it."""
