"""What the sandbox Medflex remembers: one SQLite file in WAL mode, so that a kill -9 loses nothing it has answered.

The file holds the names and phones that were sent, as Medflex would. It lies in the store folder (mode 0700).
"""

import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_SCHEMA = """
CREATE TABLE IF NOT EXISTS clinic (lpu_id INTEGER PRIMARY KEY, name TEXT NOT NULL, time_offset INTEGER NOT NULL);
-- body is NULL for a tombstone: what was withdrawn is gone, only its version stays.
CREATE TABLE IF NOT EXISTS record (
  lpu_id INTEGER NOT NULL, id INTEGER NOT NULL, version INTEGER NOT NULL, digest BLOB, body BLOB, reason TEXT,
  PRIMARY KEY (lpu_id, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS applied (
  seq INTEGER PRIMARY KEY, lpu_id INTEGER NOT NULL, id INTEGER NOT NULL, version INTEGER NOT NULL, digest BLOB
);
CREATE TABLE IF NOT EXISTS idempotency (
  key TEXT PRIMARY KEY, operation TEXT NOT NULL, body_hash BLOB NOT NULL, reply BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS delivery (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS delivery_id ON delivery (id, seq);
-- One row. Cursors bear this name, so that one of a queue that is gone points nowhere in the next.
CREATE TABLE IF NOT EXISTS queue (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS result (id TEXT PRIMARY KEY, status_code INTEGER NOT NULL, detail TEXT NOT NULL);
"""
_TABLES = ("clinic", "record", "applied", "idempotency", "delivery", "result")


@dataclass(frozen=True, slots=True)
class Stored:
    """What is there of one appointment; digest None: a tombstone."""

    version: int
    digest: bytes | None


