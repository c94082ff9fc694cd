"""Images, training sets, evaluation sets and the loader."""
