"""Withdrawing: what may no longer be shared is found, written down, and taken back from Medflex (R12).

Three lanes use it: ``sweep`` looks at everything that Medflex shows of some clinics, ``quick`` at what has changed
since the last time, ``sweep_further`` at everything of all clinics, a piece at a time, when rows were deleted. None of
them waits for a gate, a validation or another run's sending.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from medflex.airflow.columns import Array, Columns
from medflex.airflow.hooks.medflex import WITHDRAW_PATH, BatchReply
from medflex.airflow.pace import T
from medflex.airflow.writing import Batch, Delivery, Writer, WriteResult
from medflex.arrow import to_pandas
from medflex.clock import CLOCKS_DIFFER
from medflex.domain.access import permissions
from medflex.domain.eligibility import Mask
from medflex.domain.places import Places
from medflex.domain.revocations import (
    REVOCATION_COLUMNS,
    aged,
    empty_revocations,
    find_revocations,
    held_back,
    positions,
)
from medflex.domain.window import clinic_windows
from medflex.errors import MedflexContractError, MedlockSlowError
from medflex.ledger import watches
from medflex.ledger.store import BatchContent, Decision
from medflex.ledger.withdrawals import COUNTED_CLINICS, KEY, instants

log = logging.getLogger(__name__)

OVERLAP = timedelta(hours=2)
"""How far each quick look goes back behind the last one: a change stamp is set when its transaction begins, perhaps by
another clock, and shows when it is committed. As far as the watch looks (twice ``LOOK_BACK`` of the trigger)."""
EDITED_OVERLAP = timedelta(minutes=10)
"""The same of appointments that were edited and do not say no, in most looks: they are many. Seldom, and where it costs
little in each look, these are gone over for OVERLAP as well."""
JUST_CHANGED = timedelta(minutes=10)
"""So long a clinic is looked at whole after its permissions have changed."""
ASKED_FOR = timedelta(days=7)
"""How long a person's answer about vanished rows holds."""
DAY = timedelta(hours=24)
NUMBERS = ("revoked", "withdrawn", "withdraw_to_retry", "withdraw_unknown", "permitted_again", "held")
"""revoked = withdrawn + withdraw_to_retry + withdraw_unknown + permitted_again + held."""

