"""The ledger: our own durable memory of what was sent, acknowledged, withdrawn and why. It holds no personal data.

Record states: ``sending`` (may be at Medflex), ``sent``, ``rejected``, ``withdrawing`` (may still be there),
``withdrawn``, ``aged_out``. What was *acknowledged* is the base of the next plan; a batch is written down before its
first byte leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import pandas as pd
from psycopg.types.json import Jsonb

from medflex.arrow import of_types, read_frame
from medflex.domain.packing import Shard
from medflex.errors import LeaseLostError, LedgerConflictError, RunIncompleteError
from medflex.ledger.actions import PartnerActions
from medflex.ledger.alerts import Alerts
from medflex.ledger.connection import again_after_deadlock, translated_ledger_errors
from medflex.ledger.gauges import Gauges
from medflex.ledger.messages import Messages
from medflex.ledger.reconciliation import Reconciliation
from medflex.ledger.sums import RUN_SUITE_SHARD, SUM_TABLES, keep_sums
from medflex.ledger.switches import Switches
from medflex.ledger.withdrawals import Withdrawals
from medflex.sql import Ids, bigints, query

LEASE_SECONDS = 300
"""How long a lease outlives its last renewal; above the longest time a single request can take."""


@dataclass(frozen=True)
class Run:
    """One Airflow run as the ledger knows it. ``anchor`` decides the run's day in each clinic's zone (aware, UTC)."""

    run_key: int
    dag_id: str
    run_id: str
    run_type: str
    mode: str
    anchor: datetime
    clinic_ids: list[int] | None
    started_at: datetime


@dataclass(frozen=True)
class RunShard:
    """One shard of a run."""

    run_key: int
    shard: int
    label: str
    kind: str
    clinic_ids: list[int]
    stage: str
    skipped_because: str | None
    problem: str | None
    extracted_at: datetime | None
    withdraw_stage: str
    withdraw_problem: str | None


@dataclass(frozen=True)
class Intent:
    """A batch that is written down and may leave now."""

    batch_id: int
    idempotency_key: UUID


@dataclass(frozen=True)
class BatchContent:
    """What is written down of a batch before its first byte leaves; of the records in parallel, one element each.

    Attributes:
        holder: who has the clinic's lease; with ``epoch`` the fence.
        reasons: of withdrawals: why; ``revoked_at``: since when (aware).
        extracted_at: of what is sent: the instant whose state of Medlock it shows (aware).
        partner_ids: of what is sent: who sees it.
    """

    run_key: int | None
    clinic_id: int
    lpu_id: int
    operation: str
    holder: str
    epoch: int
    appointment_ids: Ids
    versions: Ids
    digests: Ids | None
    extracted_at: datetime | None = None
    reasons: Sequence[str] | None = None
    patient_ids: Ids | None = None
    partner_ids: Ids | None = None
    revoked_at: Sequence[datetime | None] | None = None


@dataclass(frozen=True)
class Decision:
    """The appointments of one clinic that share exactly these reasons for not being sent."""

    clinic_id: int
    decision: str
    reasons: tuple[str, ...]
    appointment_ids: Ids


@dataclass(frozen=True)
class BatchOutcome:
    """What became of a batch. A record named in none of the lists was accepted (if ``outcome`` is acknowledged)."""

    outcome: str
    http_status: int | None = None
    rejected: Mapping[int, Sequence[str]] = field(default_factory=dict)
    outdated: Sequence[int] = ()
    unknown: Sequence[int] = ()

    @property
    def accepts_all(self) -> bool:
        """Every record was accepted."""
        return self.outcome == "acknowledged" and not (self.rejected or self.outdated or self.unknown)


@dataclass(frozen=True)
class Resolution:
    """A batch, what became of it, and the instant of the last look before its first byte left (aware).

    is_first: each of its records is sent, and for the first time.
    """

    batch_id: int
    outcome: BatchOutcome
    looked_at: datetime | None = None
    is_first: bool = False


class Ledger(Alerts, Gauges, Messages, PartnerActions, Reconciliation, Switches, Withdrawals):
    """Access to all of the ledger; arguments and errors as for :class:`LedgerConnection`."""

    # -- runs and their numbers -------------------------------------------------------------------------------------

    def start_run(
        self,
        *,
        dag_id: str,
        run_id: str,
        run_type: str,
        mode: str,
        anchor: datetime,
        clinic_ids: Sequence[int] | None,
        started_at: datetime,
        clinics: Iterable[Mapping[str, Any]],
        shards: Sequence[Shard],
        is_of_today: bool | None = None,
    ) -> Run:
        """Write down a run with its clinics and shards; a run that was cleared starts anew under its old key.

        Args:
            clinics: one mapping per clinic with ``clinic_id``, ``lpu_id``, ``access_state``, ``closed_reason``,
                ``opens_at``, and ``expected_rows`` where the plan knows them.
            is_of_today: of a transfer, whether its window is that of the day on which it is planned.
        """
        shard_of = {clinic_id: index for index, shard in enumerate(shards) for clinic_id in shard.clinic_ids}
        with self._transaction() as cursor:
            cursor.execute(
                query("ledger/start_run"),
                {
                    "dag_id": dag_id,
                    "run_id": run_id,
                    "run_type": run_type,
                    "mode": mode,
                    "anchor": anchor,
                    "clinic_ids": list(clinic_ids) if clinic_ids is not None else None,
                    "started_at": started_at,
                    "is_of_today": is_of_today,
                },
            )
            run_key = cursor.fetchone()["run_key"]  # type: ignore[index]
            for table in (
                "run_shard",
                "run_clinic",
                "run_decision",
                "run_validation",
                "finding",
                "message_warning",
                "message_look",
                *SUM_TABLES,
            ):
                cursor.execute(f"DELETE FROM ledger.{table} WHERE run_key = %s", (run_key,))
            with cursor.copy("COPY ledger.run_shard (run_key, shard, label, kind, clinic_ids) FROM STDIN") as copy:
                for index, shard in enumerate(shards):
                    copy.write_row((run_key, index, shard.label, shard.kind, list(shard.clinic_ids)))
            columns = ("clinic_id", "lpu_id", "access_state", "closed_reason", "opens_at", "expected_rows")
            with cursor.copy(f"COPY ledger.run_clinic (run_key, shard, {', '.join(columns)}) FROM STDIN") as copy:
                for clinic in clinics:
                    row = [clinic.get(column) for column in columns]
                    copy.write_row((run_key, shard_of.get(clinic["clinic_id"]), *row))
        return self.run(dag_id, run_id)

    def run(self, dag_id: str, run_id: str) -> Run:
        """Return the run; raise :class:`RunIncompleteError` when ``plan_shards`` has not written it down."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT run_key, dag_id, run_id, run_type, mode, anchor, clinic_ids, started_at FROM ledger.run"
                " WHERE dag_id = %s AND run_id = %s",
                (dag_id, run_id),
            )
            row = cursor.fetchone()
        if row is None:
            raise RunIncompleteError(f"The ledger does not know run {run_id}: plan_shards has to succeed first.")
        return Run(**row)

    def shard(self, run_key: int, shard: int) -> RunShard:
        """Return one shard of a run; raise :class:`RunIncompleteError` when its plan has none of this number."""
        for item in self.shards(run_key):
            if item.shard == shard:
                return item
        raise RunIncompleteError(
            f"The run has no shard {shard} any more, since it was planned anew: clear it from plan_shards on."
        )

    def shards(self, run_key: int) -> list[RunShard]:
        """Return the shards of a run in order."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT run_key, shard, label, kind, clinic_ids, stage, skipped_because, problem, extracted_at,"
                " withdraw_stage, withdraw_problem FROM ledger.run_shard WHERE run_key = %s ORDER BY shard",
                (run_key,),
            )
            return [RunShard(**row) for row in cursor.fetchall()]

    def set_stage(
        self, run_key: int, shard: int, stage: str, *, because: str | None = None, problem: str | None = None
    ) -> None:
        """Note how far a shard has come, and, in one sentence without values, what is wrong there; a problem of an
        earlier attempt is forgotten.
        """
        with self._statement() as cursor:
            cursor.execute(
                "UPDATE ledger.run_shard SET stage = %s, skipped_because = %s, problem = %s, critical = 0"
                " WHERE run_key = %s AND shard = %s",
                (stage, because, problem, run_key, shard),
            )

    def set_withdraw_stage(self, run_key: int, shard: int, stage: str, problem: str | None) -> None:
        """Note how far a shard's withdrawals have come, and why they stopped."""
        with self._statement() as cursor:
            cursor.execute(
                "UPDATE ledger.run_shard SET withdraw_stage = %s, withdraw_problem = %s"
                " WHERE run_key = %s AND shard = %s",
                (stage, problem, run_key, shard),
            )

    def set_extracted_at(self, run_key: int, shard: int, extracted_at: datetime) -> None:
        """Note the instant whose state of Medlock the shard's staged copy shows."""
        with self._statement() as cursor:
            cursor.execute(
                "UPDATE ledger.run_shard SET extracted_at = %s WHERE run_key = %s AND shard = %s",
                (extracted_at, run_key, shard),
            )

    def set_problem(self, run_key: int, shard: int, problem: str, *, critical: int = 0) -> None:
        """Note why a shard stopped, in one sentence without values.

        Args:
            critical: how many critical expectations have stopped it.
        """
        with self._statement() as cursor:
            cursor.execute(
                "UPDATE ledger.run_shard SET problem = %s, critical = %s WHERE run_key = %s AND shard = %s",
                (problem, critical, run_key, shard),
            )

    def save_numbers(self, run_key: int, numbers: pd.DataFrame) -> None:
        """Set numbers of the funnel: column ``clinic_id`` and any of the columns of ``ledger.run_clinic``."""
        rows = json.loads(numbers.to_json(orient="records", date_format="iso", date_unit="us"))
        with self._statement() as cursor:
            cursor.execute(query("ledger/save_numbers"), {"run_key": run_key, "numbers": Jsonb(rows)})

    def save_decisions(
        self, run_key: int, stage: str, clinic_ids: Sequence[int], decisions: Iterable[Decision]
    ) -> None:
        """Replace, for these clinics and this stage (``withhold``, ``last_look``), what was not sent and why."""
        with self._transaction() as cursor:
            cursor.execute(
                "DELETE FROM ledger.run_decision WHERE run_key = %s AND stage = %s AND clinic_id = ANY(%s)",
                (run_key, stage, list(clinic_ids)),
            )
            with cursor.copy(
                "COPY ledger.run_decision (run_key, clinic_id, stage, decision, reasons, appointment_ids) FROM STDIN"
            ) as copy:
                for item in decisions:
                    copy.write_row(
                        (
                            run_key,
                            item.clinic_id,
                            stage,
                            item.decision,
                            list(item.reasons),
                            bigints(item.appointment_ids),
                        )
                    )

    def save_validation(self, run_key: int, shard: int, suite: str, result: Mapping[str, Any]) -> None:
        """Keep the reduced result of one suite for one shard."""
        with self._statement() as cursor:
            cursor.execute(
                "INSERT INTO ledger.run_validation (run_key, shard, suite, result) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (run_key, shard, suite) DO UPDATE SET result = excluded.result",
                (run_key, shard, suite, Jsonb(result)),
            )

    def validations(self, run_key: int) -> list[dict[str, Any]]:
        """Return the reduced results of a run's shards, by shard and suite."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT result FROM ledger.run_validation WHERE run_key = %s AND shard <> %s ORDER BY shard, suite",
                (run_key, RUN_SUITE_SHARD),
            )
            return [row["result"] for row in cursor.fetchall()]

    def row_history(self, clinic_ids: Ids, *, before_run_key: int | None = None, runs: int = 7) -> pd.DataFrame:
        """Return how many appointments the last runs extracted: columns ``clinic_id``, ``extracted``, newest first."""
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/row_history"),
                {
                    "clinic_ids": bigints(clinic_ids),
                    "before_run_key": before_run_key,
                    "runs": runs,
                },
            )
            return pd.DataFrame(cursor.fetchall(), columns=["clinic_id", "extracted"])

    def run_clinics(self, run_key: int, shard: int | None = None) -> pd.DataFrame:
        """Return the funnel of a run, one row per clinic: the columns of ``ledger.run_clinic``.

        Args:
            shard: only of this one's clinics; ``None`` for all, also those that are in none.
        """
        of_shard = "" if shard is None else " AND shard = %(shard)s"
        with self._statement() as cursor:
            cursor.execute(
                f"SELECT * FROM ledger.run_clinic WHERE run_key = %(run_key)s{of_shard} ORDER BY clinic_id",
                {"run_key": run_key, "shard": shard},
            )
            columns = [column.name for column in cursor.description or ()]
            return pd.DataFrame(cursor.fetchall(), columns=columns)

    def reasons(self, run_key: int) -> pd.DataFrame:
        """Return how many records each set of reasons held back: ``clinic_id, stage, decision, reasons, records``."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT clinic_id, stage, decision, reasons, cardinality(appointment_ids) AS records"
                " FROM ledger.run_decision WHERE run_key = %s ORDER BY clinic_id, stage, decision, reasons",
                (run_key,),
            )
            return pd.DataFrame(cursor.fetchall(), columns=["clinic_id", "stage", "decision", "reasons", "records"])

    def withdrawals_so_far(
        self, dag_id: str, run_id: str, clinic_ids: Sequence[int] | None = None
    ) -> tuple[pd.DataFrame, list[Decision]]:
        """Return what earlier attempts of a run have written down of their withdrawals: ``clinic_id``, ``withdrawn``,
        ``permitted_again``, ``held`` (int64), and their decisions.

        Args:
            clinic_ids: of these clinics; ``None`` for all of the run.
        """
        asked = {"dag_id": dag_id, "run_id": run_id, "clinic_ids": None if clinic_ids is None else list(clinic_ids)}
        of_asked = (
            " JOIN ledger.run USING (run_key) WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s"
            " AND (%(clinic_ids)s::bigint[] IS NULL OR clinic_id = ANY(%(clinic_ids)s::bigint[]))"
        )
        columns = ["clinic_id", "withdrawn", "permitted_again", "held"]
        with self._statement() as cursor:
            cursor.execute(
                "SELECT clinic_id, coalesce(withdrawn, 0) AS withdrawn,"
                " coalesce(permitted_again, 0) AS permitted_again, coalesce(held, 0) AS held"
                f" FROM ledger.run_clinic{of_asked}",
                asked,
            )
            numbers = pd.DataFrame(cursor.fetchall(), columns=columns).astype("int64")
            cursor.execute(
                "SELECT clinic_id, decision, reasons, appointment_ids"
                f" FROM ledger.run_decision{of_asked} AND stage = 'revoke'",
                asked,
            )
            decisions = [
                Decision(row["clinic_id"], row["decision"], tuple(row["reasons"]), row["appointment_ids"])
                for row in cursor.fetchall()
            ]
        return numbers, decisions

    def revoked_ids(self, run_key: int, clinic_ids: Sequence[int]) -> pd.DataFrame:
        """Return the records under their clinics' present ``lpu_id`` that a run found revoked, and does not hold:
        ``clinic_id``, ``appointment_id``.
        """
        with self._statement() as cursor:
            cursor.execute(
                "SELECT clinic_id, unnest(appointment_ids) AS appointment_id FROM ledger.run_decision"
                " WHERE run_key = %s AND stage = 'revoke' AND decision = 'revoked' AND clinic_id = ANY(%s)"
                " AND reasons <> '{lpu_changed}'",
                (run_key, list(clinic_ids)),
            )
            return pd.DataFrame(cursor.fetchall(), columns=["clinic_id", "appointment_id"]).astype("int64")

    def reason_history(self, before_run_key: int, runs: int = 7) -> pd.DataFrame:
        """Return records per reason and run of the runs before: ``run_key, reason, records, extracted``."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/reason_history"), {"run_key": before_run_key, "runs": runs})
            return pd.DataFrame(cursor.fetchall(), columns=["run_key", "reason", "records", "extracted"])

    def set_report(self, run_key: int, report: str | None) -> None:
        """Note where the Data Docs of a run lie; ``None`` while they are being made anew."""
        with self._statement() as cursor:
            cursor.execute("UPDATE ledger.run SET report = %s WHERE run_key = %s", (report, run_key))

    def forget_report(self, run_key: int) -> None:
        """Note that a run's Data Docs, if it has any, do not say any more what became of it."""
        with self._statement() as cursor:
            cursor.execute("UPDATE ledger.run SET report = NULL WHERE run_key = %s AND report IS NOT NULL", (run_key,))

    def report(self, run_key: int) -> str | None:
        """Return where the Data Docs of a run lie, or ``None`` when they were not published."""
        with self._statement() as cursor:
            cursor.execute("SELECT report FROM ledger.run WHERE run_key = %s", (run_key,))
            row = cursor.fetchone()
        return row["report"] if row else None

    def settle_run(self, run_key: int, problems: Sequence[str], *, broken: int = 0) -> None:
        """Close a run and keep its sums; ``problems`` are sentences, none means it succeeded.

        Args:
            broken: how many of them are conservation equations that do not hold.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE ledger.run SET outcome = %s, problems = %s, broken = %s,"
                " settled_at = coalesce(%s::timestamptz, clock_timestamp()) WHERE run_key = %s",
                ("failed" if problems else "succeeded", list(problems), broken, self._present(), run_key),
            )
            keep_sums(cursor, run_key)

    def is_unsettled(self, dag_id: str, run_id: str) -> bool:
        """Tell whether a run was begun and has not said what became of it."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT 1 FROM ledger.run WHERE dag_id = %s AND run_id = %s AND outcome = 'running'", (dag_id, run_id)
            )
            return cursor.fetchone() is not None

    def settle_interrupted(self, dag_id: str) -> int:
        """Close the runs of a DAG that were killed before they could say what became of them; return their number.

        For a DAG with one run at a time, before it begins one.
        """
        with self._statement() as cursor:
            cursor.execute(
                "UPDATE ledger.run SET outcome = 'failed', settled_at = coalesce(%s::timestamptz, clock_timestamp()),"
                " problems = ARRAY['It was killed before its end; the run after it has done what was left over.']"
                " WHERE dag_id = %s AND outcome = 'running'",
                (self._present(), dag_id),
            )
            return cursor.rowcount

    # -- records ----------------------------------------------------------------------------------------------------

    def known(self, clinic_ids: Sequence[int], appointment_ids: Sequence[int] | None = None) -> pd.DataFrame:
        """Return what is known of these clinics' records.

        Columns: ``clinic_id``, ``appointment_id``, ``lpu_id``, ``version`` (int64), ``state`` (str), ``acked_digest``
        (Int64), ``extracted_at`` (datetime64[us, UTC]); one row per record and lpu_id. A record in an intent without
        outcome counts as ``sending``.

        Args:
            appointment_ids: only these, each of the clinic at the same place in ``clinic_ids``; ``None`` for all.
        """
        name, settings = "ledger/known", {"medflex.clinic_ids": bigints(clinic_ids)}
        if appointment_ids is not None:
            name, settings["medflex.appointment_ids"] = "ledger/known_pairs", bigints(appointment_ids)
        with translated_ledger_errors():
            frame = read_frame(self._streams, query(name), settings=settings)
        return of_types(frame, dict.fromkeys(("clinic_id", "appointment_id", "lpu_id", "version"), "int64"))

    def clinics_with_records(self) -> list[int]:
        """Return the clinics of which Medflex may show anything: something was sent, or may have been."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/clinics_with_records"))
            return [row["clinic_id"] for row in cursor.fetchall()]

    # -- leases -----------------------------------------------------------------------------------------------------

    def begin_writing(self, holder: str) -> UUID:
        """Become the living attempt of a task that writes.

        Whoever was it before can acquire nothing any more, and what it still holds is let go: this attempt may find
        nothing left to do for these clinics, and others would wait for them until the lease expires.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO ledger.writer (holder, started_at) VALUES (%s, coalesce(%s::timestamptz,"
                " clock_timestamp())) ON CONFLICT (holder) DO UPDATE SET token = excluded.token,"
                " started_at = excluded.started_at RETURNING token",
                (holder, self._present()),
            )
            token: UUID = cursor.fetchone()["token"]  # type: ignore[index]
            cursor.execute("SELECT clinic_id, epoch FROM ledger.lease WHERE holder = %s", (holder,))
            self.release({row["clinic_id"]: row["epoch"] for row in cursor.fetchall()}, holder)
            return token

    def acquire(
        self,
        clinic_ids: Sequence[int],
        holder: str,
        seconds: int = LEASE_SECONDS,
        *,
        purpose: str = "send",
        token: UUID | None = None,
    ) -> dict[int, int]:
        """Become the only writer of these clinics; return the epoch of each one that could be had.

        The same ``holder`` takes its own lease over again (a task that is tried once more), with a new epoch; the
        purpose ``withdraw`` takes over what is held for another purpose.

        Args:
            token: what ``begin_writing`` gave.

        Raises:
            LeaseLostError: another attempt of this task has begun to write since.
        """
        with self._transaction() as cursor:
            if token is not None:
                cursor.execute("SELECT token FROM ledger.writer WHERE holder = %s FOR SHARE", (holder,))
                row = cursor.fetchone()
                if row is None or row["token"] != token:
                    raise LeaseLostError("Another attempt of this task has taken over, so this one stops.")
            cursor.execute(
                query("ledger/acquire_leases"),
                {
                    "clinic_ids": list(clinic_ids),
                    "holder": holder,
                    "purpose": purpose,
                    "seconds": seconds,
                    "now": self._present(),
                },
            )
            return {row["clinic_id"]: row["epoch"] for row in cursor.fetchall()}

    def renew(self, epochs: Mapping[int, int], holder: str, seconds: int = LEASE_SECONDS) -> int:
        """Keep the leases that are still ours for another ``seconds``; return how many these are."""
        return self._update_leases(epochs, holder, seconds)

    def release(self, epochs: Mapping[int, int], holder: str) -> None:
        """Let the leases go that are still ours."""
        self._update_leases(epochs, holder, None)

    def _update_leases(self, epochs: Mapping[int, int], holder: str, seconds: int | None) -> int:
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/update_leases"),
                {
                    "clinic_ids": list(epochs),
                    "epochs": list(epochs.values()),
                    "holder": holder,
                    "seconds": seconds,
                    "now": self._present(),
                },
            )
            return cursor.rowcount

    @again_after_deadlock
    def fold_open_batches(self, clinic_ids: Sequence[int]) -> int:
        """Mark what an interrupted task may have sent as ``sending``; return the number of such batches.

        Only the holder of the clinics' leases may call this.
        """
        with self._statement() as cursor:
            cursor.execute(query("ledger/fold_open_batches"), {"clinic_ids": list(clinic_ids), "now": self._present()})
            return int(cursor.fetchone()["batches"])  # type: ignore[index]

    # -- batches ----------------------------------------------------------------------------------------------------

    def record_intent(self, **content: Any) -> Intent:
        """Make a batch durable; only then may its first byte leave.

        Args:
            content: the fields of :class:`BatchContent`.

        Raises:
            LeaseLostError: another task has taken the clinic over.
        """
        (intent,) = self.record_intents([BatchContent(**content)])
        if intent is None:
            raise LeaseLostError.of(content["clinic_id"])
        return intent

    def record_intents(self, batches: Sequence[BatchContent]) -> list[Intent | None]:
        """Make batches durable, all or none; ``None`` for one whose clinic another task has taken over."""
        # In this order everybody locks leases, so that no two wait for each other.
        rows = self._for_each([("ledger/record_intent", self._intent(batch)) for batch in batches], by="clinic_id")
        return [Intent(row["batch_id"], row["idempotency_key"]) if row else None for row in rows]

    def _intent(self, batch: BatchContent) -> dict[str, Any]:
        return {
            **vars(batch),
            # As literals: the driver looks at each number of a list by itself.
            **{
                name: bigints(ids) if (ids := getattr(batch, name)) is not None else None
                for name in ("appointment_ids", "versions", "digests", "patient_ids", "partner_ids")
            },
            "reasons": list(batch.reasons) if batch.reasons is not None else None,
            "revoked_at": list(batch.revoked_at) if batch.revoked_at is not None else None,
            "now": self._present(),
        }

    def resolve(self, batch_id: int, result: BatchOutcome, looked_at: datetime | None = None) -> bool:
        """Write down what became of a batch and of its records; ``False`` when another task did so before.

        Args:
            looked_at: the instant of the last look before its first byte left.
        """
        return self.resolve_together([Resolution(batch_id, result, looked_at)])[0]

    def resolve_together(self, resolutions: Sequence[Resolution]) -> list[bool]:
        """Write down what became of batches and their records, all or none; ``False`` for one that another task has
        resolved before, or that is no sending though it ``is_first``.
        """
        asked = [
            (
                "ledger/resolve_first" if item.is_first and item.outcome.accepts_all else "ledger/resolve_batch",
                self._resolution(item),
            )
            for item in resolutions
        ]
        # In this order everybody locks batches, so that no two wait for each other.
        try:
            rows = self._for_each(asked, by="batch_id")
        except LedgerConflictError:
            # A record had a first version already, in another open batch: all are written anew, and looked for first.
            rows = self._for_each([("ledger/resolve_batch", parameters) for _, parameters in asked], by="batch_id")
        return [bool(row and row["batches"]) for row in rows]

    def _resolution(self, resolution: Resolution) -> dict[str, Any]:
        result = resolution.outcome
        return {
            "batch_id": resolution.batch_id,
            "outcome": result.outcome,
            "http_status": result.http_status,
            "rejected_ids": list(result.rejected),
            "rejected_fields": Jsonb({str(key): list(value) for key, value in result.rejected.items()}),
            "outdated_ids": list(result.outdated),
            "unknown_ids": list(result.unknown),
            "looked_at": resolution.looked_at,
            "now": self._present(),
        }

    @again_after_deadlock
    def raise_versions(
        self,
        clinic_id: int,
        lpu_id: int,
        versions: Mapping[int, int],
        hidden: Sequence[int] = (),
        *,
        holder: str,
        epoch: int,
    ) -> bool:
        """Number on from the versions that Medflex shows; ``False`` when another task has taken the clinic over.

        Args:
            hidden: records for which Medflex holds a newer version that it does not show (withdrawn there): these are
                numbered on by a leap, or each attempt would come one version closer only.
        """
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/raise_versions"),
                {
                    "clinic_id": clinic_id,
                    "lpu_id": lpu_id,
                    "appointment_ids": [*versions, *hidden],
                    "versions": [*versions.values(), *[None] * len(hidden)],
                    "holder": holder,
                    "epoch": epoch,
                },
            )
            return bool(cursor.fetchone()["fences"])  # type: ignore[index]

    # -- the shared rate --------------------------------------------------------------------------------------------

    def reserve_slot(self, name: str, interval_seconds: float, most_seconds: float = 3600.0) -> float:
        """Take the next free place in the rate called ``name``; return how many seconds to wait for it.

        A place further away than ``most_seconds`` is not taken; the number returned is then larger.
        """
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/reserve_slot"),
                {
                    "name": name,
                    "interval_seconds": interval_seconds,
                    "most_seconds": most_seconds,
                    "now": self._present(),
                },
            )
            return max(0.0, float(cursor.fetchone()["seconds"]))  # type: ignore[index]

    def pause_rate(self, name: str, seconds: float) -> None:
        """Let nobody use the rate called ``name`` for ``seconds`` from now."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/pause_rate"), {"name": name, "seconds": seconds, "now": self._present()})
