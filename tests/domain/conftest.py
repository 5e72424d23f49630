"""Hypothesis without deadlines: on a busy machine a slow example is no fault, and pytest's time-out stays."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("domain", deadline=None)
settings.load_profile("domain")
