"""Lets tests and worker processes import `fake_pipeline` and `fake_jobs` from this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
