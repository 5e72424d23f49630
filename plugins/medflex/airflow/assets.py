"""The assets that the DAGs produce and wait for."""

from __future__ import annotations

from airflow.sdk import Asset

APPOINTMENTS = Asset(name="medflex_appointments", uri="medflex://appointments", group="medflex")
"""What Medflex shows of the clinics' appointments; each settled run adds an event with its funnel."""
