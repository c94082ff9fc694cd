"""Proof that the backends compute the same: the float64 oracle, the golden results, and the tests against them."""
