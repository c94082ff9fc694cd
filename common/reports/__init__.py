"""Pages, plots and tables of runs."""
