"""Thousands of partner actions against a model of its own: see :mod:`tests.faults.actions.storm`."""
