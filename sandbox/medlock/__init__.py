"""The demo Medlock: its schema (``schema.sql``), a seeded generator of its data, and the canaries in it."""

from sandbox.medlock.canary import canaries

__all__ = ["canaries"]
