"""The demo Medlock: its schema (``schema.sql``), a seeded generator of its data, and the canaries in it."""

from sandbox.medlock.canary import canaries

LOGINS = ("medlock_app", "medlock_actions", "medlock_switch")
"""The product's log-ins in the demo Medlock: one reads, one does what partners ask for, one turns access switches."""

__all__ = ["LOGINS", "canaries"]
