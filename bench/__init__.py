"""Measurements that anyone can rerun: ``python -m bench`` (``make bench``)."""
