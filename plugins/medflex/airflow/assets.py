"""The assets that the DAGs produce and wait for."""

from __future__ import annotations

from airflow.sdk import Asset, AssetAlias, AssetWatcher

from medflex.airflow.triggers.consent import ConsentChangeTrigger

APPOINTMENTS = Asset(name="medflex_appointments", uri="medflex://appointments", group="medflex")
"""What Medflex shows of the clinics' appointments; each settled run adds an event with its funnel."""

CONSENT = Asset(
    name="medflex_consent",
    uri="medflex://consent",
    group="medflex",
    watchers=[AssetWatcher(name="medflex_consent", trigger=ConsentChangeTrigger())],
)
"""What Medlock says of consent, switches and partners; an event says that something changed that can revoke."""

HELD = Asset(name="medflex_held", uri="medflex://held", group="medflex")
"""Withdrawals that wait for a person; an event says that there are new ones."""

HELD_ALIAS = AssetAlias(name="medflex_held_alias", group="medflex")
"""Outlet of tasks that may hold withdrawals: one that did adds HELD to it, and only then is there an event."""

SWEEP = Asset(name="medflex_sweep", uri="medflex://sweep", group="medflex")
"""All that Medflex shows; an event says that it is to be looked at, because rows were deleted, or further looked at."""

GO_ON_ALIAS = AssetAlias(name="medflex_go_on_alias", group="medflex")
"""Outlet of tasks that may leave work to another run: one that did adds SWEEP or CONSENT to it."""
