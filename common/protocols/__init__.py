"""IJB-B, IJB-C and MegaFace: templates, identification and distractors."""
