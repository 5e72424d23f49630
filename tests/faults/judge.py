"""The judge: what Medflex receives and what it shows, held against Medlock as the model sees it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import psycopg

from sandbox.medflex.store import Store
from tests.faults.machine import Machine, Process
from tests.faults.medlock import FLAGS, Key, Medlock, Row, clinic_of

MOST_ABSENT = 10
"""So many records of a clinic may be withdrawn within a day because rows are gone; 2 % of so few records is less."""

MOST_AGE = timedelta(seconds=1)
"""So old a last look may be when the request begins."""


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold (docs/invariants.md), and how."""

    invariant: str
    text: str


class Judge:
    """Watches one schedule."""

    def __init__(self, machine: Machine, medlock: Medlock, store: Store) -> None:
        self.machine, self.medlock, self.store = machine, medlock, store
        self.violations: list[Violation] = []
        self.writes = 0
        self.ever_turned: set[int] = set()
        self.ever_refused: set[int] = set()
        self.ever_absent: set[int] = set()
        self.ever_closed: set[int] = set()
        self._written: dict[tuple[int, int, int], bytes] = {}
        self._new: list[tuple[int, int, int]] = []
        self._keys: dict[str, bytes] = {}
        self.renewed: set[int] = set()
        self._by_absence: dict[int, dict[int, datetime]] = defaultdict(dict)
        machine.on_request = self.on_request
        machine.on_refusal = self.on_refusal
        machine.on_read = self.on_read

    def blame(self, invariant: str, text: str) -> None:
        """Write a violation down, once."""
        violation = Violation(invariant, text)
        if violation not in self.violations:
            self.violations.append(violation)
            self.machine.note(f"!!! {invariant}: {text}")

    # -- while it happens --------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Note what may not be shown right now; called whenever Medlock or the time has changed."""
        now, medlock = self.machine.clock.now(), self.medlock
        self.ever_closed |= {clinic_id for clinic_id in medlock.rows["clinic"] if not self._is_shared(clinic_id)}
        for id_, row in medlock.rows["appointment"].items():
            if not medlock.permitted(id_, now) or medlock.days_ahead(id_, now) > 30:
                self.ever_turned.add(id_)
                clinic_id = row["clinic_id"]
                if medlock.refused(id_) or not self._is_shared(clinic_id):
                    self.ever_refused.add(id_)
                elif medlock.absent(id_):
                    self.ever_absent.add(id_)

    def _is_shared(self, clinic_id: int) -> bool:
        return self.medlock.is_open(clinic_id, self.machine.clock.now()) and bool(self.medlock.partners(clinic_id))

    def turned(self, ids: Any, refused: bool) -> None:
        """Note that the records of these appointments have to be withdrawn, for a reason that leaves no trace."""
        self.ever_turned |= set(ids)
        if refused:
            self.ever_refused |= set(ids)
        else:
            self.ever_absent |= set(ids)

    def on_read(self, process: Process, name: str, arguments: tuple[Any, ...]) -> None:
        """The product reads Medlock; what the last look sees is what is committed at this instant."""
        medlock, now = self.medlock, self.machine.clock.now()
        if name == "consent_now":
            for id_ in arguments[1]:
                row = medlock.rows["appointment"].get(id_)
                patient = row["patient_id"] if row and medlock.people(row) != (None, None) else None
                process.flags_seen[id_] = (row is not None and not medlock.refused(id_), patient, now)
        elif name == "clinics":
            for clinic_id, row in medlock.rows["clinic"].items():
                state = (medlock.is_open(clinic_id, now), medlock.partners(clinic_id), row["lpu_id"], now)
                process.clinics_seen[clinic_id] = state

    def on_request(self, process: Process, path: str, key: str, body: Row) -> None:
        """A request that writes has arrived at Medflex."""
        self.writes += 1
        lpu_id, sends = body["lpu_id"], path.startswith("/appointments/batch")
        raw = orjson.dumps([path, body], option=orjson.OPT_SORT_KEYS)
        if self._keys.setdefault(key, raw) != raw:
            self.blame("I4", f"{process.name} uses a key for two bodies")
        self._new = []
        for record in body["records"]:
            version = (lpu_id, record["id"], record["version"])
            content = orjson.dumps(record, option=orjson.OPT_SORT_KEYS) if sends else b"withdrawn"
            if version not in self._written:
                self._new.append(version)
            if self._written.setdefault(version, content) != content:
                self.blame("I4", f"{process.name} uses version {version} for two contents")
            if sends:
                self._may_be_sent(process, lpu_id, record)
                # Whoever sends it again has to look again.
                process.flags_seen.pop(record["id"], None)
            else:
                self._may_be_withdrawn(process, lpu_id, record["id"])

    def on_refusal(self) -> None:
        """The request just received was turned away unread: its versions may be used again."""
        for version in self._new:
            del self._written[version]
        self._new = []

    def _may_be_sent(self, process: Process, lpu_id: int, record: Row) -> None:
        id_ = record["id"]
        permitted, patient, seen = process.flags_seen.get(id_, (None, None, None))
        is_open, partners, lpu_now, clinic_seen = process.clinics_seen.get(clinic_of(id_), (None, set(), None, None))
        what = f"{process.name} sends {id_} (version {record['version']})"
        if seen is None or clinic_seen is None:
            self.blame("I1", f"{what} without a last look")
        elif process.stepped_at - min(seen, clinic_seen) > MOST_AGE:
            self.blame("I1", f"{what} long after the last look")
        elif not permitted:
            self.blame("I1", f"{what}, which the last look has seen refused")
        elif not is_open or lpu_now != lpu_id:
            self.blame("I1", f"{what}, whose clinic the last look has seen closed or elsewhere")
        elif not record["partners"] or not set(record["partners"]) <= partners:
            self.blame("I1", f"{what} to a partner whom the last look has not seen linked")
        else:
            content = {name: value for name, value in record.items() if name not in ("version", "partners")}
            if (patient, content) not in self.medlock.history.get(id_, []):
                self.blame("I1", f"{what} with a content that it never had with the patient of the last look")

    def _may_be_withdrawn(self, process: Process, lpu_id: int, id_: int) -> None:
        now, medlock = self.machine.clock.now(), self.medlock
        self.look()
        # What Medlock has never had may be withdrawn: a listing that lies names such ids. And where Medflex lets an
        # older version win, reconciliation takes that back before the right one is sent.
        renews = self.machine.ignores_versions and "reconcile" in process.name
        if renews:
            self.renewed.add(id_)
        if id_ in medlock.rows["appointment"] and id_ not in self.ever_turned and not renews:
            self.blame("I2", f"{process.name} withdraws {id_}, which nobody has ever revoked")
        said_no = id_ in self.ever_refused or clinic_of(id_) in self.ever_closed or self._patient_says_no(id_)
        clinic = medlock.rows["clinic"].get(clinic_of(id_))
        # At a number that is no longer the clinic's nothing of it may be shown, whatever has become of the rows.
        said_no = said_no or (clinic is not None and clinic["lpu_id"] != lpu_id)
        if not said_no and medlock.absent(id_) and not medlock.refused(id_):
            gone = self._by_absence[clinic_of(id_)]
            gone[id_] = now
            if sum(now - at < timedelta(hours=24) for at in gone.values()) > MOST_ABSENT:
                self.blame("I3", f"{process.name} withdraws more than {MOST_ABSENT} records of a clinic by absence")

    def _patient_says_no(self, id_: int) -> bool:
        """Somebody whose data was shown under this appointment says no, whether or not the appointment is there."""
        people = (self.medlock.rows["patient"].get(patient) for patient, _ in self.medlock.history.get(id_, ()))
        return any(person is not None and any(person[flag] is not False for flag in FLAGS) for person in people)

    # -- at the end --------------------------------------------------------------------------------------------------

    def shown(self) -> dict[Key, Row]:
        """What partners see."""
        rows = self.store._db.execute("SELECT lpu_id, id, body FROM record WHERE body IS NOT NULL")
        return {(lpu_id, id_): orjson.loads(body) for lpu_id, id_, body in rows}

    def judge_end(self, ledger: psycopg.Connection[Any], shown_before: dict[Key, Row], ignores_versions: bool) -> None:
        """All faults are healed and one quiet run is over: Medflex, Medlock and the ledger must agree."""
        now, medlock = self.machine.clock.now(), self.medlock
        shown, expected = self.shown(), medlock.expected(now)
        for key, record in expected.items():
            if key not in shown:
                self.blame("I2", f"{key} is missing")
            elif {name: value for name, value in shown[key].items() if name != "version"} != record:
                self.blame("I2", f"{key} is older than Medlock")
        held = self._held(ledger, shown)
        for key, record in shown.items():
            if key not in expected and key not in held:
                self._judge_extra(key, record, now)
        for key in shown_before.keys() - shown.keys():
            # What was older than acknowledged, where Medflex lets that win, is taken back; past the window it cannot be
            # sent again (R6).
            turned = key[1] in self.ever_turned or key[1] in self.renewed
            if key[1] in self.medlock.rows["appointment"] and not turned and key not in expected:
                self.blame("I2", f"{key} has left the window, may still be shown, and is gone")
        self._judge_ledger(ledger, shown, self._asked_about(ledger))
        if not ignores_versions:
            self._judge_versions()

    def _judge_extra(self, key: Key, record: Row, now: datetime) -> None:
        """A record outside the window stays only if its time has passed and everybody still agrees."""
        medlock, (lpu_id, id_) = self.medlock, key
        row = medlock.rows["appointment"].get(id_)
        if row is None or medlock.refused(id_) or not medlock.permitted(id_, now):
            self.blame("I3", f"{key} is shown and may not be")
            return
        content = {name: value for name, value in record.items() if name not in ("version", "partners")}
        if medlock.rows["clinic"][row["clinic_id"]]["lpu_id"] != lpu_id:
            self.blame("I3", f"{key} is shown where its clinic is no longer")
        elif medlock.days_ahead(id_, now) > 30:
            self.blame("I3", f"{key} is shown before its window has come")
        elif not set(record["partners"]) <= medlock.partners(row["clinic_id"]):
            self.blame("I3", f"{key} is shown to a partner that is no longer linked")
        elif (row["patient_id"], content) not in medlock.history.get(id_, []):
            self.blame("I3", f"{key} shows another patient's data")

    def _held(self, ledger: psycopg.Connection[Any], shown: dict[Key, Row]) -> set[Key]:
        """Records whose rows are gone in such numbers that a person is asked."""
        rows = ledger.execute("SELECT clinic_id, appointment_ids, lpu_ids FROM ledger.hold WHERE state = 'open'")
        # Of what nobody has answered yet the product cannot know that it never arrived: it may be there.
        may_be = set(
            ledger.execute("SELECT lpu_id, appointment_id FROM ledger.record WHERE state = 'sending'").fetchall()
        )
        held = set()
        for clinic_id, ids, lpu_ids in rows.fetchall():
            keys = list(zip(lpu_ids, ids, strict=True))
            if not (shown.keys() | may_be) & set(keys):
                self.blame("I3", f"a question about clinic {clinic_id} is open, and none of its records may be shown")
            many = sum(clinic_of(id_) == clinic_id for id_ in self.ever_absent) > MOST_ABSENT
            for lpu_id, id_ in keys:
                if (lpu_id, id_) not in shown:
                    continue
                absent = self.medlock.absent(id_) and not self.medlock.refused(id_)
                if many and absent and self._is_shared(clinic_id):
                    held.add((lpu_id, id_))
                else:
                    self.blame("I3", f"{(lpu_id, id_)} is held without need")
        return held

    def _asked_about(self, ledger: psycopg.Connection[Any]) -> set[Key]:
        """Records about which a question is open and whose rows are gone: their state waits for the answer."""
        rows = ledger.execute("SELECT appointment_ids, lpu_ids FROM ledger.hold WHERE state = 'open'").fetchall()
        keys = {key for ids, lpu_ids in rows for key in zip(lpu_ids, ids, strict=True)}
        return {key for key in keys if self.medlock.absent(key[1])}

    def _judge_ledger(self, ledger: psycopg.Connection[Any], shown: dict[Key, Row], asked_about: set[Key]) -> None:
        now = self.machine.clock.now()
        open_batches = ledger.execute("SELECT count(*) FROM ledger.batch WHERE outcome IS NULL").fetchone()
        if open_batches != (0,):
            self.blame("I4", "an intent has no outcome")
        rows = ledger.execute("SELECT lpu_id, appointment_id, state, version, acked_version FROM ledger.record")
        known = {(lpu_id, id_): rest for lpu_id, id_, *rest in rows.fetchall()}
        for key, (state, version, acked) in known.items():
            if state in ("sent", "aged_out"):
                # The highest version ever given out may be above what was acknowledged.
                if key not in shown or shown[key]["version"] != acked or version < acked:
                    self.blame("I4", f"{key} is {state} by the ledger in version {acked}, and Medflex shows another")
            elif state == "withdrawn":
                if key in shown:
                    self.blame("I4", f"{key} is withdrawn by the ledger and shown")
            elif not (key in asked_about and state == "sending"):
                row = self.medlock.rows["appointment"].get(key[1])
                # What its time has left behind is not tried again, but stays on the books.
                if row is None or self.medlock.days_ahead(key[1], now) >= -45 or state == "withdrawing":
                    self.blame("I4", f"{key} is still {state} by the ledger")
        for key in shown.keys() - known.keys():
            self.blame("I4", f"{key} is shown and unknown to the ledger")

    def _judge_versions(self) -> None:
        last: dict[Key, int] = {}
        for lpu_id, id_, version in self.store._db.execute("SELECT lpu_id, id, version FROM applied ORDER BY seq"):
            if version <= last.get((lpu_id, id_), 0):
                self.blame("I4", f"{(lpu_id, id_)} was written in version {version} after a newer one")
            last[lpu_id, id_] = version

    def judge_personal_data(self, ledger: psycopg.Connection[Any]) -> None:
        """I6: no name and no phone is in the ledger."""
        tables = ledger.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'").fetchall()
        needles = {value for row in self.medlock.rows["patient"].values() for value in _personal(row)}
        for (table,) in tables:
            text = "\n".join(row for (row,) in ledger.execute(f"SELECT t::text FROM ledger.{table} AS t").fetchall())
            if any(needle in text for needle in needles):
                self.blame("I6", f"a name or a phone is in ledger.{table}")


def _personal(row: Row) -> list[str]:
    phone = row["phone"] or ""
    digits = "".join(letter for letter in phone if letter.isdigit())
    return [value for value in (row["last_name"], row["first_name"], row["patronymic"]) if value] + (
        [digits[-10:], phone] if len(digits) >= 10 else []
    )
