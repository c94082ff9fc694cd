"""What the three backends share: data, evaluation, configuration and the training loop. Imports no framework."""

__version__ = "0.1.0"
