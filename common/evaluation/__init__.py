"""From a model and a set of pairs to figures."""
