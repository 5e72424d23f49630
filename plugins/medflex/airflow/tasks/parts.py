"""What the tasks of all DAGs share: errors as one sentence, and the product's parts behind Airflow's connections."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from medflex.airflow import connections
from medflex.airflow.environment import setting
from medflex.errors import BadParameterError, ConfigurationError, MedflexPipelineError, raised_at

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class TransientFailure(AirflowException):
    """The task failed for a reason that may pass; Airflow tries it again."""


def speaking(function: Callable[P, T]) -> Callable[P, T]:
    """Let errors reach Airflow as one sentence: retried if they may pass, final if not.

    An error that nobody foresaw is told by its type and place only: its text, and that of its causes, may quote a row.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except AirflowException:
            raise
        except MedflexPipelineError as error:
            # By its type, under which the runbook has it.
            text = f"{type(error).__name__}: {error}"
            failure: AirflowException = TransientFailure(text) if error.transient else AirflowFailException(text)
        except Exception as error:
            ours, raised = raised_at(error)
            failure = TransientFailure(
                f"{function.__name__} failed with {type(error).__name__} in {ours} (raised in {raised}); its text is"
                " withheld, since it could quote a row."
            )
        # Outside the handlers, so that the original is not even its context.
        raise failure

    return wrapper


def open_ledger() -> Any:
    """Return the ledger behind its connection, to be closed by its context."""
    from medflex.ledger.store import Ledger

    return Ledger(connections.postgres_conninfo(connections.LEDGER))


def open_medlock() -> Any:
    """Return Medlock behind its connection, to be closed by its context."""
    from medflex.airflow.hooks.medlock import Medlock

    return Medlock(connections.postgres_conninfo(connections.MEDLOCK))


def open_medflex(ledger: Any, **hurry: float) -> Any:
    """Return a client of Medflex as its connection says.

    Args:
        ledger: where it is noted whether Medflex answers.
        hurry: settings that are lowered to these where they are higher.
    """
    from medflex.airflow.contacts import ContactNotes
    from medflex.airflow.hooks.medflex import MedflexClient, settings_of
    from medflex.airflow.metrics import RequestMetrics

    settings = settings_of(connections.connection(connections.MEDFLEX))
    lowered: dict[str, Any] = {name: min(getattr(settings, name), most) for name, most in hurry.items()}
    return MedflexClient(dataclasses.replace(settings, **lowered), ContactNotes(ledger, RequestMetrics()))


def data_docs_url() -> str:
    """Return where the quality reports lie: a folder, or a bucket's URL.

    Raises:
        ConfigurationError: ``MEDFLEX_DATA_DOCS_URL`` is not set.
    """
    url = setting("MEDFLEX_DATA_DOCS_URL")
    if not url:
        raise ConfigurationError("MEDFLEX_DATA_DOCS_URL is not set: name a folder or bucket for the quality reports.")
    return url


