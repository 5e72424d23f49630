"""The plan for 20,000 clinics and 300 million appointments, worked out of measured figures: ``python -m
bench.capacity`` writes docs/capacity.md.

Measured figures come from bench/measured/scale.json (``python -m bench.scale``), from compare.json beside it (``python
-m bench.compare``), from looks.json (``python -m bench.looks``) and from the tables of tasks in docs/benchmarks.md
(``python -m bench``). Each of a task's costs is a straight line through its two measured sizes.
``--check`` writes nothing and ends with 1 when the page is not what the figures say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from bench.compare import OUTPUT as COMPARED
from bench.document import DOCUMENT
from bench.looks import OUTPUT as LOOKED
from bench.looks import Measured
from bench.scale import CLINICS, EXPECTED_ROWS, OUTPUT, instances, shard_tasks
from bench.task import PROJECT, SOURCE
from medflex.airflow.hooks.medflex import MedflexSettings
from medflex.airflow.loading import Loader
from medflex.airflow.tasks.transfer import TARGET_ROWS
from medflex.airflow.withdrawing import EDITED_OVERLAP, OVERLAP, SHARE, Withdrawer
from medflex.airflow.writing import LOOK_SECONDS
from medflex.domain.access import AccessState
from medflex.domain.packing import MOST_CLOSED, MOST_OPEN, MOST_SHARDS, pack_shards
from medflex.domain.window import DAYS_AHEAD, DAYS_BACK

PAGE = PROJECT / "docs" / "capacity.md"
RATE, BATCH_SIZE = 20, 500
"""Requests a second of all workers together and records per request, as the connection has them by default."""
CHANGED = 0.01
DEPLOYED_SLOTS = 6
"""What docker-compose.yml and deploy/helm/values.yaml allow a run (``AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG``)."""
SLOTS = (DEPLOYED_SLOTS, 8, 16, 32, 64)
DEPLOYED_CONNECTIONS = 250
"""``POSTGRES_MAX_CONNECTIONS`` of docker-compose.yml."""
PARALLELISM = 32
"""``AIRFLOW__CORE__PARALLELISM`` by default: tasks at a time of one scheduler, in all DAGs together."""
BESIDE = 2
"""Tasks that find a place beside a run's: a withdrawal, and a search for deleted rows."""
WORKERS = 2
LOAD_CONNECTIONS, OTHER_CONNECTIONS = 10, 50
KEPT_DAYS = 120
TIMEOUT_HOURS = 3
"""After which Airflow takes a task of the daily run for stuck (the DAG's execution_timeout)."""
TASKS = ("extract", "withhold", "validate", "plan_changes", "load")


@dataclass(frozen=True)
class Line:
    """What a task takes for a shard: so much, and so much more for each million rows of the extract."""

    fixed: float
    per_million: float

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> Line:
        """The line through two measurements (millions of rows, amount); it never falls, nor begins below nothing."""
        slope = max(0.0, (large[1] - small[1]) / (large[0] - small[0]))
        return cls(max(0.0, small[1] - slope * small[0]), slope)

    def at(self, millions: float) -> float:
        """The amount for one shard of so many million rows."""
        return self.fixed + self.per_million * millions


@dataclass(frozen=True)
class Compared:
    """The largest run that bench.compare made in a whole Airflow: its open clinics, the rows it extracted, and bytes in
    staging for each of these.
    """

    clinics: int
    rows: int
    staged_bytes: float

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Compared:
        """Take it from compare.json."""
        size, made = max(figures["sizes"].items(), key=lambda item: int(item[0]))
        staged = [
            sum(one["staged_bytes"].values())
            for one in figures["measurements"]
            if one["size"] == int(size) and "staged_bytes" in one
        ]
        return cls(made["open_clinics"], made["extracted"], median(staged) / made["extracted"])


