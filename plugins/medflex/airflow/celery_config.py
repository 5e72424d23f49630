"""Celery's settings for CeleryExecutor: Airflow's own, and what workers import before they fork.

Named by ``AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS`` (docs/deployment.md). Only an installation with CeleryExecutor has
the provider that is imported here.
"""

from __future__ import annotations

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

CELERY_CONFIG = {**DEFAULT_CELERY_CONFIG, "imports": ("medflex.airflow.preload",)}
