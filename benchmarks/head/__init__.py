"""What the SFace head costs."""
