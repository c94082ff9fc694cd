"""One adapter a framework: how it answers the questions."""