class Store:
    """The tables and nothing else; what may be written is for the engine to decide. Not safe for two writers."""

    def __init__(self, folder: Path) -> None:
        """Open or make `folder/medflex.sqlite`. Raises OSError when the folder cannot be made or written."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / "medflex.sqlite"
        self._db = self._connect()
        self._db.executescript(_SCHEMA)
        if self._db.execute("SELECT 1 FROM queue").fetchone() is None:
            self._rename_queue()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        # NORMAL: durable against the death of the process, which is what the tests inflict; not against power loss.
        db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-65536;")
        return db

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, also when the process dies inside."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def clear(self) -> None:
        """Forget everything."""
        with self.transaction():
            for table in _TABLES:
                self._db.execute(f"DELETE FROM {table}")
            self._rename_queue()

    # Clinics

    def put_clinics(self, clinics: Iterable[tuple[int, str, int]]) -> None:
        """Add or replace clinics given as (lpu_id, name, minutes east of UTC)."""
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO clinic VALUES (?, ?, ?)", clinics)

    def remove_clinics(self, lpu_ids: Iterable[int]) -> None:
        """The token sees these no more; their records stay."""
        with self.transaction():
            self._db.executemany("DELETE FROM clinic WHERE lpu_id = ?", ((lpu_id,) for lpu_id in lpu_ids))

    def clinic_exists(self, lpu_id: int) -> bool:
        """True when the token sees the clinic."""
        return self._db.execute("SELECT 1 FROM clinic WHERE lpu_id = ?", (lpu_id,)).fetchone() is not None

    def count_clinics(self) -> int:
        """How many clinics the token sees."""
        return int(self._db.execute("SELECT count(*) FROM clinic").fetchone()[0])

    def clinics(self, offset: int, limit: int) -> list[dict[str, Any]]:
        """One page, by lpu_id."""
        rows = self._db.execute("SELECT * FROM clinic ORDER BY lpu_id LIMIT ? OFFSET ?", (limit, offset))
        return [{"lpu_id": lpu_id, "name": name, "time_offset": offset_} for lpu_id, name, offset_ in rows]

    # Records

    def stored(self, lpu_id: int, ids: list[int]) -> dict[int, Stored]:
        """What is there of these appointments, tombstones included."""
        rows = self._db.execute(
            "SELECT id, version, digest FROM record WHERE lpu_id = ? AND id IN (SELECT value FROM json_each(?))",
            (lpu_id, orjson.dumps(ids).decode()),
        )
        return {id_: Stored(version, digest) for id_, version, digest in rows}

    def write(self, lpu_id: int, rows: list[tuple[int, int, bytes | None, bytes | None, str | None]]) -> None:
        """Put (id, version, digest, body, reason) as they are, and note each as applied. Inside a transaction."""
        self._db.executemany(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (lpu_id, id) DO UPDATE SET"
            " version = excluded.version, digest = excluded.digest, body = excluded.body, reason = excluded.reason",
            [(lpu_id, *row) for row in rows],
        )
        self._db.executemany(
            "INSERT INTO applied (lpu_id, id, version, digest) VALUES (?, ?, ?, ?)",
            [(lpu_id, row[0], row[1], row[2]) for row in rows],
        )

    def count_visible(self, lpu_id: int) -> int:
        """How many records of the clinic partners see."""
        row = self._db.execute("SELECT count(*) FROM record WHERE lpu_id = ? AND digest IS NOT NULL", (lpu_id,))
        return int(row.fetchone()[0])

    def visible(self, lpu_id: int, offset: int, limit: int) -> list[dict[str, Any]]:
        """One page of the listing, by id."""
        rows = self._db.execute(
            "SELECT id, version, digest FROM record WHERE lpu_id = ? AND digest IS NOT NULL"
            " ORDER BY id LIMIT ? OFFSET ?",
            (lpu_id, limit, offset),
        )
        return [{"id": id_, "version": version, "digest": digest.hex()} for id_, version, digest in rows]

    # Idempotency

    def first_reply(self, key: str) -> tuple[str, bytes, bytes] | None:
        """(operation, hash of the body, reply body) under this key, if it was answered."""
        row = self._db.execute("SELECT operation, body_hash, reply FROM idempotency WHERE key = ?", (key,)).fetchone()
        return None if row is None else (row[0], row[1], zlib.decompress(row[2]))

    def keep_reply(self, key: str, operation: str, body_hash: bytes, reply: bytes) -> None:
        """Bind the key to its body and reply, unless it is bound. Inside the transaction of its effect."""
        self._db.execute(
            "INSERT OR IGNORE INTO idempotency VALUES (?, ?, ?, ?)",
            (key, operation, body_hash, zlib.compress(reply, 1)),
        )

    # Actions

    def deliver_action(self, id_: str, action: Any) -> None:
        """Put an action at the end of the queue; the same id may come again."""
        self._db.execute("INSERT INTO delivery (id, body) VALUES (?, ?)", (id_, orjson.dumps(action)))

    def action(self, id_: str) -> Any:
        """The last delivery of this id; None when there is none."""
        row = self._db.execute("SELECT body FROM delivery WHERE id = ? ORDER BY seq DESC LIMIT 1", (id_,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def forget_actions(self, *, keep: bool) -> None:
        """Make all cursors point nowhere; with ``keep`` the actions are listed on, else they are gone. Results stay."""
        with self.transaction():
            if not keep:
                self._db.execute("DELETE FROM delivery")
            self._rename_queue()

    def _rename_queue(self) -> None:
        self._db.execute("DELETE FROM queue")
        self._db.execute("INSERT INTO queue VALUES (lower(hex(randomblob(6))))")

    def cursor(self, place: int) -> str:
        """The cursor that stands for this place."""
        return f"{self._queue_name()}-{place}"

    def place(self, cursor: str) -> int | None:
        """The place that the cursor stands for, None when it points nowhere."""
        name, _, place = cursor.partition("-")
        if name != self._queue_name() or not re.fullmatch("[0-9]{1,18}", place):
            return None
        # What was delivered is never deleted but with the whole queue, and its numbers are never given again.
        row = self._db.execute("SELECT coalesce(max(seq), 0) FROM delivery").fetchone()
        return int(place) if int(place) <= row[0] else None

    def _queue_name(self) -> str:
        return str(self._db.execute("SELECT name FROM queue").fetchone()[0])

    def count_actions(self, after: int) -> int:
        """How many deliveries stand behind this place."""
        return int(self._db.execute("SELECT count(*) FROM delivery WHERE seq > ?", (after,)).fetchone()[0])

    def actions(self, after: int, limit: int) -> list[tuple[int, Any]]:
        """(place, action) of the deliveries behind this place, oldest first."""
        rows = self._db.execute("SELECT seq, body FROM delivery WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return [(seq, orjson.loads(body)) for seq, body in rows]

    def result(self, id_: str) -> int | None:
        """The status code with which the action was answered."""
        row = self._db.execute("SELECT status_code FROM result WHERE id = ?", (id_,)).fetchone()
        return None if row is None else int(row[0])

    def keep_result(self, id_: str, status_code: int, detail: str) -> None:
        """Note the answer; the first one stays."""
        self._db.execute("INSERT OR IGNORE INTO result VALUES (?, ?, ?)", (id_, status_code, detail))

    def results(self) -> dict[str, dict[str, Any]]:
        """All answers by action id."""
        rows = self._db.execute("SELECT id, status_code, detail FROM result")
        return {id_: {"status_code": status_code, "detail": detail} for id_, status_code, detail in rows}

    # For tests: each reads through a connection of its own, so that a large dump can be streamed from a thread.

    def dump_records(self, lpu_id: int | None) -> Iterator[bytes]:
        """All that partners can see, as JSON lines {"lpu_id", "record"}, by lpu_id and id."""
        with closing(self._connect()) as db:
            for lpu, body in db.execute(
                "SELECT lpu_id, body FROM record WHERE body IS NOT NULL AND (?1 IS NULL OR lpu_id = ?1)"
                " ORDER BY lpu_id, id",
                (lpu_id,),
            ):
                yield b'{"lpu_id":%d,"record":%s}\n' % (lpu, body)

    def dump_tombstones(self) -> Iterator[bytes]:
        """All that was withdrawn, as JSON lines {"lpu_id", "id", "version", "reason"}."""
        with closing(self._connect()) as db:
            for lpu, id_, version, reason in db.execute(
                "SELECT lpu_id, id, version, reason FROM record WHERE body IS NULL ORDER BY lpu_id, id"
            ):
                yield orjson.dumps({"lpu_id": lpu, "id": id_, "version": version, "reason": reason}) + b"\n"

    def dump_applied(self, lpu_id: int | None, id_: int | None) -> Iterator[bytes]:
        """Every write that had an effect, in order: {"lpu_id", "id", "version", "digest"}, digest null: withdrawn."""
        with closing(self._connect()) as db:
            for lpu, record_id, version, digest in db.execute(
                "SELECT lpu_id, id, version, digest FROM applied"
                " WHERE (?1 IS NULL OR lpu_id = ?1) AND (?2 IS NULL OR id = ?2) ORDER BY seq",
                (lpu_id, id_),
            ):
                yield (
                    orjson.dumps(
                        {"lpu_id": lpu, "id": record_id, "version": version, "digest": digest and digest.hex()}
                    )
                    + b"\n"
                )