@dataclass(frozen=True)
class Looked:
    """What ``withdraw_revoked`` took for a shard on bench.compare's day with changes, and how often it was measured."""

    seconds: Line
    repeats: int

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Looked:
        """Take it from compare.json: its shards' mean, of all repeats of a size the median.

        Raises:
            ValueError: the product's day with changes was not measured at two sizes.
        """
        found: dict[int, list[tuple[float, float]]] = {}
        for one in figures["measurements"]:
            if one["what"] != "product" or one["day"] != "changed":
                continue
            seconds = [task["seconds"] for task in one["tasks"] if task["task"] == "withdraw_revoked"]
            found.setdefault(one["size"], []).append(
                (one["extracted"] / len(seconds) / 1e6, sum(seconds) / len(seconds))
            )
        if len(found) < 2:
            raise ValueError("bench/measured/compare.json has no changed day of the product at two sizes.")
        small, large = (
            (median(millions for millions, _ in found[size]), median(seconds for _, seconds in found[size]))
            for size in (min(found), max(found))
        )
        return cls(Line.through(small, large), min(map(len, found.values())))


@dataclass(frozen=True)
class Figures:
    """What was measured: lines of seconds and of peak MB by run (first, second) and task; bench.scale's figures; of
    bench.compare the largest size, and the look at what is shown.
    """

    seconds: Mapping[tuple[str, str], Line]
    peaks: Mapping[tuple[str, str], Line]
    eligible_share: float
    copy_rows: float
    measured_rows: int
    scale: Mapping[str, Any]
    compared: Compared
    looked: Looked


def measured(document: str, scale: Mapping[str, Any], compared: Mapping[str, Any]) -> Figures:
    """Read the figures out of docs/benchmarks.md, scale.json and compare.json.

    Raises:
        ValueError: the table of a task is not there.
    """
    section = document.partition("<!-- tasks: begin -->")[2].partition("<!-- tasks: end -->")[0]
    seconds: dict[tuple[str, str], Line] = {}
    peaks: dict[tuple[str, str], Line] = {}
    eligible = copy = 0.0
    large_rows = 0
    for run, title in (("first", "### First run"), ("second", "### Second run")):
        table = section.partition(title)[2].partition("\n### ")[0]
        rows = {
            cells[0].strip("`"): [_number(cell) for cell in cells[1:]]
            for cells in (re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines() if "|" in line)
            if len(cells) == 9 and cells[1][:1].isdigit()
        }
        missing = {task for task in TASKS if task not in rows} - ({"validate"} if run == "second" else set())
        if missing:
            raise ValueError(f"docs/benchmarks.md has no figures of {', '.join(sorted(missing))} ({run} run).")
        extracted = rows["extract"]
        at = extracted[0] / 1e6, extracted[4] / 1e6
        for task in TASKS:
            # What judges the rows of a day does so whether or not they have changed.
            found = rows.get(task)
            if found is None:
                seconds[run, task], peaks[run, task] = seconds["first", task], peaks["first", task]
                continue
            seconds[run, task] = Line.through((at[0], found[1]), (at[1], found[5]))
            peaks[run, task] = Line.through((at[0], found[3]), (at[1], found[7]))
        if run == "first":
            eligible, large_rows = rows["load"][4] / extracted[4], int(extracted[4])
            copy = next(found[4] / found[5] for name, found in rows.items() if name.startswith("the query"))
    return Figures(
        seconds, peaks, eligible, copy, large_rows, scale, compared=Compared.of(compared), looked=Looked.of(compared)
    )


def _number(cell: str) -> float:
    return float(cell.replace(",", "")) if re.fullmatch(r"[\d,.]+", cell) else 0.0


@dataclass(frozen=True)
class Plan:
    """What follows for 300 million rows."""

    shards: int
    millions: float
    eligible: int
    first_requests: int
    changed_requests: int


