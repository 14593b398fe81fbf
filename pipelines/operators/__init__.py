"""Linear operators of MR encoding with exact adjoints."""
