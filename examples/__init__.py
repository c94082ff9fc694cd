"""Short programs that the tests run."""