def planned(figures: Figures) -> Plan:
    """Pack 20,000 clinics of very different sizes, and count requests."""
    sizes = np.random.default_rng(7).lognormal(0.0, 1.2, CLINICS)
    rows = np.maximum(1, (sizes / sizes.sum() * EXPECTED_ROWS)).astype("int64")
    clinics = pd.DataFrame({"clinic_id": range(CLINICS), "expected_rows": rows, "kind": AccessState.OPEN})
    shards = pack_shards(clinics, TARGET_ROWS)
    eligible = np.ceil(rows * figures.eligible_share)
    changed = np.ceil(eligible * CHANGED)
    return Plan(
        shards=len(shards),
        millions=EXPECTED_ROWS / len(shards) / 1e6,
        eligible=int(eligible.sum()),
        # A batch is of one clinic.
        first_requests=int(np.ceil(eligible / BATCH_SIZE).sum()),
        changed_requests=int(np.ceil(changed / BATCH_SIZE).sum()),
    )


def render(figures: Figures, looked: Measured) -> str:
    """Return the page.

    Args:
        looked: what bench.looks has measured.
    """
    plan = planned(figures)
    scale, packed = figures.scale, figures.scale["packing"]
    overhead = _overhead(scale)
    work = {
        "first": _work(figures, plan, "first", TASKS),
        # On a first run nothing is shown yet.
        "unchanged": _work(figures, plan, "second", TASKS) + plan.shards * figures.looked.seconds.at(plan.millions),
    }
    work["changed"] = work["unchanged"] + CHANGED * _work(figures, plan, "first", ("load",))
    processes = len(_processes(scale))
    starts = plan.shards * processes * overhead
    requests = {"first": plan.first_requests, "changed": plan.changed_requests, "unchanged": 0}
    titles = {"first": "first run, all is new", "changed": "a day with 1 % changed", "unchanged": "nothing changed"}
    peaks = {task: max(figures.peaks[run, task].at(plan.millions) for run in ("first", "second")) for task in TASKS}
    record = _record_bytes(scale)
    per_clinic = _run_bytes(scale)
    daily = EXPECTED_ROWS / (DAYS_BACK + DAYS_AHEAD + 1) * figures.eligible_share
    compared = figures.compared
    looks = [2 * -(-plan.first_requests // size) for size in (Loader.together, MedflexSettings.parallel)]
    decisions = {one["shards"]: max(step["cpu_seconds"] for step in one["steps"]) for one in scale["decisions"]}
    needed = plan.first_requests / (6 * 3600)
    most_loads = int(TIMEOUT_HOURS * 3600 * RATE / (plan.first_requests / plan.shards))
    lines = [
        "# Capacity",
        "",
        "What this product needs for 20,000 clinics with 300 million appointments in their windows (15,000 each in the"
        " mean), and what has to be raised first.",
        "",
        "Written by `python -m bench.capacity` out of measured figures, not by hand. **m** marks what was measured, on"
        " the two cores and by the scripts that [benchmarks](benchmarks.md) tell of; **d** what is derived from it by"
        " the arithmetic that stands beside it. Nothing of this size was run as a whole: the largest real runs, each in"
        f" a whole Airflow, had {CLINICS:,} clinics with {scale['appointments']:,} appointments and {compared.clinics}"
        f" clinics with {compared.rows:,}, the largest shard {figures.measured_rows:,} rows. Seconds are those of a"
        " machine that other measurements shared: take them as upper bounds and the ratios as right, and run `make"
        " bench` on your own.",
        "",
        "## Shards",
        "",
        "| | | |",
        "| --- | --- | ---: |",
        f"| rows aimed at | `MEDFLEX_SHARD_ROWS` | {TARGET_ROWS:,} |",
        f"| shards that this would make | d: 300 million / {TARGET_ROWS:,} | {EXPECTED_ROWS // TARGET_ROWS} |",
        f"| shards there are at most | {MOST_OPEN} open, {MOST_CLOSED} closed, the rest for clinics that wait |"
        f" {MOST_SHARDS} |",
        f"| shards of this plan | m: packed by the product | {plan.shards} |",
        f"| rows in each | m: all within {100 * (packed['most_rows'] / packed['least_rows'] - 1):.2f} % |"
        f" {round(plan.millions * 1e6, -4):,.0f} |",
        f"| mapped task instances at most | {MOST_SHARDS} × {len(shard_tasks(scale))} | {instances(scale)} |",
        "",
        "Beyond the limit shards become larger, not more. The reason is Airflow: in each of its rounds the scheduler"
        " judges every instance that has not begun, with a query or more for each, before it comes to any other DAG."
        " CPU seconds of one such decision (m): "
        + ", ".join(f"{shards} shards {cpu:.1f}" for shards, cpu in decisions.items())
        + ". As long as the daily run lasts, each withdrawal waits for several of these. With 950 shards one decision"
        " took 9 to 61 CPU seconds, and up to three minutes on a busy machine (m, once, by hand).",
        "",
        "A clinic that waits for its 24 hours has a shard of its own while the shards that are left allow it. Beyond"
        " that, clinics that open one after another share a shard, which begins when the first of them opens; those"
        " that open later are sent by the next run. With this plan that begins with more than"
        f" {MOST_SHARDS - plan.shards - 1} clinics that wait at once (fewer where closed clinics take several shards).",
        "",
        "## Planning",
        "",
        "| ledger (m) | seconds | peak MB | queries |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {one['seconds']:.1f} | {one['peak_mb']:.0f} | {one['queries']} |"
            for name, one in scale["planning"].items()
        ),
        "",
        "It depends on the number of clinics, not of rows: clinics with records are found by a few looks at an index"
        " per clinic, and the sizes of more than 100 clinics that no run has counted come from a sample of a million"
        " rows, for which Medlock's statistics have to be there (`ANALYZE`).",
        "",
        "## Time and worker slots",
        "",
        "A slot is a task process with a core of its own. Task seconds (d): fixed part × shards + seconds per million"
        f" rows × 300, through the two measured sizes; and the start of {processes} processes per shard,"
        f" {overhead:.1f} s each (m, the least mean of a task's instances in the last run of bench.scale). Medflex's"
        f" rate: {RATE} requests a second for all"
        f" workers together, {BATCH_SIZE} records of one clinic in each (the contract has one `lpu_id` per request).",
        "",
        "| task | fixed s | s per million rows, first run | second run |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| `{task}` | {figures.seconds['first', task].fixed:.1f}"
            f" | {figures.seconds['first', task].per_million:.1f} | {figures.seconds['second', task].per_million:.1f} |"
            for task in TASKS
        ),
        f"| `withdraw_revoked` | {figures.looked.seconds.fixed:.1f} | – | {figures.looked.seconds.per_million:.1f} |",
        "",
        "`withdraw_revoked` compares every record that is shown with Medlock as it is now; on a first run nothing is"
        f" shown. Its seconds (m) are those of `python -m bench.compare`, on the day with changes, the median of"
        f" {figures.looked.repeats} repeats: by the clock, in a whole Airflow, two at a time on two cores that Postgres"
        " and everything else have to share. So take them as an upper bound above all.",
        "",
        f"| run | task hours | requests | hours at {RATE}/s | "
        + " | ".join(f"{slots} slots" for slots in SLOTS)
        + " |",
        f"| --- | ---: | ---: | ---: |{' ---: |' * len(SLOTS)}",
        *(
            f"| {title} | {(work[run] + starts) / 3600:.1f} | {requests[run]:,} | {requests[run] / RATE / 3600:.1f} | "
            + " | ".join(
                f"{max((work[run] + starts) / slots, requests[run] / RATE) / 3600:.1f} h"
                + (" (rate)" if requests[run] / RATE > (work[run] + starts) / slots else "")
                for slots in SLOTS
            )
            + " |"
            for run, title in titles.items()
        ),
        "",
        "`(rate)`: Medflex's rate is what it waits for, and more slots bring nothing. Not in these hours: Medflex's own"
        " time to answer.",
        "",
        f"The first run (d): {EXPECTED_ROWS / 1e6:.0f} million × {100 * figures.eligible_share:.0f} % eligible (m, the"
        f" generated Medlock) = {plan.eligible / 1e6:.0f} million records in {plan.first_requests:,} requests. At"
        f" {RATE} a second that is {plan.first_requests / RATE / 3600:.1f} hours; to be through in a night of six hours"
        f" Medflex has to allow {needed:.0f} requests a second, and within the alert's three hours"
        f" {2 * needed:.0f}. Two ways without that: switch clinics on in groups over several days, or let the run"
        " take longer once; what one run leaves over, the next one sends.",
        "",
        f"Loads that run at the same time share the rate: with {RATE} a second and"
        f" {plan.first_requests / plan.shards:,.0f} requests per shard, more than {most_loads} of them at once each"
        f" take longer than the {TIMEOUT_HOURS} hours after which Airflow takes a task for stuck (d). What such a task"
        " has sent stays sent and the next attempt goes on"
        f" behind it, but keep to {most_loads} slots for the first run, or raise the rate.",
        "",
        f"Small clinics cost requests, not rows: a day on which each of {CLINICS:,} clinics has one change is"
        f" {CLINICS:,} requests, {CLINICS / RATE / 60:.0f} minutes at {RATE} a second, however few records it is.",
        "",
        *_settings(),
        *_withdrawals(plan, looked),
        "## Memory of a worker",
        "",
        f"Peak of each task for a shard of {plan.millions:.1f} million rows, d: the line through the peaks at both"
        " measured sizes, whichever run is higher. That is more than they take: what a task holds is of one slice of"
        " clinics ([why](adr/0026-slices.md)), and most of what the larger size takes more is a slice that is full.",
        "",
        "| task | peak MB |",
        "| --- | ---: |",
        *(f"| `{task}` | {peak:.0f} |" for task, peak in peaks.items()),
        "",
        f"Per slot the highest of these, {max(peaks.values()):.0f} MB: a worker with 8 slots needs"
        f" {8 * max(peaks.values()) / 1000:.1f} GB, and a reserve.",
        "",
        "## The ledger's Postgres",
        "",
        "| | | |",
        "| --- | --- | ---: |",
        f"| a record, with its indexes | m: {scale['written']['records']:,} records sent once |"
        f" {record['record']:.0f} bytes |",
        f"| its part of a batch of {BATCH_SIZE} | m | {record['batch']:.0f} bytes |",
        f"| write-ahead log for sending a record | m | {record['wal']:.0f} bytes |",
        f"| records after the first run | d: {plan.eligible / 1e6:.0f} million × both |"
        f" {plan.eligible * (record['record'] + record['batch']) / 1e9:.0f} GB |",
        f"| write-ahead log of the first run | d | {plan.eligible * record['wal'] / 1e9:.0f} GB |",
        f"| the same per second, at {RATE} requests | d | {RATE * BATCH_SIZE * record['wal'] / 1e6:.1f} MB/s |",
        f"| records that enter the window each day | d: 300 million / {DAYS_BACK + DAYS_AHEAD + 1} days, eligible |"
        f" {daily / 1e6:.1f} million |",
        f"| records that have left the window, in a year | d: they stay in `ledger.record` |"
        f" {daily * 365 * record['record'] / 1e9:.0f} GB |",
        f"| batches of {400} days (`MEDFLEX_KEEP_BATCHES_DAYS`) | d: new records and 1 % changes |"
        f" {400 * (daily + CHANGED * plan.eligible) * record['batch'] / 1e9:.0f} GB |",
        f"| numbers and reasons of a run | m: {per_clinic:.0f} bytes per clinic |"
        f" {per_clinic * CLINICS / 1e6:.0f} MB |",
        f"| of {KEPT_DAYS} days (`MEDFLEX_KEEP_RUNS_DAYS`) | d; more ids of withheld records come on top |"
        f" {KEPT_DAYS * per_clinic * CLINICS / 1e9:.0f} GB |",
        "",
        f"Sending a record again leaves a dead row of {record['dead']:.0f} bytes (m) behind. With autovacuum's default"
        " of 20 % a table of this size is vacuumed after"
        f" {0.2 * plan.eligible / 1e6:.0f} million of these: set `autovacuum_vacuum_scale_factor = 0.01` and"
        " `autovacuum_analyze_scale_factor = 0.005` for `ledger.record` and `ledger.batch`, and `max_wal_size` to some"
        " minutes of the write-ahead log above. Statements per batch: one that writes the intent, one that writes its"
        f" outcome, one for the place in the rate; at {RATE} requests a second some {3 * RATE} short transactions a"
        f" second at most: up to {Loader.together} batches share the first two. Connections: up to 10 per slot that"
        " loads (4 requests and 4 groups of batches at a time, and two of the task itself).",
        "",
        "## Medlock",
        "",
        "| | | |",
        "| --- | --- | ---: |",
        f"| rows a second of one extract's query | m: `{SOURCE}` | {figures.copy_rows:,.0f} |",
        f"| seconds of such a query, all 300 million | d, with one core of the server |"
        f" {EXPECTED_ROWS / figures.copy_rows:,.0f} |",
        f"| the same with 8 extracts at a time | d, with 8 cores | {EXPECTED_ROWS / figures.copy_rows / 8:,.0f} |",
        f"| statements of the looks just before sending, first run | d: 2 for {Loader.together} requests; where they"
        f" wait for the rate for longer than {LOOK_SECONDS:.0f} s, 2 for {MedflexSettings.parallel} and 2 more for each"
        f" | {looks[0]:,} to {looks[1] + 2 * plan.first_requests:,} |",
        "",
        "It is read from 03:00 Moscow time on, by as many queries at once as there are slots for `extract`. The one"
        " connection has to lead to the primary: consent is read again just before each batch leaves, and a replica"
        " that lags would let through what has just been refused. Where that read load is too much, lower the slots (a"
        " pool for `extract`) before anything else.",
        "",
        "## Staging",
        "",
        f"{compared.staged_bytes:.0f} bytes per row (m: {compared.rows:,} rows, all that a run stages). All shards at"
        f" once (d): {EXPECTED_ROWS * compared.staged_bytes / 1e9:.0f} GB, until the end of the run.",
        "",
        "## Cost",
        "",
        "With your own prices: `core` per core-hour, `gb` per GB-month of the database's disk, `store` per GB-month of"
        " the object store. Per month of 30 days with 1 % changed:",
        "",
        "```text",
        f"workers   {30 * (work['changed'] + starts) / 3600:,.0f} core-hours × core   (the slots may sleep for the rest"
        " of the day)",
        f"ledger    {_ledger_gb(plan, record, daily, per_clinic):,.0f} GB × gb   (after a year; log and backups come on"
        " top)",
        f"staging   {EXPECTED_ROWS * compared.staged_bytes / 1e9:,.0f} GB × hours of the run / 24 × store",
        f"once      {(work['first'] + starts) / 3600:,.0f} core-hours × core   for the first run",
        "```",
        "",
        "## What to raise first",
        "",
        f"1. Medflex's rate for the first run (`rate_per_second` of the connection, as Medflex allows): {RATE} a second"
        f" are {plan.first_requests / RATE / 3600:.1f} hours, whatever else there is.",
        "2. `MEDFLEX_DAILY_DEADLINE_HOURS`, or the first run alerts after three hours.",
        f"3. Worker slots: 16 instead of {DEPLOYED_SLOTS}, with {(16 + BESIDE) * max(peaks.values()) / 1000:.1f} GB of"
        f" memory for each worker (it takes {BESIDE} more at a time than a run may have), and"
        " [what has to move with them](#what-moves-with-the-slots).",
        "4. Autovacuum of `ledger.record`, before the first run; then disk for it.",
        "5. Cores of Medlock's server for the hour of the extracts, or fewer slots for `extract`.",
        "6. Not the number of shards: see above what it costs everybody else.",
        "",
    ]
    return "\n".join(lines)


