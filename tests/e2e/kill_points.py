"""Lets a real task process kill itself at a chosen step, for ``test_killed_tasks.py``.

A copy of this file stands as ``sitecustomize.py`` beside a link to the product's package, in the plugins folder of the
test's own Airflow; Python runs it at the start of each of Airflow's processes. It changes nothing of what a step does:
before and after it, it looks whether a death is ordered there.

An order is a file ``<task id>@<map index>.<number>`` in the folder ``orders`` that says ``before acquire`` or ``after
resolve_together``; with ``, both`` behind it the supervisor dies with the task.
The orders of a task instance are carried out one after another, so that each attempt dies at the next one.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
ORDERS, DONE = HERE / "orders", HERE / "done"
ONE_CLINIC_PER_SHARD = HERE / "one_clinic_per_shard"
STEPS = {
    "medflex.ledger.store": {
        "Ledger": (
            "begin_writing",
            "acquire",
            "fold_open_batches",
            "record_intents",
            "resolve_together",
            "release",
            "save_revocations",
            "correct_records",
            "save_findings",
            "save_numbers",
            "save_decisions",
            "set_stage",
            "set_withdraw_stage",
            "settle_run",
        )
    },
    "medflex.airflow.hooks.medflex": {"MedflexClient": ("post_batch",)},
}
SIZES = {
    "medflex.airflow.tasks.transfer": {"TARGET_ROWS": 1},
    "medflex.airflow.tasks.reconcile": {"RECORDS_PER_SHARD": 1, "CLINICS_PER_SHARD": 1},
}


def die_if_ordered(moment: str) -> None:
    """Kill this process, and its supervisor if asked for, when that is the next order of its task instance."""
    from airflow.sdk import get_current_context

    try:
        instance: Any = get_current_context()["ti"]
    except RuntimeError:
        return
    index = -1 if instance.map_index is None else instance.map_index
    for order in sorted(ORDERS.glob(f"{instance.task_id}@{index}.*"))[:1]:
        wanted, _, whom = order.read_text().partition(", ")
        if wanted != moment:
            continue
        try:
            order.rename(DONE / order.name)
        except FileNotFoundError:
            continue  # Another thread of this task carries it out.
        if whom == "both":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def watched(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the step with its two moments to die at."""

    @functools.wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        die_if_ordered(f"before {step.__name__}")
        result = step(*args, **kwargs)
        die_if_ordered(f"after {step.__name__}")
        return result

    return wrapper


class _Finder:
    """Changes the product's modules right after their import, and imports none of them by itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in STEPS and name not in SIZES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for class_name, steps in STEPS.get(name, {}).items():
                for step in steps:
                    holder = getattr(module, class_name)
                    setattr(holder, step, watched(getattr(holder, step)))
            if ONE_CLINIC_PER_SHARD.exists():
                for constant, value in SIZES.get(name, {}).items():
                    setattr(module, constant, value)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
