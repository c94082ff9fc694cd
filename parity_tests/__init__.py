"""Shows that the backends compute the same: the float64 truth, the golden results, and comparisons with them."""
