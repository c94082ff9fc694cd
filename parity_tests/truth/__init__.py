"""The truth in float64 NumPy, written to be verified and not to be fast."""