def parameters_of(context: Context, known: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of a run.

    Args:
        known: name of each parameter of the DAG (there is one at least) → what it may be, for the message; empty where
            there is nothing to say.

    Raises:
        BadParameterError: the run was given one that the DAG does not know.
    """
    params, given = dict(context["params"]), dict(context["dag_run"].conf or {})
    unknown = sorted((set(params) | set(given)) - set(known))
    if unknown:
        *first, last = (f"{name} ({values})" if values else name for name, values in known.items())
        names = f"{', '.join(first)} and {last}" if first else last
        raise BadParameterError(f"This DAG has no parameter {', '.join(unknown)}: it knows {names}.")
    # Airflow can be set not to merge a run's conf into its params: what was asked for counts all the same.
    return params | given


def clinic_ids_of(params: Mapping[str, Any]) -> list[int] | None:
    """Return the parameter ``clinic_ids``, each id once and in order; ``None`` for all clinics.

    Raises:
        BadParameterError: it is no list of ids.
    """
    clinic_ids = params.get("clinic_ids")
    if clinic_ids is None:
        return None
    if not isinstance(clinic_ids, list) or not clinic_ids or not all(_is_bigint(item) for item in clinic_ids):
        raise BadParameterError(
            "The parameter clinic_ids must be a list of Medlock's clinic ids, or empty for all clinics."
        )
    return sorted(set(clinic_ids))


def _is_bigint(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def start_run(
    context: Context,
    ledger: Any,
    clinics: Any,
    gone: Iterable[int],
    *,
    expected_rows: Mapping[int, int] = MappingProxyType({}),
    **run: Any,
) -> Any:
    """Write a run of this DAG down in the ledger and return it.

    Args:
        clinics: CLINICS, judged.
        gone: clinics that have disappeared from Medlock.
        expected_rows: appointments that are expected of clinics, by their ids.
        run: the other arguments of the ledger's ``start_run``.
    """
    ledger.note_switches(switches_of(clinics))
    return ledger.start_run(
        dag_id=context["dag_run"].dag_id,
        run_id=context["dag_run"].run_id,
        run_type=run_type(context),
        clinics=[
            row | {"expected_rows": expected_rows.get(row["clinic_id"])}
            for row in (*access_rows(clinics), *map(_gone_row, gone))
        ],
        **run,
    )


def run_of(ledger: Any, context: Context) -> Any:
    """Return what the ledger has written down of this run."""
    return ledger.run(context["dag_run"].dag_id, context["dag_run"].run_id)


def run_type(context: Context) -> str:
    """Return Airflow's name of the kind of a run: scheduled, manual, backfill, asset_triggered."""
    run_type = context["dag_run"].run_type
    return str(getattr(run_type, "value", run_type))


def access_rows(clinics: Any) -> Iterator[dict[str, Any]]:
    """Yield CLINICS as the rows with which the ledger starts a run."""
    for row in clinics[["clinic_id", "lpu_id", "state", "closed_reason", "opens_at"]].itertuples(index=False):
        yield {
            "clinic_id": int(row.clinic_id),
            "lpu_id": None if _absent(row.lpu_id) else int(row.lpu_id),
            "access_state": str(row.state),
            "closed_reason": None if _absent(row.closed_reason) else str(row.closed_reason),
            "opens_at": None if _absent(row.opens_at) else row.opens_at.to_pydatetime(),
        }


def switches_of(clinics: Any) -> Iterator[Any]:
    """Yield how the switches of CLINICS stand, as the ledger's :class:`Switch`."""
    from medflex.ledger.switches import Switch

    columns = ["clinic_id", "access_enabled", "access_changed_at", "access_changed_by_role"]
    for row in clinics[columns].itertuples(index=False):
        yield Switch(
            clinic_id=int(row.clinic_id),
            enabled=None if _absent(row.access_enabled) else bool(row.access_enabled),
            changed_at=None if _absent(row.access_changed_at) else row.access_changed_at.to_pydatetime(),
            role=None if _absent(row.access_changed_by_role) else str(row.access_changed_by_role),
        )


def _absent(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value))


def _gone_row(clinic_id: int) -> dict[str, Any]:
    """Return the row of a clinic that has disappeared from Medlock."""
    from medflex.domain.access import AccessState, ClosedReason

    return {
        "clinic_id": clinic_id,
        "lpu_id": None,
        "access_state": AccessState.CLOSED.value,
        "closed_reason": ClosedReason.CLINIC_GONE.value,
        "opens_at": None,
    }


def logged(counts: dict[str, int]) -> dict[str, int]:
    """Log a task's counts in one line and return them."""
    log.info("%s", ", ".join(f"{name}: {number}" for name, number in counts.items()) or "nothing")
    return counts


def note_withdrawals(result: Any, ledger: Any, run: Any, clinic_ids: Sequence[int]) -> None:
    """Write down what became of these clinics' withdrawals in a run, behind what its earlier attempts have withdrawn:
    that is not found again.

    A run that is planned anew begins with nothing.
    """
    numbers, decisions = result.behind(*ledger.withdrawals_so_far(run.dag_id, run.run_id, clinic_ids))
    ledger.save_numbers(run.run_key, numbers)
    ledger.save_decisions(run.run_key, "revoke", clinic_ids, decisions)


def told(result: Any, context: Context, ledger: Any) -> dict[str, int]:
    """Log what became of withdrawals and ask for a person where one is needed; return the numbers.

    Raises:
        MedflexPipelineError: the problem that may pass, if any may; another attempt brings over what it concerns.
    """
    from medflex.airflow import metrics
    from medflex.airflow.assets import HELD, HELD_ALIAS
    from medflex.airflow.withdrawing import NUMBERS

    metrics.withdrawn(result.delays)
    totals = logged({name: result.total(name) for name in NUMBERS})
    for what, found in (("Revoked", result.revoked), ("Held", result.held)):
        by_reason: dict[str, int] = {}
        for (_, reason), ids in found.items():
            by_reason[reason] = by_reason.get(reason, 0) + len(ids)
        for reason, number in sorted(by_reason.items()):
            log.info("%s, %s: %d.", what, reason, number)
    # Whatever is asked by nobody, also what an attempt left behind that failed: events come from successes only.
    if ledger.unasked_holds():
        context["outlet_events"][HELD_ALIAS].add(HELD)
    if result.problems:
        raise max(result.problems, key=lambda error: error.transient)
    return totals
