"""The truth in float64 NumPy: written for trust, not for speed."""