_PRESENT_ROWS = 25_000
"""So many records are looked up in Medlock at a time; bounds the memory."""
_FRESH = timedelta(seconds=60)
"""A finding older than this is judged anew before it is acted on."""
_QUICK_PATIENCE = 15.0
"""For so long a quick look waits for a clinic that another withdrawal has: nobody looks for new changes meanwhile."""
_LEASED_REQUESTS = 100
"""Before about so many requests the leases of their clinics are let go, if they are not all of one clinic: a handful of
seconds at the usual rate."""
_PASSES = 3
"""How often a withdrawal is tried with a higher version when Medflex holds a newer one."""
SHARE = 10
"""A sweep for deleted rows that took a second is made at most every ten seconds, one of an hour every ten hours. The
same holds for looks that go over all edits of two hours, up to _FAR_MOST."""
_FAR_MOST = timedelta(hours=1)
"""What lies between two of these is gone over as well: they must not grow without end."""
_AGAIN = timedelta(minutes=15)
"""So long after one that did not come to its end no other is tried, and twice as long after each more: refusals are
found without it."""
_SLOW_PART = 10
"""So many times less is asked for where Medlock took too long to say what has changed, and again as often as it does,
for _AGAIN; down to _LEAST_PART."""
_LEAST_PART = 1000
_MOST_TRIES = 7
_PIECE = timedelta(minutes=30)
"""For so long what a piece of a sweep has found is left to its DAG: as long as its task may take. The next run, minutes
later, brings over what a killed one had found."""
_MOST_EDITS = 1_000_000
"""More edits than that are left to a sweep, which goes by pieces: refusals would wait, and memory has to hold them. Of
what says no so many are looked for that changed last: all patients may have been touched."""
_AMONG = 10
"""For each of those so many rows are looked at that have changed, of each table, whatever they say now."""
_MOST_LEFT = 1_000_000
"""So much of what a piece of a sweep had found is brought over by the next one; if there is more, by quick looks."""
_PROBES = 16
"""Of so many clinics at most a quick look tries again what Medflex has not taken, and of each as much as one request
holds: a time-out takes a minute, and others' refusals wait meanwhile."""
_ALL_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass
class WithdrawResult(WriteResult):
    """What became of what may no longer be shared, by clinic.

    revoked, held: (clinic, reason) → appointment ids. asked: how many questions were put to a person. delays: of each
    change that was acknowledged as withdrawn, whether it is an absence, and the seconds from the change on; records
    that were revoked at the same instant and left in the same batch are one change. sweep_is_due: whether everything
    that Medflex shows has to be looked at, or is only partly. is_cut_short: whether a quick look has left clinics that
    permit less to the next one.
    """

    revoked: dict[tuple[int, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    held: dict[tuple[int, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    asked: int = 0
    delays: list[tuple[bool, float]] = field(default_factory=list)
    sweep_is_due: bool = False
    is_cut_short: bool = False

    def frame(self, clinic_ids: Iterable[int]) -> pd.DataFrame:
        """Return ``clinic_id`` and NUMBERS, one row per clinic."""
        return pd.DataFrame(
            [{"clinic_id": key, **{name: self.numbers[key][name] for name in NUMBERS}} for key in clinic_ids]
        )

    def behind(self, numbers: pd.DataFrame, decisions: Iterable[Decision]) -> tuple[pd.DataFrame, list[Decision]]:
        """Return ``frame`` and ``decisions`` of a run of which this is another attempt.

        What an earlier attempt has brought to its end counts besides; what it has left is found again by this one.

        Args:
            numbers: of the earlier ones: ``clinic_id``, ``withdrawn``, ``permitted_again``, ``held``.
        """
        sums = {key: Counter(self.numbers[key]) for key in sorted({*self.numbers, *numbers["clinic_id"].tolist()})}
        for key, withdrawn, permitted_again, held in zip(*(numbers[name].tolist() for name in numbers), strict=True):
            ended = {"withdrawn": withdrawn, "permitted_again": permitted_again}
            if not sums[key]["held"]:
                ended["held"] = held
            sums[key].update({**ended, "revoked": sum(ended.values())})
        together: dict[tuple[int, str, tuple[str, ...]], set[int]] = defaultdict(set)
        for item in (*decisions, *self.decisions()):
            together[item.clinic_id, item.decision, tuple(item.reasons)].update(item.appointment_ids)
        frame = pd.DataFrame(
            [{"clinic_id": key, **{name: item[name] for name in NUMBERS}} for key, item in sums.items()]
        )
        return frame, [Decision(*key, sorted(ids)) for key, ids in together.items()]

    def drop_left(self) -> None:
        """Forget what was found and not brought to its end: the attempt that has taken over finds and counts that."""
        for numbers in self.numbers.values():
            ended = {name: numbers[name] for name in ("withdrawn", "permitted_again")}
            numbers.clear()
            numbers.update({**ended, "revoked": sum(ended.values())})

    def total(self, name: str) -> int:
        """Return one of NUMBERS, summed over the clinics."""
        return sum(numbers[name] for numbers in self.numbers.values())

    def decisions(self) -> list[Decision]:
        """Return which records were found revoked, and which of these are held."""
        return [
            Decision(clinic_id, decision, (reason,), sorted(set(ids)))
            for decision, found in (("revoked", self.revoked), ("held", self.held))
            for (clinic_id, reason), ids in found.items()
        ]


@dataclass(frozen=True)
class _Stuck:
    """Of which clinics (with ``lpu_id``) Medflex has not taken withdrawals in earlier looks.

    known: as it was noted. waiting: those of which something still waits. tried: those of which this look tries some;
    in_part: of these, those of which more waits than is tried.
    """

    known: set[tuple[int, int]]
    waiting: set[tuple[int, int]]
    tried: set[tuple[int, int]]
    in_part: set[tuple[int, int]]


class Withdrawer(Writer):
    """Takes back what may no longer be shared. It takes clinics over from any other work (see the lease).

    Args:
        begin_run: called with the clinics concerned before the first batch of a look over all clinics, if it finds
            anything; returns the ledger's run.
        writer: see :class:`LeaseHolder`.
    """

    operation = "withdraw"
    purpose = "withdraw"
    path = WITHDRAW_PATH
    poll_seconds = 1.0

    live_rows = 200_000
    """So many records of the ledger are held at a time, unless one clinic alone has more."""
    many_live_rows = 800_000
    """The same where a sweep goes over all clinics: for each time, Postgres may read Medlock's tables whole."""
    sweep_time = timedelta(minutes=4)
    """For so long one piece of a sweep looks for what may no longer be shared, before that is withdrawn and noted: what
    is lost when it is killed. One group of clinics is looked at in any case."""
    narrowed_time = timedelta(seconds=30)
    narrowed_rows = 200_000
    """The same of a quick look at clinics that permit less than before, and so many records to withdraw: others'
    refusals wait meanwhile. The next look goes on with the rest, which is not remembered as looked at."""

    most_edits = _MOST_EDITS
    failing_seconds = 120.0

    def __init__(self, *, begin_run: Callable[[Sequence[int]], int] | None = None, **writer: Any) -> None:
        super().__init__(**writer)
        self._begin_run = begin_run
        self._live_rows = self.live_rows
        self._result = WithdrawResult()
        # Of which clinics Medflex has answered withdrawals, and of which it has taken some.
        self._answered: set[tuple[int, int]] = set()
        self._taken: set[tuple[int, int]] = set()
        self._due = empty_revocations()
        self._found_at = self._clock.now()

    @property
    def _written(self) -> WriteResult:
        return self._result

    # -- the lanes --------------------------------------------------------------------------------------------------

    def sweep(self, clinic_ids: Sequence[int]) -> WithdrawResult:
        """Look at everything that Medflex shows or may show of these clinics, and withdraw what may not be shared."""
        now = self._found_at = self._clock.now()
        # Before the clinics: what a sender or another look writes from here on stays.
        seen = self._ledger.clinics_seen()
        found, clinics, _ = self._sweep(clinic_ids, now)
        due = self._decide(found, swept=clinic_ids)
        just_now = self._clock.now()
        looked_at = {key: _to_save(permits, seen.get(key), just_now) for key, permits in permissions(clinics).items()}
        self._ledger.save_revocations(due, self._found_at, clinics=looked_at)
        self._withdraw(due, last={clinic_id for clinic_id, _ in self._known_stuck()})
        return self._result

    def preview(self, clinic_ids: Sequence[int]) -> WithdrawResult:
        """Find what ``sweep`` would withdraw and hold, and write nothing."""
        now = self._found_at = self._clock.now()
        found, *_ = self._sweep(clinic_ids, now, writes=False)
        held = self._held(found)
        self._note(found, held)
        for key, number in found.loc[held, "clinic_id"].value_counts().items():
            self._count(cast("int", key), held=int(number))
        return self._result

    def sweep_further(self) -> WithdrawResult:
        """Look at everything that Medflex shows, of all clinics, and withdraw what may not be shared; if that is due.

        Rows that are gone leave no stamp: it is due when Postgres has counted deletions, or nobody has looked before.
        It goes on behind the clinic at which the last piece has ended, for ``sweep_time``, and keeps in the ledger how
        far it has come, together with what it found. ``sweep_is_due`` of the result tells whether clinics are left.
        """
        # At once: what an attempt that was killed still holds is let go, whatever there is to do.
        self.begin()
        self._live_rows = self.many_live_rows
        now = self._found_at = self._clock.now()
        # Before anything is looked at: what is deleted from here on makes another sweep due.
        deleted = self._medlock.deleted_rows()
        last = self._ledger.watch(watches.SWEEP)
        is_due = _sweep_is_due(last, deleted, now, self._ledger.watch(watches.SWEEP_ASKED))
        found, swept, watch = empty_revocations(), list[int](), {}
        if is_due:
            self._ledger.note_watch(watches.SWEEP_TRIED, now, {})
            noted = last[1] if last else {}
            after = noted.get("after")
            begun: Mapping[str, Any] = noted
            if after is None:
                begun = {"deleted": deleted, "seconds": 0.0, "begun_at": now.isoformat()}
            ahead = sorted(
                clinic_id for clinic_id in self._ledger.clinics_with_records() if after is None or clinic_id > after
            )
            found, _, swept = self._sweep(ahead, now, until=now + self.sweep_time, most=self.many_live_rows)
            self._result.sweep_is_due = len(swept) < len(ahead)
            watch[watches.SWEEP] = {
                "deleted": begun["deleted"],
                "seconds": begun["seconds"] + (self._clock.now() - now).total_seconds(),
                "begun_at": begun.get("begun_at"),
                "after": swept[-1] if self._result.sweep_is_due else None,
            }
        # What the last piece had found when it was killed, or could not bring to its end. Read now: others have
        # withdrawn meanwhile.
        if last:
            left = self._ledger.found_revocations(last[0], most=_MOST_LEFT)
            left = left[~left["clinic_id"].isin(swept)]
            of_left = self._of(left, now)
            self._close_stale(left, of_left)
            found = _joined([found, of_left])
        self._enter_run(found)
        due = self._decide(found, swept)
        # Not the permissions: those of the first clinics are minutes old, and quick looks keep them.
        self._ledger.save_revocations(due, now, watch=watch, takes_from=last[0] if is_due and last else None)
        self._withdraw(due, last={clinic_id for clinic_id, _ in self._known_stuck()})
        return self._result

    def quick(self) -> WithdrawResult:
        """Withdraw what was revoked since the last quick look, and what is left of earlier ones.

        How far it has come is kept in the ledger together with what it found, so that nothing is missed, whatever fails
        and for however long nobody looks. Rows that are gone leave no stamp, and what was revoked before the first look
        of all is not asked for here: ``sweep_is_due`` of the result tells that ``sweep_further`` is needed.
        """
        self.begin()
        self.patience_seconds = _QUICK_PATIENCE
        now = self._found_at = self._clock.now()
        last = self._ledger.watch(watches.CONSENT)
        self._result.sweep_is_due = _sweep_is_due(
            self._ledger.watch(watches.SWEEP),
            self._medlock.deleted_rows(),
            now,
            self._ledger.watch(watches.SWEEP_ASKED),
        )
        # Behind the look at the clock: what changes from here on is found by the next look. What is known of clinics
        # before these themselves: what they permit is newer then.
        seen = self._ledger.clinics_seen()
        clinics = self._clinics(None, now)
        noted = last[1] if last else {}
        left, is_much, stuck = self._left_over(now)
        narrowed, just_changed = _narrowed(clinics, seen, now) if last else ([], [])
        # In another order each time: one that is narrowed in each look, while it is being sent, keeps no other waiting.
        narrowed = self._in_any_order(narrowed)
        # What was found and could not be withdrawn yet comes first.
        to_sweep = [] if is_much else narrowed
        of_narrowed, _, swept = self._sweep(to_sweep, now, until=now + self.narrowed_time, most=self.narrowed_rows)
        if "cut_short_since" in noted:
            since = pd.Timestamp(noted["cut_short_since"])
            of_narrowed["revoked_at"] = of_narrowed["revoked_at"].fillna(since)
        of_just_changed, *_ = self._sweep(just_changed, now)
        not_swept = set(narrowed).difference(swept)
        self._result.is_cut_short = bool(not_swept) or is_much
        swept += just_changed
        left = left[~left["clinic_id"].isin(swept)]
        of_changed, watch, slow = self._of_changed(last, left, swept, now)
        found = _joined([of_changed, of_narrowed, of_just_changed])
        self._close_stale(left, found)
        self._enter_run(found)
        due = self._decide(found, swept)
        flags = {"sweep_due_since": self._result.sweep_is_due, "cut_short_since": self._result.is_cut_short}
        consent = {name: noted.get(name) or now.isoformat() for name, holds in flags.items() if holds}
        looked_at = now
        if slow is None or last is None:
            watch[watches.CONSENT] = consent
        else:
            # What has changed was not looked at: the next look begins where this one did.
            looked_at = last[0]
            self._result.problems.append(slow)
            self._ledger.note_watch(watches.CONSENT, looked_at, consent)
        permitted = {**dict.fromkeys(seen, _NOTHING), **permissions(clinics)}
        news = set(narrowed)
        # From when it is known on: until then another look may have known more.
        just_now, long_ago = self._clock.now(), now - JUST_CHANGED
        self._ledger.save_revocations(
            due,
            now,
            watch=watch,
            # Which permits more, or was never looked at, need not be looked at whole for some time.
            clinics={
                key: _to_save(permits, seen.get(key), just_now if key in news else long_ago)
                for key, permits in permitted.items()
                if key not in not_swept
            },
        )
        self._withdraw(due, last={clinic_id for clinic_id, _ in stuck.waiting})
        self._note_stuck(stuck, now, looked_at, consent)
        return self._result

    def _left_over(self, now: datetime) -> tuple[pd.DataFrame, bool, _Stuck]:
        """Choose what of earlier looks this one brings over, no more than it has time for.

        What Medflex has not taken last time keeps nothing else from its turn: of some of it a little is tried, not the
        same each time, since Medflex may fail on one record only.

        Returns:
            REVOCATIONS_KEPT; whether there is more than that; of which clinics Medflex has not taken it.
        """
        while True:
            at, _ = self._ledger.watch(watches.SWEEP) or (None, {})
            besides = at if at is not None and at <= now < at + _PIECE else None
            waiting = self._ledger.revocations_waiting(besides=besides)
            # What a piece of a sweep has saved in between is not among them.
            if (self._ledger.watch(watches.SWEEP) or (None, {}))[0] == at:
                break
        known = self._known_stuck()
        is_stuck = np.array([pair in known for pair in _pairs(waiting)], dtype=bool)
        # Of clinics with few of them first, as they are withdrawn; among the stuck ones it is chance whose turn it is.
        free = waiting[~is_stuck].sort_values("records", kind="stable")
        before = free["records"].cumsum() - free["records"]
        wanted = free.assign(records=np.minimum(free["records"], (self.narrowed_rows - before).clip(lower=0)))
        probed = waiting[is_stuck].iloc[np.argsort([self._jitter() for _ in range(is_stuck.sum())])[:_PROBES]]
        tried = probed.assign(records=probed["records"].clip(upper=self._settings.batch_size))
        left = self._ledger.some_revocations(
            pd.concat([wanted[wanted["records"] > 0], tried]), seed=_seed(now), besides=besides
        )
        stuck = _Stuck(
            known=known,
            waiting=set(_pairs(waiting[is_stuck])),
            tried=set(_pairs(tried)),
            in_part=set(_pairs(probed[probed["records"] > tried["records"]])),
        )
        return left, bool(free["records"].sum() > self.narrowed_rows), stuck

    def _known_stuck(self) -> set[tuple[int, int]]:
        _, noted = self._ledger.watch(watches.STUCK) or (None, {})
        return {(clinic_id, lpu_id) for clinic_id, lpu_id in noted.get("of", [])}

    def _known_sizes(self) -> dict[tuple[int, int], int]:
        """How many records at a time are tried of those of which a larger batch has failed."""
        _, noted = self._ledger.watch(watches.STUCK) or (None, {})
        return {(clinic_id, lpu_id): size for clinic_id, lpu_id, size in noted.get("sizes", [])}

    def _note_stuck(self, stuck: _Stuck, now: datetime, looked_at: datetime, noted: Mapping[str, Any]) -> None:
        """Keep in the ledger of which clinics Medflex takes no withdrawals; where it takes some again, go on at once.

        Args:
            looked_at, noted: how far this look has come, and what it has noted.
        """
        troubled = self._hopeless | set(self._failures)
        freed = (stuck.tried & self._taken) - troubled
        # Where nobody gets through, that says nothing of those whose turn it was.
        failed = set() if self._unreachable else troubled
        still = (stuck.waiting - freed) | failed | (self._answered - self._taken)
        before = self._known_sizes()
        sizes = before if self._unreachable else self._sizes
        sizes = {pair: size for pair, size in sizes.items() if pair in still}
        if still != stuck.known or sizes != before:
            noted_sizes = [[*pair, size] for pair, size in sorted(sizes.items())]
            self._ledger.note_watch(watches.STUCK, now, {"of": sorted(still), "sizes": noted_sizes})
        # Some were taken, and among the others it is tried with fewer at a time: that comes to an end soon.
        closing_in = {pair for pair in stuck.tried & self._taken & still if sizes.get(pair, 0) < before.get(pair, 0)}
        is_more = bool(freed & stuck.in_part or stuck.waiting - stuck.tried)
        if ((freed and is_more) or closing_in) and not self._result.is_cut_short:
            self._result.is_cut_short = True
            self._ledger.note_watch(watches.CONSENT, looked_at, {"cut_short_since": now.isoformat(), **noted})

    def _enter_run(self, found: pd.DataFrame) -> None:
        """Begin the ledger's run, if there is anything to tell."""
        if self._begin_run and (len(found) or self._result.numbers):
            self._run_key = self._begin_run(sorted({*self._result.numbers, *found["clinic_id"].tolist()}))

    # -- finding ----------------------------------------------------------------------------------------------------

    def _sweep(
        self,
        clinic_ids: Sequence[int],
        now: datetime,
        *,
        until: datetime | None = None,
        most: int | None = None,
        writes: bool = True,
    ) -> tuple[pd.DataFrame, pd.DataFrame, list[int]]:
        """Judge all that Medflex shows or may show of these clinics.

        Args:
            until: no further group of clinics is begun from then on.
            most: nor behind so many REVOCATIONS.

        Returns:
            REVOCATIONS; the clinics as judged; which of ``clinic_ids`` were looked at, in their order.
        """
        found: list[pd.DataFrame] = []
        judged = []
        swept: list[int] = []
        for group in self._groups(clinic_ids):
            if swept and until is not None and self._clock.now() >= until:
                break
            if most is not None and sum(len(part) for part in found) >= most:
                break
            # What is remembered is older than what was judged by: a switch that turns in between is found by the next
            # quick look. And what another lane finds in between is not stale.
            judged.append(self._clinics(group, now))
            before = self._ledger.open_revocations(group)
            # The ledger first: what is sent from here on has had its last look after this.
            # Not held here: the next group's records would be read beside these.
            revocations, behind = self._judge(self._ledger.live(group), now)
            found.append(revocations)
            if writes:
                if len(behind):
                    self._ledger.age_out(behind)
                self._close_stale(before, revocations)
            swept += group
        return _joined(found), pd.concat(judged) if judged else self._clinics([], now), swept

    def _in_any_order(self, items: list[T]) -> list[T]:
        return [items[place] for place in np.argsort([self._jitter() for _ in items], kind="stable")]

    def _clinics(self, clinic_ids: Sequence[int] | None, now: datetime) -> pd.DataFrame:
        """Return CLINICS as judged. One that is about to open counts as open: by a sender's clock it may be, and what
        that sends would be withdrawn again until the next day.
        """
        return self._medlock.clinics(clinic_ids, now + CLOCKS_DIFFER)

    def _groups(self, clinic_ids: Sequence[int]) -> Iterator[list[int]]:
        """Cut clinics into groups whose records fit into memory."""
        group: list[int] = []
        rows = 0
        # Counted as they are needed: of all clinics' records together that alone takes minutes.
        for start in range(0, len(clinic_ids), COUNTED_CLINICS):
            some = clinic_ids[start : start + COUNTED_CLINICS]
            counts = self._ledger.live_counts(some)
            for clinic_id in some:
                if group and rows + counts.get(clinic_id, 0) > self._live_rows:
                    yield group
                    group, rows = [], 0
                group.append(int(clinic_id))
                rows += counts.get(clinic_id, 0)
        if group:
            yield group

    def _of(self, records: pd.DataFrame, now: datetime) -> pd.DataFrame:
        """Return REVOCATIONS among these records (``clinic_id``, ``appointment_id``)."""
        live = self._ledger.live(records["clinic_id"].tolist(), records["appointment_id"].tolist())
        return self._judge(live, now)[0]

    def _of_changed(
        self,
        last: tuple[datetime, Mapping[str, Any]] | None,
        left: pd.DataFrame,
        swept: Sequence[int],
        now: datetime,
    ) -> tuple[pd.DataFrame, dict[str, Mapping[str, Any]], MedlockSlowError | None]:
        """Judge what has changed since the last look, and what is left of earlier ones, but of clinics just swept.

        Returns:
            REVOCATIONS; other watches that have come to ``now``; an error if Medlock takes too long to say what has
            changed: then only what is left is among the REVOCATIONS.
        """
        left = left[["clinic_id", "appointment_id"]].drop_duplicates()
        of_left = self._of(left, now)
        if last is None:
            return of_left, {}, None
        begun = self._clock.now()
        try:
            changed, patients, is_far = self._changed(min(last[0], now), now)
        except MedlockSlowError as error:
            return of_left, {}, error
        # Whatever clinic the appointment is in now, and whether or not it is there.
        touched = self._ledger.touched(changed["appointment_id"].tolist(), patients)
        # Those that are left come first, so that they are not among the rest.
        pairs = pd.concat([left, changed.dropna().astype("int64"), touched]).drop_duplicates().iloc[len(left) :]
        found = _joined([of_left, self._of(pairs[~pairs["clinic_id"].isin(swept)], now)])
        seconds = (self._clock.now() - begun).total_seconds()
        return found, {watches.FAR: {"seconds": seconds}} if is_far else {}, None

    def _changed(self, last_look: datetime, now: datetime) -> tuple[pd.DataFrame, list[int], bool]:
        """Return which appointments have changed since the last look, which patients have and say no, and whether the
        look went far back.

        What is more than a look has time for is left to a sweep. Where Medlock takes too long all the same, less is
        asked for, now and in the next looks: each would fail otherwise, and the next one begin where it did.

        Raises:
            MedlockSlowError: it takes too long for that, too; the next look asks for less still.
        """
        far_back = self._far_back(last_look, now)
        if far_back:
            try:
                return *self._asked(last_look, far_back, self.most_edits, now), True
            except MedlockSlowError:
                # Not now: what a long transaction has moved waits, refusals do not.
                log.warning("Medlock takes too long to say what was edited within hours: it is tried again later.")
        slow_at, noted = self._ledger.watch(watches.SLOW) or (now, {})
        part = noted.get("part", 1) if slow_at <= now < slow_at + _AGAIN else 1
        for is_last in (False, True):
            most = max(self.most_edits // part, 1)
            try:
                return *self._asked(last_look, last_look - EDITED_OVERLAP, most, now), False
            except MedlockSlowError:
                part = min(part * _SLOW_PART, _LEAST_PART)
                log.warning("Medlock takes too long to say what has changed: a part of it is asked for.")
                self._ledger.note_watch(watches.SLOW, now, {"part": part})
                if is_last:
                    raise
        raise AssertionError  # The last one returns or raises.

    def _asked(
        self, last_look: datetime, edited_since: datetime, most: int, now: datetime
    ) -> tuple[pd.DataFrame, list[int]]:
        """Return ``most`` of the appointments and of the patients that Medlock says have changed; ask for a sweep if
        there are more.
        """
        since = min(last_look - OVERLAP, edited_since)
        among = _AMONG * most
        cut = self._medlock.changed_rows(since, most=among)
        if any(cut.values()):
            log.warning("More than %d rows of a table were edited: medflex_sweep goes over them.", among)
            self._let_sweep(now)
        sinces = {name: instant or since for name, instant in cut.items()}
        ask = partial(self._medlock.changed_appointments, sinces)
        changed = ask(edited_since=edited_since, most=most + 1)
        if len(changed) > most:
            log.warning("More than %d appointments were edited: medflex_sweep goes over them.", most)
            self._let_sweep(now)
            # Also of these only the last ones: what is left out must not keep the next looks from theirs.
            changed = ask(edited_since=_ALL_TIME, most=most)
        patients = self._medlock.changed_patients(sinces["patients"], most=most + 1)
        if len(patients) > most:
            log.warning("More than %d patients who refuse were edited: medflex_sweep goes over them.", most)
            self._let_sweep(now)
        return changed, patients[:most]

    def _far_back(self, last_look: datetime, now: datetime) -> datetime | None:
        """Return from when on this look goes over all edits, if it does: two hours behind the last look that did, so
        that whatever was committed since is among them.

        That it is tried is written down first: one that does not come to its end must not keep the next one from its.
        """
        at, noted = self._ledger.watch(watches.FAR) or (last_look, {})
        tries = noted.get("tries", 0)
        tried_at = datetime.fromisoformat(noted["tried_at"]) if tries else now
        again = tried_at + _AGAIN * 2 ** (tries - 1) if tries else now
        pause = min(timedelta(seconds=SHARE * noted.get("seconds", 0.0)), _FAR_MOST)
        # A clock that was ahead tells nothing.
        if at <= now < at + pause or tried_at <= now < again:
            return None
        tried = {"tries": min(tries + 1, _MOST_TRIES), "tried_at": now.isoformat()}
        self._ledger.note_watch(watches.FAR, at, {**noted, **tried})
        return min(at, last_look) - OVERLAP

    def _let_sweep(self, now: datetime) -> None:
        """Ask for a sweep, though no rows were deleted; when it may be made, the last one tells."""
        self._ledger.note_watch(watches.SWEEP_ASKED, now, {})
        last = self._ledger.watch(watches.SWEEP)
        self._result.sweep_is_due |= _sweep_is_due(last, self._medlock.deleted_rows(), now, (now, {}))

    def _judge(self, live: pd.DataFrame, now: datetime) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return REVOCATIONS among LIVE, and the records that have left the window by time and may stay."""
        if not len(live):
            return empty_revocations(), live
        clinics = self._clinics(live["clinic_id"].unique().tolist(), now)
        windows = clinic_windows(clinics, now, now, cut_to_today=False)
        sought = _Sought(live)
        del live  # Its texts are not held beside those of ``sought``.
        found = []
        behind = []
        for part, present, at in self._with_present(sought):
            patients, elsewhere = self._patients(part, present, at), self._elsewhere(part, at)
            revocations = find_revocations(
                part, present, clinics, windows, patients=patients, elsewhere=elsewhere, at=at
            )
            found.append(revocations)
            left = aged(part, present, windows, at)
            behind.append(left[~_among(left, revocations)])
            del part, present, left  # Not beside the next ones, which are read now.
        return _joined(found), pd.concat(behind)

    def _with_present(self, sought: _Sought) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, Places]]:
        """Cut LIVE into parts, each beside ROWS of its appointments and their ``positions``; at last those of which
        nothing is there.

        Asked in one question: for each of many, Postgres would read the whole of a table that is not very large.
        """
        gone = np.ones(len(sought), dtype=bool)
        empty = pa.table({})
        # What reading the records took and gave back in pieces, malloc keeps: as much again as they take.
        pa.default_memory_pool().release_unused()
        with self._medlock.stream_appointments_now(*sought.pairs(), _PRESENT_ROWS) as answer:
            for table in answer:
                empty = table.schema.empty_table()
                present = _rows(table)
                del table
                places = sought.places(present["appointment_id"].to_numpy("int64"))
                part = sought.take(places)
                at = positions(part, present)
                here = at >= 0
                if not here.all():  # An id that another clinic has, too.
                    places, at = places[here], at[here]
                    part = sought.take(places)
                gone[places] = False
                yield part, present, at
                del part, present
        rest, nothing = np.flatnonzero(gone), _rows(empty)
        for start in range(0, len(rest), _PRESENT_ROWS):
            part = sought.take(rest[start : start + _PRESENT_ROWS])
            yield part, nothing, positions(part, nothing)

    def _patients(self, live: pd.DataFrame, present: pd.DataFrame, at: Places) -> pd.DataFrame | None:
        """The flags of those patients whom no appointment leads to any more."""
        found = present["patient_found"].to_numpy(bool, na_value=False)
        led_to = np.append(found, False)[at]  # Position −1, appointment gone, is the appended one.
        ids = live.loc[~led_to, "patient_id"].dropna().unique()
        return self._medlock.patients_now(ids.tolist()) if len(ids) else None

    def _elsewhere(self, live: pd.DataFrame, at: Places) -> pd.DataFrame | None:
        """What is said of those appointments that are not in their clinic any more."""
        ids = live.loc[at < 0, "appointment_id"].unique()
        return self._medlock.appointments_elsewhere(ids.tolist()) if len(ids) else None

    def _close_stale(self, open_revocations: pd.DataFrame, found: pd.DataFrame) -> None:
        """Forget what was to be withdrawn and may be shared again, or is withdrawn already."""
        stale = open_revocations[~_among(open_revocations, found)]
        self._ledger.close_revocations(stale)
        for key, number in stale["clinic_id"].value_counts().items():
            self._count(cast("int", key), revoked=int(number), permitted_again=int(number))

    # -- the asymmetric guard ---------------------------------------------------------------------------------------

    def _decide(self, found: pd.DataFrame, swept: Sequence[int]) -> pd.DataFrame:
        """Hold back what a person has to decide on, and ask; return what is to be withdrawn now.

        Args:
            swept: the clinics of which everything was looked at.
        """
        # By the clinic's clock it may have been later than it is.
        at = pd.Timestamp(self._found_at)
        found["revoked_at"] = found["revoked_at"].mask(found["revoked_at"] > at, at)
        held = self._held(found)
        self._note(found, held)
        waiting = found[held]
        self._drop_obsolete(swept, waiting)
        if len(waiting):
            counts = self._ledger.live_counts(waiting["clinic_id"].unique().tolist())
            kept = self._answered_by_person(waiting, "kept")
            for key, records in waiting.reset_index(drop=True).groupby("clinic_id"):
                clinic_id = cast("int", key)
                self._count(clinic_id, held=len(records))
                if not kept[records.index].all():
                    self._result.asked += self._ledger.save_hold(
                        records, live=counts.get(clinic_id, 0), found_at=self._found_at, run_key=self._run_key
                    )
        # A person decides now: what waits for that is not late. Behind the question: who is killed in between leaves
        # both, not neither.
        self._ledger.close_revocations(waiting)
        return found[~held].reset_index(drop=True)

    def _held(self, found: pd.DataFrame) -> np.ndarray[Any, Any]:
        absent = found.loc[found["by_absence"], "clinic_id"].unique().tolist()
        if not absent:
            return np.zeros(len(found), dtype=bool)
        by_person = self._answered_by_person(found, "released")
        # Somebody's no that has not reached Medflex yet stays a no, also when the row has vanished since.
        before = self._ledger.open_revocations(absent)
        refused = _among(found, before[~before["by_absence"].to_numpy(dtype=bool)])
        settled = by_person | refused
        others = before[before["by_absence"].to_numpy(dtype=bool) & ~_among(before, found)]
        # Without what is judged here: another lane may withdraw it at this moment. And what another one is about to
        # withdraw counts as well.
        now = self._clock.now()
        gone = Counter(
            self._ledger.withdrawn_by_absence(
                absent, now - DAY, answered_since=now - ASKED_FOR, besides=found[found["by_absence"]]
            )
        )
        gone.update(others["clinic_id"].tolist())
        judged = found.assign(by_absence=found["by_absence"].to_numpy(dtype=bool) & ~settled)
        held = held_back(
            judged,
            self._ledger.live_counts(absent, in_window=True),
            gone,
        )
        return held.to_numpy(dtype=bool)

    def _answered_by_person(self, records: pd.DataFrame, state: str) -> Mask:
        """Tell of which absent records a person has lately decided so.

        What was sent again since then was back: that it has vanished once more is another question.
        """
        answered = np.zeros(len(records), dtype=bool)
        clinic_ids = records.loc[records["by_absence"], "clinic_id"].unique().tolist()
        decided: dict[tuple[int, int], datetime] = {}
        for hold in self._ledger.holds(clinic_ids, self._clock.now() - ASKED_FOR):
            if hold.state == state and hold.decided_at is not None:
                # The later ones come behind the others.
                decided |= dict.fromkeys(((hold.clinic_id, id_) for id_ in hold.appointment_ids), hold.decided_at)
        pairs = list(zip(records["clinic_id"].tolist(), records["appointment_id"].tolist(), strict=True))
        places = [place for place, pair in enumerate(pairs) if pair in decided]
        if places:
            clinics, ids = zip(*(pairs[place] for place in places), strict=True)
            live = self._ledger.live(clinics, ids)
            keys = zip(live["clinic_id"].tolist(), live["appointment_id"].tolist(), strict=True)
            again = {key for key, at in zip(keys, live["changed_at"], strict=True) if at > decided[key]}
            answered[[place for place in places if pairs[place] not in again]] = True
        return answered

    def _drop_obsolete(self, swept: Sequence[int], waiting: pd.DataFrame) -> None:
        """Take back questions about records of clinics that were looked at whole, where none of them waits any more."""
        for hold in self._ledger.holds(swept, self._clock.now()):
            of_clinic = waiting.loc[waiting["clinic_id"] == hold.clinic_id, "appointment_id"]
            # One that another lane has asked since this look began is news to this one.
            if (
                hold.state == "open"
                and hold.found_at < self._found_at
                and not set(hold.appointment_ids) & set(of_clinic.tolist())
            ):
                self._ledger.decide_hold(hold.hold_id, "obsolete", None)

    def _note(self, found: pd.DataFrame, held: np.ndarray[Any, Any]) -> None:
        for rows, into in ((found[~held], self._result.revoked), (found[held], self._result.held)):
            for key, ids in rows.groupby(["clinic_id", "reason"])["appointment_id"]:
                into[cast("tuple[int, str]", key)].extend(ids.tolist())
        self._count_each(found, "revoked")

    # -- withdrawing ------------------------------------------------------------------------------------------------

    def _withdraw(self, due: pd.DataFrame, last: Collection[int] = ()) -> None:
        """Bring these revocations to their end; each counts in exactly one number.

        Args:
            last: clinics of which Medflex may take none: they come behind the others, one by one and by chance, so that
                those that fail do not always come before those that would not.
        """
        self._sizes = self._known_sizes()
        self._probed = set(self._sizes)
        due = due.sort_values(list(KEY), ignore_index=True)  # In this order every lane locks rows of the ledger.
        # Some clinics at a time: for one that is held, another lane's refusals wait. Those with few records first: a
        # patient's no does not wait for a clinic's.
        counts = due["clinic_id"].value_counts().sort_index().sort_values(kind="stable")
        is_last = counts.index.isin(list(last))
        behind = [[clinic_id] for clinic_id in counts.index[is_last]]
        behind = self._in_any_order(behind)
        counts = counts[~is_last]
        requests = -(-counts // self._settings.batch_size)
        turns = counts.groupby((requests.cumsum() - requests) // _LEASED_REQUESTS)
        deadline = self._clock.now() + timedelta(seconds=self.patience_seconds)
        for clinic_ids in [*(turn.index.tolist() for _, turn in turns), *behind] or [[]]:
            self._due = due[due["clinic_id"].isin(clinic_ids)]
            # Also where nothing is due: what an attempt that was killed behind its last request still holds is let go.
            self._under_leases(clinic_ids, deadline)

    def _write_held(self) -> None:
        due = self._due[self._due["clinic_id"].isin(list(self._epochs))]
        # Under the lease: versions as they are now, intents of whoever was interrupted included.
        live = self._ledger.live(due["clinic_id"].tolist(), due["appointment_id"].tolist())
        if self._clock.now() - self._found_at > _FRESH:
            again, _ = self._judge(live, self._clock.now())
            turned = due[_among(due, live) & ~_among(due, again)]
            self._ledger.close_revocations(turned)
            self._count_each(turned, "permitted_again")
            # For good: should the clinic be taken over from here on, they are not found and counted once more.
            self._due = self._due[~_among(self._due, turned)]
            due = due[~_among(due, turned)]
        # What another lane has withdrawn meanwhile is done.
        done = due[~_among(due, live)]
        self._ledger.close_revocations(done)
        self._count_each(done, "withdrawn")
        due = due.drop(columns="version").merge(live[[*KEY, "version"]], on=list(KEY))
        for attempt in range(_PASSES):
            self._run(self._batches(due))
            outdated = {key: set(ids) for key, ids in self._outdated.items()}
            if not outdated or attempt == _PASSES - 1:
                break
            self._catch_up()
            keys = zip(*(due[name].tolist() for name in KEY), strict=True)
            due = due[[id_ in outdated.get((clinic_id, lpu_id), ()) for clinic_id, id_, lpu_id in keys]]
            due = due.drop(columns="version")
            for key, number in due["clinic_id"].value_counts().items():
                self._count(cast("int", key), withdraw_to_retry=-int(number))
            live = self._ledger.live(due["clinic_id"].tolist(), due["appointment_id"].tolist())
            due = due.merge(live[[*KEY, "version"]], on=list(KEY))
        self._outdated.clear()

    def _batches(self, due: pd.DataFrame) -> Iterator[Batch]:
        for key, records in due.groupby(["clinic_id", "lpu_id"], sort=False):
            pair = clinic_id, _ = cast("tuple[int, int]", key)
            if pair in self._probed:
                # Not the same ones beside each other in each look: Medflex may fail on some of them only.
                records = records.sample(frac=1.0, random_state=_seed(self._found_at))
            start = 0
            while start < len(records):
                end = start + self._size_of(*pair)
                part, start = records.iloc[start:end].sort_values("appointment_id"), end
                columns = Columns.of_frame(part.rename(columns={"appointment_id": "id"}))
                yield Batch(clinic_id, columns, part["version"].to_numpy("int64") + 1)

    def _prepare(self, deliveries: Sequence[Delivery]) -> None:
        self._write_down(deliveries)
        for delivery in deliveries:
            if delivery.intent is None:
                continue
            delivery.looked_at = self._found_at
            delivery.ready_at = self._clock.now()
            delivery.body = delivery.body or self._body(delivery)

    def _content(self, delivery: Delivery) -> BatchContent:
        records = delivery.records
        return BatchContent(
            run_key=self._run_key,
            clinic_id=delivery.clinic_id,
            lpu_id=delivery.lpu_id,
            operation=self.operation,
            holder=self._holder,
            epoch=self._epochs[delivery.clinic_id],
            appointment_ids=records["id"],
            versions=delivery.versions,
            digests=None,
            reasons=records["reason"].tolist(),
            revoked_at=[instant or self._found_at for instant in instants(records["revoked_at"])],
        )

    def _body(self, delivery: Delivery) -> bytes:
        records = delivery.records
        items = zip(records["id"].tolist(), delivery.versions.tolist(), records["reason"].tolist(), strict=True)
        return self._client.encode(
            {
                "lpu_id": delivery.lpu_id,
                "records": [{"id": id_, "version": version, "reason": reason} for id_, version, reason in items],
            }
        )

    def _acknowledged(self, delivery: Delivery, reply: BatchReply) -> None:
        self._count(
            delivery.clinic_id,
            withdrawn=len(reply.accepted),
            withdraw_to_retry=len(reply.outdated) + len(reply.rejected),
            withdraw_unknown=len(reply.unknown),
        )
        with self._lock:
            self._answered.add((delivery.clinic_id, delivery.lpu_id))
            if reply.accepted or reply.outdated:
                self._taken.add((delivery.clinic_id, delivery.lpu_id))
        gone = delivery.records.keep(np.isin(delivery.records["id"], list(reply.accepted)))
        changes = {
            (bool(by_absence), instant or self._found_at)
            for by_absence, instant in zip(gone["by_absence"].tolist(), instants(gone["revoked_at"]), strict=True)
        }
        now = self._clock.now()
        with self._lock:
            self._result.delays += [(absence, (now - instant).total_seconds()) for absence, instant in changes]
        if reply.rejected:
            self._problem(
                MedflexContractError(
                    f"Medflex rejects {len(reply.rejected)} withdrawals of clinic {delivery.clinic_id}: compare"
                    " include/contracts/medflex.openapi.yaml with what Medflex expects; they are tried again."
                )
            )

    def _left(self, delivery: Delivery) -> None:
        name = "withdraw_unknown" if delivery.in_doubt else "withdraw_to_retry"
        self._count(delivery.clinic_id, **{name: len(delivery.records)})

    def _give_up(self, clinic_ids: Sequence[int]) -> None:
        self._count_each(self._due[self._due["clinic_id"].isin(clinic_ids)], "withdraw_to_retry")

    def _forget(self, clinic_id: int) -> None:
        for name in ("withdrawn", "withdraw_to_retry", "withdraw_unknown"):
            self._written.numbers[clinic_id][name] = 0

    def _count_each(self, records: pd.DataFrame, name: str) -> None:
        for key, number in records["clinic_id"].value_counts().items():
            self._count(cast("int", key), **{name: int(number)})


def _pairs(records: pd.DataFrame) -> list[tuple[int, int]]:
    """The clinics and lpu_ids of these rows."""
    return list(zip(records["clinic_id"].tolist(), records["lpu_id"].tolist(), strict=True))


def _seed(now: datetime) -> int:
    """What chance begins with in a look at this moment."""
    return int(now.timestamp() * 1000) % 2**32


def _joined(found: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in found if len(frame)]
    return pd.concat(filled, ignore_index=True)[list(REVOCATION_COLUMNS)] if filled else empty_revocations()


def _rows(table: pa.Table) -> pd.DataFrame:
    return to_pandas(table, nullable_ids=("patient_id", "doctor_id"))


def _among(records: pd.DataFrame, others: pd.DataFrame) -> Mask:
    """Tell which records (``KEY``) are among the others."""
    if not len(records) or not len(others):
        return np.zeros(len(records), dtype=bool)
    keys, of_others = (
        pd.MultiIndex.from_arrays([item[name].to_numpy("int64") for name in KEY]) for item in (records, others)
    )
    return np.asarray(keys.isin(of_others), dtype=bool)


_TEXTS = ("state", "partner_ids")
"""The columns of LIVE that are texts: few different ones."""


class _Sought:
    """LIVE, to be looked up by its appointments' ids: a part of the answer costs as much as it has rows, however many
    records there are. Holds each text once.
    """

    def __init__(self, live: pd.DataFrame) -> None:
        self._columns = list(live.columns)
        self._others = live.drop(columns=list(_TEXTS))
        self._texts = {}
        for name in _TEXTS:
            codes, texts = pd.factorize(live[name].array)
            self._texts[name] = codes.astype("int32"), texts
        self._clinic_ids = live["clinic_id"].to_numpy("int64")
        self._ids = live["appointment_id"].to_numpy("int64")
        self._order = np.lexsort((self._clinic_ids, self._ids))
        self._in_order = self._ids[self._order]

    def __len__(self) -> int:
        return len(self._ids)

    def take(self, places: Places) -> pd.DataFrame:
        """Return these rows of LIVE, numbered anew."""
        part = self._others.take(places).reset_index(drop=True)
        for name, (codes, texts) in self._texts.items():
            part[name] = texts.take(codes[places], allow_fill=True)  # −1: missing.
        return part[self._columns]

    def pairs(self) -> tuple[Array, Array]:
        """Return their clinics and ids in the order of LIVE, once also where a record is known under two lpu_ids."""
        clinic_ids = self._clinic_ids[self._order]
        again = (self._in_order[1:] == self._in_order[:-1]) & (clinic_ids[1:] == clinic_ids[:-1])
        once = np.ones(len(self._ids), dtype=bool)
        once[self._order[1:][again]] = False
        return (self._clinic_ids, self._ids) if once.all() else (self._clinic_ids[once], self._ids[once])

    def places(self, appointment_ids: Array) -> Places:
        """Return which rows of LIVE have one of these ids, whatever their clinic, in order."""
        wanted = np.sort(pd.unique(appointment_ids))
        first = np.searchsorted(self._in_order, wanted, "left")
        number = np.searchsorted(self._in_order, wanted, "right") - first
        # An id's rows lie side by side: from its first place on, as many as there are.
        before = np.cumsum(number) - number
        return np.sort(self._order[np.repeat(first - before, number) + np.arange(number.sum())])


_Watch = tuple[datetime, Mapping[str, Any]] | None


def _sweep_is_due(last: _Watch, deleted: str, now: datetime, asked: _Watch) -> bool:
    """Tell whether everything that Medflex shows is to be looked at, by the notes of the last time and of ``asked``."""
    if last is None:
        return True
    at, noted = last
    # A clock that was ahead tells nothing.
    if noted.get("after") is not None or at > now:
        return True
    begun_at = datetime.fromisoformat(noted["begun_at"]) if noted.get("begun_at") else at
    is_wanted = noted["deleted"] != deleted or (asked is not None and asked[0] >= begun_at)
    return is_wanted and now >= at + timedelta(seconds=SHARE * noted["seconds"])


_NOTHING: Mapping[str, Any] = {"lpu_id": None, "is_open": False, "partner_ids": []}
"""The permissions of a clinic that is gone."""


def _to_save(permits: Mapping[str, Any], seen: Mapping[str, Any] | None, changed_at: datetime) -> dict[str, Any]:
    """Return what a clinic permits as the ledger takes it; ``seen``: what it had of the clinic before."""
    return {**permits, "changed_at": changed_at.isoformat(), "writes": seen["writes"] if seen else 0}


def _narrowed(
    clinics: pd.DataFrame, seen: Mapping[int, Mapping[str, Any]], looked_at: datetime
) -> tuple[list[int], list[int]]:
    """Return the clinics of which less may be shared than at the last look, and those of which that is no news, but
    since less than some minutes.
    """
    narrowed = []
    just_changed = []
    # One that is gone permits nothing; that it is still gone is no news.
    for clinic_id, now in (dict.fromkeys(seen, _NOTHING) | permissions(clinics)).items():
        before = seen.get(clinic_id)
        if (
            before is None
            or (before["is_open"] and not now["is_open"])
            or set(before["partner_ids"]) - set(now["partner_ids"])
            or before["lpu_id"] != now["lpu_id"]
        ):
            narrowed.append(clinic_id)
        elif looked_at - JUST_CHANGED <= before["changed_at"] <= looked_at:
            just_changed.append(clinic_id)
    return narrowed, just_changed
