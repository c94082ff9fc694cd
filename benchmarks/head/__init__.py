"""The cost of the SFace head."""
