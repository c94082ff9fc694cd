"""What the three backends share: data, evaluation, configuration and the training loop. Imports no framework."""
