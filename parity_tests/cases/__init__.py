"""The cases that a backend must answer."""
