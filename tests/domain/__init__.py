"""Hypothesis without deadlines: on a busy machine a slow example is no fault, and pytest's time-out stays.

Said here, not in a conftest: other tests import some of these modules before pytest comes to this folder.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("domain", deadline=None)
settings.load_profile("domain")
