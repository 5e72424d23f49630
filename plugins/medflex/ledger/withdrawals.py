"""The ledger's side of withdrawals: what Medflex shows or may show, open revocations, held absences, the watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import orjson
import pandas as pd
from psycopg.types.json import Jsonb

from medflex.arrow import of_types, read_frame
from medflex.domain.revocations import ABSENCE
from medflex.errors import BadParameterError
from medflex.ledger.connection import LedgerConnection, again_after_deadlock, translated_ledger_errors
from medflex.sql import bigints, query

KEY = ("clinic_id", "appointment_id", "lpu_id")
"""What names a record."""
_NOTE_WATCH = (
    "INSERT INTO ledger.watch (name, looked_at, value) VALUES (%s, %s, %s) ON CONFLICT (name)"
    " DO UPDATE SET looked_at = excluded.looked_at, value = excluded.value"
)
_KEPT_COLUMNS = (*KEY, "reason", "by_absence", "revoked_at", "found_at")
_KEPT = f"SELECT {', '.join(_KEPT_COLUMNS)} FROM ledger.revocation "
COUNTED_CLINICS = 200
"""The records of so many clinics are counted by one statement."""
TOUCHED_IDS = 100_000
"""By so many appointments and patients records are looked up by one statement."""
_PART_ROWS = 50_000
"""So many revocations are written by one statement."""


@dataclass(frozen=True)
class Hold:
    """Records of one clinic whose rows have vanished, and which stay at Medflex until a person decides."""

    hold_id: int
    clinic_id: int
    found_at: datetime
    appointment_ids: list[int]
    lpu_ids: list[int]
    reasons: list[str]
    live: int
    run_key: int | None
    asked_in: str | None
    asked_at: datetime | None
    state: str
    decided_by: str | None
    decided_at: datetime | None


@dataclass(frozen=True)
class Late:
    """Revocations that are open for longer than they may be."""

    records: int
    clinics: int
    oldest: datetime | None


class Withdrawals(LedgerConnection):
    """Part of :class:`medflex.ledger.store.Ledger`."""

    # -- what Medflex shows or may show -----------------------------------------------------------------------------

    def live(self, clinic_ids: Sequence[int], appointment_ids: Sequence[int] | None = None) -> pd.DataFrame:
        """Return LIVE (see ``find_revocations``): all records of these clinics that are not settled as withdrawn.

        Args:
            appointment_ids: only these, each of the clinic at the same place in ``clinic_ids``; ``None`` for all.
        """
        if not len(clinic_ids):
            return _empty_live()
        with translated_ledger_errors():
            frame = read_frame(
                self._streams,
                query("ledger/live"),
                settings={
                    "medflex.clinic_ids": bigints(clinic_ids),
                    "medflex.appointment_ids": "" if appointment_ids is None else bigints(appointment_ids),
                },
                nullable_ids=("patient_id",),
            )
        return of_types(frame, {**dict.fromkeys((*KEY, "version"), "int64"), "state": "str", "partner_ids": "str"})

    def touched(self, appointment_ids: Sequence[int], patient_ids: Sequence[int]) -> pd.DataFrame:
        """Return the records that may show these appointments or patients, under whichever clinic: ``clinic_id``,
        ``appointment_id`` (int64).
        """
        found: list[dict[str, Any]] = []
        # Of very many ids in one statement Postgres would rather read all records.
        for start in range(0, max(len(appointment_ids), len(patient_ids)), TOUCHED_IDS):
            some = slice(start, start + TOUCHED_IDS)
            with self._statement() as cursor:
                cursor.execute(
                    query("ledger/touched"),
                    {"appointment_ids": _list(appointment_ids[some]), "patient_ids": _list(patient_ids[some])},
                )
                found += cursor.fetchall()
        return pd.DataFrame(found, columns=["clinic_id", "appointment_id"]).astype("int64").drop_duplicates()

    def live_counts(self, clinic_ids: Sequence[int], *, in_window: bool = False) -> dict[int, int]:
        """Return clinic → number of records that Medflex shows or may show of it.

        Args:
            in_window: without those that have left the window by the passing of time.
        """
        counts: dict[int, int] = {}
        # Of all clinics' records in one statement that takes minutes, and longer than a statement may.
        for start in range(0, len(clinic_ids), COUNTED_CLINICS):
            some = _list(clinic_ids[start : start + COUNTED_CLINICS])
            counts |= self._counts("ledger/live_counts", {"clinic_ids": some, "in_window": in_window})
        return counts

    @again_after_deadlock
    def age_out(self, records: pd.DataFrame) -> None:
        """Mark records (``KEY``) as having left the window by the passing of time."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/age_out"), _key_lists(records))

    # -- revocations ------------------------------------------------------------------------------------------------

    def open_revocations(self, clinic_ids: Sequence[int]) -> pd.DataFrame:
        """Return what is to be withdrawn of these clinics and not acknowledged: REVOCATIONS_KEPT: ``KEY``, ``reason``,
        ``by_absence``, ``revoked_at``, ``found_at``.
        """
        return self._revocations(_KEPT + "WHERE clinic_id = ANY(%s::bigint[])", (_list(clinic_ids),))

    def found_revocations(self, found_at: datetime, *, most: int) -> pd.DataFrame:
        """Return REVOCATIONS_KEPT that were found exactly then, so many at most."""
        sql = _KEPT + "WHERE found_at = %s ORDER BY clinic_id, appointment_id LIMIT %s"
        return self._revocations(sql, (found_at, most))

    def some_revocations(self, wanted: pd.DataFrame, *, seed: int, besides: datetime | None = None) -> pd.DataFrame:
        """Return REVOCATIONS_KEPT, of each clinic under each lpu_id so many, of which chance decides.

        Args:
            wanted: ``clinic_id``, ``lpu_id``, ``records`` (how many at most), int64.
            seed: another one, other revocations.
            besides: without those that were found exactly then.
        """
        parameters = {
            "clinic_ids": wanted["clinic_id"].tolist(),
            "lpu_ids": wanted["lpu_id"].tolist(),
            "most": wanted["records"].tolist(),
            "seed": seed,
            "besides": besides,
        }
        return self._revocations(query("ledger/some_revocations"), parameters)

    def revocations_waiting(self, *, besides: datetime | None = None) -> pd.DataFrame:
        """Return how many revocations are open: ``clinic_id``, ``lpu_id``, ``records`` (int64).

        Args:
            besides: without those that were found exactly then.
        """
        columns = ["clinic_id", "lpu_id", "records"]
        with self._statement() as cursor:
            cursor.execute(
                "SELECT clinic_id, lpu_id, count(*) AS records FROM ledger.revocation"
                " WHERE found_at IS DISTINCT FROM %s GROUP BY clinic_id, lpu_id ORDER BY clinic_id, lpu_id",
                (besides,),
            )
            return pd.DataFrame(cursor.fetchall(), columns=columns).astype("int64")

    def _revocations(self, sql: str, parameters: Any) -> pd.DataFrame:
        with self._statement() as cursor:
            cursor.execute(sql.encode(), parameters)
            return of_types(pd.DataFrame(cursor.fetchall(), columns=list(_KEPT_COLUMNS)), dict.fromkeys(KEY, "int64"))

    @again_after_deadlock
    def save_revocations(
        self,
        revocations: pd.DataFrame,
        found_at: datetime,
        *,
        watch: Mapping[str, Mapping[str, Any]] | None = None,
        clinics: Mapping[int, Mapping[str, Any]] | None = None,
        takes_from: datetime | None = None,
    ) -> int:
        """Keep REVOCATIONS until they are acknowledged and, in the same transaction, how far the look has come.

        Args:
            watch: name → value of each watch that has come to ``found_at``.
            clinics: the permissions as they were looked at: clinic → ``lpu_id``, ``is_open``, ``partner_ids``,
                ``changed_at`` (ISO 8601) for those that differ from what was known, and ``writes`` of ``clinics_seen``
                from before they were (none: 0). What a sender or another look has written since then stays as it is.
            takes_from: what is known since exactly then counts as found now.

        Returns:
            How many were not known before.
        """
        # In one order: several lanes write at once.
        revocations = revocations.sort_values(list(KEY))
        with self._transaction() as cursor:
            new = 0
            # In parts: a partner that goes can revoke millions at once, more than one statement has time for.
            for start in range(0, len(revocations), _PART_ROWS):
                part = revocations.iloc[start : start + _PART_ROWS]
                cursor.execute(
                    query("ledger/save_revocations"),
                    {
                        **_key_lists(part),
                        "reasons": part["reason"].tolist(),
                        "by_absence": part["by_absence"].tolist(),
                        "revoked_at": instants(part["revoked_at"]),
                        "found_at": found_at,
                        "takes_from": takes_from,
                    },
                )
                new += int(cursor.fetchone()["new"])  # type: ignore[index]
            for name, value in (watch or {}).items():
                cursor.execute(_NOTE_WATCH, (name, found_at, Jsonb(dict(value))))
            if clinics:
                rows = [{"clinic_id": clinic_id, **seen} for clinic_id, seen in clinics.items()]
                cursor.execute(query("ledger/save_clinics_seen"), {"clinics": Jsonb(rows, dumps=orjson.dumps)})
        return new

    @again_after_deadlock
    def close_revocations(self, records: pd.DataFrame) -> None:
        """Forget revocations (``KEY``) that hold no more."""
        records = records.sort_values(list(KEY))
        with self._transaction() as cursor:
            for start in range(0, len(records), _PART_ROWS):
                part = records.iloc[start : start + _PART_ROWS]
                cursor.execute(query("ledger/close_revocations"), _key_lists(part))

    def withdrawn_by_absence(
        self,
        clinic_ids: Sequence[int],
        since: datetime,
        *,
        answered_since: datetime,
        besides: pd.DataFrame | None = None,
    ) -> dict[int, int]:
        """Return clinic → records that were withdrawn since then because their rows had vanished.

        Args:
            answered_since: what a person has released since then is not counted, if it was withdrawn behind that
                answer, and not sent again in between.
            besides: records (``clinic_id``, ``appointment_id``) that are not counted.
        """
        not_counted = {f"besides_{name}s": [] if besides is None else besides[name].tolist() for name in KEY[:2]}
        return self._counts(
            "ledger/withdrawn_by_absence",
            {
                "clinic_ids": _list(clinic_ids),
                "since": since,
                "reasons": sorted(map(str, ABSENCE)),
                "answered_since": answered_since,
                **not_counted,
            },
        )

    def late_revocations(self, deadline_seconds: float) -> Late:
        """Return what has been open for longer than ``deadline_seconds``."""
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/late_revocations"), {"deadline_seconds": deadline_seconds, "now": self._present()}
            )
            return Late(**cursor.fetchone())  # type: ignore[arg-type]

    def times_to_withdraw(self, since: datetime) -> pd.DataFrame:
        """Return the acknowledged withdrawals since then: ``clinic_id``, ``appointment_id``, ``reason``,
        ``revoked_at``, ``acknowledged_at``, ``seconds`` between the two.
        """
        columns = ["clinic_id", "appointment_id", "reason", "revoked_at", "acknowledged_at", "seconds"]
        with self._statement() as cursor:
            cursor.execute(query("ledger/times_to_withdraw"), {"since": since})
            return pd.DataFrame(cursor.fetchall(), columns=columns)

    # -- the watch --------------------------------------------------------------------------------------------------

    def watch(self, name: str) -> tuple[datetime, dict[str, Any]] | None:
        """Return how far a look has come, and what it noted; ``None`` if there was none yet."""
        with self._statement() as cursor:
            cursor.execute("SELECT looked_at, value FROM ledger.watch WHERE name = %s", (name,))
            row = cursor.fetchone()
        return (row["looked_at"], row["value"]) if row else None

    def note_watch(self, name: str, looked_at: datetime, value: Mapping[str, Any]) -> None:
        """Note how far a look has come, and what it says, without anything that it has found."""
        with self._statement() as cursor:
            cursor.execute(_NOTE_WATCH, (name, looked_at, Jsonb(dict(value))))

    def begin_watch(self, name: str, at: datetime) -> None:
        """Note from when on a look is to be expected, unless it has noted anything."""
        with self._statement() as cursor:
            cursor.execute(
                "INSERT INTO ledger.watch (name, looked_at) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING", (name, at)
            )

    def clinics_seen(self) -> dict[int, dict[str, Any]]:
        """Return the permissions of each clinic as last looked at, when they last changed, and how often they were
        written: clinic → ``lpu_id``, ``is_open``, ``partner_ids``, ``changed_at``, ``writes``.
        """
        with self._statement() as cursor:
            cursor.execute("SELECT clinic_id, lpu_id, is_open, partner_ids, changed_at, writes FROM ledger.clinic_seen")
            return {row.pop("clinic_id"): row for row in cursor.fetchall()}

    @again_after_deadlock
    def widen_clinics_seen(self, clinics: Mapping[int, Mapping[str, Any]]) -> None:
        """Remember that records are about to leave under these permissions (clinic → ``lpu_id``, ``is_open``,
        ``partner_ids``, all open): when less is permitted, the next look finds that, also where no look has seen these.
        """
        rows = [{"clinic_id": clinic_id, **permissions} for clinic_id, permissions in clinics.items()]
        with self._statement() as cursor:
            cursor.execute(query("ledger/widen_clinics_seen"), {"clinics": Jsonb(rows, dumps=orjson.dumps)})

    # -- holds ------------------------------------------------------------------------------------------------------

    def holds(self, clinic_ids: Sequence[int], decided_since: datetime) -> list[Hold]:
        """Return the open questions about these clinics, and those that were decided since then."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT * FROM ledger.hold WHERE clinic_id = ANY(%s) AND (state = 'open' OR decided_at >= %s)"
                " ORDER BY hold_id",
                (_list(clinic_ids), decided_since),
            )
            return [Hold(**row) for row in cursor.fetchall()]

    def save_hold(self, records: pd.DataFrame, *, live: int, found_at: datetime, run_key: int | None) -> bool:
        """Ask about records of one clinic (``KEY``, ``reason``); ``False`` when a question about it is open."""
        keys = _key_lists(records)
        with self._statement() as cursor:
            cursor.execute(
                "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live, run_key)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (clinic_id) WHERE state = 'open' DO NOTHING",
                (
                    keys["clinic_ids"][0],
                    found_at,
                    keys["appointment_ids"],
                    keys["lpu_ids"],
                    records["reason"].tolist(),
                    live,
                    run_key,
                ),
            )
            return cursor.rowcount == 1

    def claim_holds(self, asked_in: str, most: int) -> list[Hold]:
        """Take over the questions that nobody asks yet, or that have stood in another run for a week (it may have been
        deleted; only the newest question counts); return them with those taken before, by clinic.

        Args:
            most: so many in all at most, those taken before and then the oldest.
        """
        with self._statement() as cursor:
            cursor.execute(query("ledger/claim_holds"), {"asked_in": asked_in, "most": most, "now": self._present()})
            return sorted((Hold(**row) for row in cursor.fetchall()), key=lambda hold: hold.clinic_id)

    def unasked_holds(self) -> int:
        """Return how many questions nobody asks, or has asked for a month: what Airflow removes of old runs are also
        those that wait.
        """
        with self._statement() as cursor:
            cursor.execute(
                "SELECT count(*) AS holds FROM ledger.hold WHERE state = 'open' AND (asked_in IS NULL"
                " OR asked_at < coalesce(%s::timestamptz, clock_timestamp()) - interval '30 days')",
                (self._present(),),
            )
            return int(cursor.fetchone()["holds"])  # type: ignore[index]

    def hold(self, hold_id: int) -> Hold:
        """Return one question.

        Raises:
            BadParameterError: there is no such hold.
        """
        with self._statement() as cursor:
            cursor.execute("SELECT * FROM ledger.hold WHERE hold_id = %s", (hold_id,))
            row = cursor.fetchone()
        if row is None:
            raise BadParameterError(f"The ledger has no hold {hold_id}: it was removed long after it was decided.")
        return Hold(**row)

    def decide_hold(self, hold_id: int, state: str, decided_by: str | None) -> bool:
        """Close a question as ``released``, ``kept`` or ``obsolete``; ``False`` when it was closed before."""
        with self._statement() as cursor:
            cursor.execute(
                "UPDATE ledger.hold SET state = %s, decided_by = %s,"
                " decided_at = coalesce(%s::timestamptz, clock_timestamp()) WHERE hold_id = %s AND state = 'open'",
                (state, decided_by, self._present(), hold_id),
            )
            return cursor.rowcount == 1

    # -- writers ----------------------------------------------------------------------------------------------------

    def _counts(self, name: str, parameters: Mapping[str, Any]) -> dict[int, int]:
        with self._statement() as cursor:
            cursor.execute(query(name), parameters)
            return {int(row["clinic_id"]): int(row["records"]) for row in cursor.fetchall()}


# What Python's calendar can hold; Postgres and Arrow hold more. Nothing that is missing lies between them.
_FIRST, _LAST = (pd.Timestamp(limit, tz="UTC") for limit in ("0001-01-02", "9999-12-30"))


def instants(times: pd.Series) -> list[datetime | None]:
    """Return instants as Python's, a missing one as ``None``."""
    return [time.to_pydatetime() if _FIRST <= time <= _LAST else None for time in times]


def _list(ids: Sequence[int]) -> list[int]:
    return [int(item) for item in ids]


def _key_lists(records: pd.DataFrame) -> dict[str, list[int]]:
    return {f"{name}s": records[name].astype("int64").tolist() for name in KEY}


def _empty_live() -> pd.DataFrame:
    types = {
        **dict.fromkeys((*KEY, "version"), "int64"),
        "state": "str",
        "patient_id": "Int64",
        "partner_ids": "str",
        **dict.fromkeys(("changed_at", "extracted_at"), "datetime64[us, UTC]"),
    }
    return pd.DataFrame({name: pd.Series([], dtype=cast("Any", type_)) for name, type_ in types.items()})
