"""Measurements that anyone can rerun: ``python -m bench`` (``make bench``)."""

import sys
from pathlib import Path

# The product is not a package: Airflow finds it in plugins/, and so do the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))
