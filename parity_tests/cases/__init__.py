"""The questions that a backend is asked."""