def connections(slots: int, of_a_worker: int) -> int:
    """Connections to Postgres where a run may have so many tasks at a time, and a worker so many of all runs.

    What is beside a run may send or withdraw as its loads do; each other task has one. And each process of a worker's
    pool keeps one more, whatever it runs: Celery's, for how its tasks have ended.
    """
    tasks, loads = WORKERS * of_a_worker, slots + BESIDE
    return LOAD_CONNECTIONS * loads + (tasks - loads) + tasks + OTHER_CONNECTIONS


def _settings() -> list[str]:
    """What has to be set for so many slots."""
    rows = []
    for slots in SLOTS:
        of_a_worker = slots + BESIDE
        values = (
            of_a_worker,
            max(PARALLELISM, WORKERS * of_a_worker),
            max(DEPLOYED_CONNECTIONS, connections(slots, of_a_worker)),
            WORKERS * of_a_worker,
        )
        rows.append(f"| {slots}{', as deployed' if slots == DEPLOYED_SLOTS else ''} | {' | '.join(map(str, values))} |")
    return [
        "### What moves with the slots",
        "",
        f"Both deployments allow a run {DEPLOYED_SLOTS} slots. More are there only when all of these are set:",
        "",
        "| `AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG`: slots of a run | `AIRFLOW__CELERY__WORKER_CONCURRENCY` of each of"
        f" {WORKERS} workers | `AIRFLOW__CORE__PARALLELISM` | `max_connections` of Postgres | heartbeats a second"
        " that the api-servers take |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"- A worker takes {BESIDE} more at a time than a run may have, so that a withdrawal and a search for deleted"
        " rows find a place also while only one worker is left. Its memory grows with it.",
        f"- In all, no more tasks begin than `AIRFLOW__CORE__PARALLELISM` says (for each scheduler; {PARALLELISM} by"
        " default): as many as all workers take.",
        f"- Connections (d): {LOAD_CONNECTIONS} × (slots + {BESIDE}) + ({WORKERS} × concurrency − slots − {BESIDE}) +"
        f" {WORKERS} × concurrency + {OTHER_CONNECTIONS}. A load has up to {LOAD_CONNECTIONS}, every other task one;"
        " each process of a worker keeps one for how its tasks have ended (m: Celery 5.6.3, by its own code in three"
        f" processes); and Airflow's other parts and whoever looks at it have {OTHER_CONNECTIONS}. On Kubernetes, where"
        f" there are two api-servers and two triggerers, reckon with {2 * OTHER_CONNECTIONS} for these: from 16 slots"
        f" on take {OTHER_CONNECTIONS} more than stands under `max_connections`.",
        "- Heartbeats (d): each running task tells an api-server once a second that it lives"
        " (`AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL` is 1), and each is a small transaction; a task that no api-server"
        " hears of is ended. An api-server is one process (`AIRFLOW__API__WORKERS` is 1 by default), that is one core"
        " at most, for these and for all that tasks and people ask. How many it takes was not measured, and the largest"
        f" runs here had far fewer than {(SLOTS[-1] + BESIDE) * WORKERS}: watch its core and the time of its answers,"
        " and give it more processes, or better more api-servers, before they are many more than as deployed. For each"
        f" one more reckon with up to {OTHER_CONNECTIONS} connections more.",
        "",
        "With Docker Compose these are `AIRFLOW_MAX_ACTIVE_TASKS_PER_DAG`, `AIRFLOW_WORKER_CONCURRENCY`,"
        " `AIRFLOW_PARALLELISM`, `POSTGRES_MAX_CONNECTIONS` and `AIRFLOW_API_WORKERS` in `.env`, with them"
        " `AIRFLOW_WORKER_MEMORY`; on Kubernetes `env`, `config.celery.worker_concurrency` and `apiServer.replicas` in"
        " `deploy/helm/values.yaml`, with them the memory of `workers.celery.resources`, and your Postgres.",
        "",
    ]


