"""The names under which looks for what may no longer be shared note how far they have come (``ledger.watch``), and
others that they have come to their end: ``medflex_alerts`` asks how long ago that is.

Importable by DAG files, and light.
"""

from __future__ import annotations

CONSENT = "consent"
"""Looks at what has changed; of what is due besides it says so."""
SWEEP = "sweep"
"""The search for deleted rows, piece by piece."""
SWEEP_TRIED = "sweep_tried"
"""When a piece of it was begun, whether or not it has come to its end."""
SWEEP_ASKED = "sweep_asked"
"""When a look has last left something to it, though no rows were deleted."""
STUCK = "stuck"
"""Of which clinics Medflex has not taken withdrawals in the last look."""
FAR = "far"
"""Looks that go over all edits of two hours."""
SLOW = "slow"
"""When Medlock has last taken too long to say what has changed."""
WOKEN = "woken"
"""When the watch on Medlock, in the triggerer, has last started a look, or looks have begun or go on after a pause."""
STAGING_REMOVED = "staging_removed"
"""Removing what runs have left in staging; before it has come to its end for the first time, when it was first asked
for."""
ACTIONS_READ = "actions_read"
"""Reading what partners ask for; before it has come to its end for the first time, when it was first tried."""
