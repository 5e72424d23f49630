"""Libraries that tasks use, for the process that task processes are forked from.

A task that finds them imported begins about a second of processor time sooner, one that validates three. Airflow
imports this module where it is named (docs/deployment.md): ``[core] mp_forkserver_preload`` for LocalExecutor,
``imports`` of :mod:`medflex.airflow.celery_config` for CeleryExecutor. None of the product's own rules, queries or
tasks are imported here, so that a task always runs them as they are in its DAG bundle and plugins folder now.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

from medflex.quality.gx import import_great_expectations

LIBRARIES = (
    "adbc_driver_postgresql.dbapi",
    "airflow.dag_processing.dagbag",
    "airflow.providers.common.io.assets.file",
    "airflow.providers.postgres.assets.postgres",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.empty",
    "airflow.sdk.definitions.callback",
    "airflow.sdk.definitions.decorators",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.io",
    "orjson",
    "pandas",
    "phonenumbers",
    "psycopg",
    "pyarrow.compute",
    "pyarrow.parquet",
    "requests",
)

for _name in LIBRARIES:
    # It is about speed alone: what cannot be imported here fails in the task that needs it, with a message.
    with suppress(Exception):
        import_module(_name)
with suppress(Exception):
    import_great_expectations()

# What stands here stays until the end: the tasks' garbage collector need not walk through it, again and again, which
# would take a tenth of their time and a copy of the memory that they share.
gc.collect()
gc.freeze()