def _withdrawals(plan: Plan, looks: Measured) -> list[str]:
    """The looks for what may no longer be shared."""
    per_record, per_edit, quick = looks.per_record, looks.per_edit, median(looks.quick)
    a_day = CHANGED * plan.eligible
    far, near = (a_day * span.total_seconds() / 86_400 for span in (OVERLAP, EDITED_OVERLAP))
    search = per_record * plan.eligible
    pieces = -(-search // Withdrawer.sweep_time.total_seconds())
    return [
        "## Withdrawals",
        "",
        f"Measured with {looks.records:,} records shown (`python -m bench.looks`); without the start of a task and"
        " without Airflow, which the [time to withdraw](benchmarks.md#time-to-withdraw) has.",
        "",
        "| | | seconds |",
        "| --- | --- | ---: |",
        f"| a look for refusals | m | {quick:.2f} |",
        f"| the same while deleted rows are searched for | m: median, and most of {len(looks.beside)} |"
        f" {median(looks.beside):.2f}, {max(looks.beside):.2f} |",
        f"| the same over the edits of ten minutes | d: {near:,.0f}, {1e6 * per_edit:.1f} µs each |"
        f" {quick + per_edit * near:.1f} |",
        f"| the same over the edits of two hours, at most a tenth of the time | d: {far:,.0f} |"
        f" {quick + per_edit * far:.1f} |",
        f"| the search for deleted rows | d: {plan.eligible / 1e6:.0f} million records, {1e6 * per_record:.1f} µs each"
        f" | {search:,.0f} |",
        "",
        f"Edits (d): those of {100 * CHANGED:.0f} % of the records a day, evenly; where a day's come in a few hours,"
        f" there are as many times more. The search is {pieces:.0f} runs of `medflex_sweep` of"
        f" {Withdrawer.sweep_time.total_seconds() / 60:.0f} minutes each, and is made at most every"
        f" {SHARE * search / 3600:.1f} hours: so long after it a deleted row may be shown, a refusal is not."
        " Refusals do not wait for it, nor for a daily run.",
        "",
    ]


def _work(figures: Figures, plan: Plan, run: str, tasks: Sequence[str]) -> float:
    """Task seconds of a run, all shards."""
    return plan.shards * sum(figures.seconds[run, task].at(plan.millions) for task in tasks)


def _processes(scale: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tasks of the last run that each shard has a process of."""
    of_shards = {task["task"]: task for task in scale["runs"][-1]["tasks"] if task["task"] in shard_tasks(scale)}
    # It does nothing: the scheduler ends it without any process.
    del of_shards["shard.withdrawals_ended"]
    return of_shards


def _overhead(scale: Mapping[str, Any]) -> float:
    """Seconds of a task process that has next to nothing to do: the least mean of a mapped task's instances."""
    return float(min(task["seconds"] / task["instances"] for task in _processes(scale).values() if task["succeeded"]))


def _record_bytes(scale: Mapping[str, Any]) -> dict[str, float]:
    written = scale["written"]
    sent, again, records = written["sent"], written["sent again"], written["records"]

    def size(table: Mapping[str, Any]) -> float:
        return float(table["table_bytes"] + table["index_bytes"]) / records

    return {
        "record": size(sent["record"]),
        "batch": size(sent["batch"]),
        "wal": sent["wal_bytes"] / records,
        "dead": size(again["record"]) - size(sent["record"]),
    }


def _run_bytes(scale: Mapping[str, Any]) -> float:
    """Bytes per clinic and run of the numbers and the reasons."""
    ledger = scale["ledger"]
    clinics = ledger["run_clinic"]["rows"]
    names = ("run_clinic", "run_decision")
    return float(sum(ledger[name]["table_bytes"] + ledger[name]["index_bytes"] for name in names) / clinics)


def _ledger_gb(plan: Plan, record: Mapping[str, float], daily: float, per_clinic: float) -> float:
    records = (plan.eligible + 365 * daily) * record["record"]
    batches = (plan.eligible + 365 * (daily + CHANGED * plan.eligible)) * record["batch"]
    return (records + batches + KEPT_DAYS * per_clinic * CLINICS) / 1e9


def page() -> str:
    """Return docs/capacity.md as the figures that are kept say it."""
    scale, compared = (json.loads(kept.read_text(encoding="utf-8")) for kept in (OUTPUT, COMPARED))
    looks = Measured(**json.loads(LOOKED.read_text(encoding="utf-8")))
    return render(measured(DOCUMENT.read_text(encoding="utf-8"), scale, compared), looks)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether the page is what the figures say")
    options = parser.parse_args(arguments)
    text = page()
    if options.check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("docs/capacity.md is not what the figures say: run `python -m bench.capacity`.", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"Written to {PAGE.relative_to(PROJECT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
