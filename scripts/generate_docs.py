"""Write the documents that are made from code: ``python scripts/generate_docs.py [--check]``, also as ``make docs``.

``docs/DAGS.md`` comes from the DAGs as Airflow reads them, the tables of codes in ``docs/data-contract.md`` from the
domain. ``--check`` writes nothing and ends with 1 when one of them is not what the code says. It takes no database.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BEGIN = "<!-- Made by scripts/generate_docs.py from the code: change that, then run `make docs`. -->"
END = "<!-- End of what is made from the code. -->"


OPERATORS = {
    "EmptyOperator": "Nothing: a point that others wait for, or that shows how they ended.",
    "HITLOperator": "Ask a person, and wait for the answer without a worker.",
    "TriggerDagRunOperator": "Start a run of `{dag}`.",
}
"""What Airflow's own operators do here."""
BEHIND = {"medflex_go_on_alias": "medflex_sweep` or `medflex_consent"}
"""Aliases through which tasks add events to more than one asset."""


class DocumentError(RuntimeError):
    """A document cannot be made; one sentence that says why and what to do."""


def main(arguments: Sequence[str] | None = None, docs: Path = DOCS) -> int:
    """Write, or check, the documents below ``docs``; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/generate_docs.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a document is stale")
    options = parser.parse_args(arguments)
    try:
        stale = {path: text for path, text in documents(docs).items() if not path.exists() or _read(path) != text}
    except DocumentError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    names = ", ".join(f"{docs.name}/{path.relative_to(docs)}" for path in stale)
    if options.check:
        if stale:
            sys.stderr.write(f"Not what the code says any more: {names}; run `make docs` and commit the result.\n")
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    print(f"Written: {names}." if stale else "Nothing had changed.")
    return 0


def documents(docs: Path = DOCS) -> dict[Path, str]:
    """Return what each document should say, by its path."""
    contract = docs / "data-contract.md"
    return {docs / "DAGS.md": dags_text(load_dags()), contract: with_generated(contract, reasons_text())}


# DAGs


def load_dags() -> list[Any]:
    """Return the DAGs of ``dags/`` as Airflow reads them, by id. Raises ``DocumentError`` when one cannot be read."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(ROOT / "dags")
    if bag.import_errors or not bag.dags:
        files = ", ".join(sorted(Path(name).name for name in bag.import_errors)) or "the folder dags"
        raise DocumentError(f"Airflow finds no DAG in {files}: import it with python to see why.")
    return [bag.dags[dag_id] for dag_id in sorted(bag.dags)]


def dags_text(dags: Iterable[Any]) -> str:
    """Return DAGS.md: of each DAG its own description, when it runs, its parameters and its tasks."""
    dags = list(dags)
    lines = ["# DAGs", "", BEGIN, ""]
    lines += [f"- [`{dag.dag_id}`](#{dag.dag_id}): {dag.description}" for dag in dags]
    for dag in dags:
        lines += ["", f"## {dag.dag_id}", "", dag.doc_md.strip(), "", "### When it runs", ""]
        lines += _table(("setting", "value"), _settings(dag))
        lines += ["", "### Parameters", ""]
        lines += _table(("name", "default", "may be", "meaning"), _parameters(dag)) if dag.params else ["None."]
        lines += ["", "### Tasks", ""]
        lines += _table(("task", "after", "does", "trigger rule", "retries"), _tasks(dag))
    return "\n".join(lines) + "\n"


def _settings(dag: Any) -> list[tuple[str, str]]:
    return [
        ("schedule", _schedule(dag.timetable)),
        ("catch-up", "yes" if dag.catchup else "no"),
        ("runs at the same time", str(dag.max_active_runs)),
        ("owner", dag.owner),
        ("tags", ", ".join(sorted(dag.tags))),
    ]


def _schedule(timetable: Any) -> str:
    """Return when a timetable starts runs: the clock, events on assets, or both."""
    clock = getattr(timetable, "timetable", timetable)
    parts = [f"`{clock.expression}`, {clock.timezone}"] if hasattr(clock, "expression") else []
    assets = [f"`{asset.name}`" for asset in getattr(timetable.asset_condition, "objects", ())]
    parts += [f"an event on the asset {' and '.join(assets)}"] if assets else []
    return "; ".join(parts)


def _parameters(dag: Any) -> list[tuple[str, str, str, str]]:
    rows = []
    for name in dag.params:
        param = dag.params.get_param(name)
        schema = param.schema
        kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
        allowed = [f"`{value}`" for value in schema.get("enum", [])] or kinds
        default = "empty" if param.value is None else f"`{param.value}`"
        rows.append((f"`{name}`", default, ", ".join(allowed), param.description or ""))
    return rows


def _tasks(dag: Any) -> list[tuple[str, str, str, str, str]]:
    from airflow.sdk import Asset, AssetAlias

    before = {task_id: set(task.upstream_task_ids) for task_id, task in dag.task_dict.items()}
    ordered = TopologicalSorter({task_id: sorted(before[task_id]) for task_id in sorted(before)}).static_order()
    rows = []
    for task_id in ordered:
        task = dag.task_dict[task_id]
        outlets = "".join(
            # An alias has no address of its own: the task decides whether there is an event.
            f" {'Adds' if hasattr(outlet, 'uri') else 'May add'} an event to the asset `{_asset(outlet)}`."
            for outlet in task.outlets
            # Others are there for lineage and leave no event.
            if isinstance(outlet, Asset | AssetAlias)
        )
        after = ", ".join(f"`{name}`" for name in _direct(before, task_id)) or "–"
        kind = "teardown" if task.is_teardown else str(task.trigger_rule.value)
        rows.append((f"`{task_id}`{_each(task)}", after, _does(task) + outlets, kind, str(task.retries)))
    return rows


def _does(task: Any) -> str:
    """Return the first sentences of a task function's description; of an operator, what it is here for."""
    function = getattr(task, "python_callable", None) or getattr(task, "partial_kwargs", {}).get("python_callable")
    if function is not None:
        return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
    kind = task.task_type
    does = OPERATORS.get(kind) or (type(task).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(does.split()).format(dag=getattr(task, "trigger_dag_id", ""))


def _each(task: Any) -> str:
    group = task.get_closest_mapped_task_group()
    if group is not None:
        return f" (for each {group.group_id})"
    expanded = getattr(task, "op_kwargs_expand_input", None)
    return f" (for each {', '.join(expanded.value)})" if expanded is not None else ""


def _asset(outlet: Any) -> str:
    """Return the asset's name, or the names of those that a task adds an event to through an alias."""
    name = str(outlet.name)
    return BEHIND.get(name, name.removesuffix("_alias"))


def _direct(before: dict[str, set[str]], task_id: str) -> list[str]:
    """Return the tasks right before this one, without those that are before one of the others as well."""

    def ancestors(name: str) -> set[str]:
        return before[name].union(*(ancestors(upper) for upper in before[name]))

    return sorted(before[task_id] - set().union(*(ancestors(upper) for upper in before[task_id])))


# Reason codes


def reasons_text() -> str:
    """Return the tables of codes: of records, of clinics, of the last look, of withdrawals, of reconciliation."""
    from medflex.domain.access import ClosedReason
    from medflex.domain.drift import Drift
    from medflex.domain.eligibility import ALL_RULES
    from medflex.domain.last_look import Turned
    from medflex.domain.reasons import REASONS, WITHHOLDING
    from medflex.domain.revocations import ABSENCE, Revoked, describe

    lines = ["### Why a record is not sent", ""]
    lines += _table(
        ("code", "the record is", "rule", "meaning"),
        [
            (
                f"`{reason.value}`",
                "withheld" if reason in WITHHOLDING else "quarantined",
                (ALL_RULES[reason].__doc__ or "").split(":")[0],
                reason.description,
            )
            for reason in REASONS
        ],
    )
    lines += ["", "### Why a clinic is closed", ""]
    lines += _table(("code", "meaning"), [(f"`{reason.value}`", reason.description) for reason in ClosedReason])
    lines += ["", "### Why a record is dropped at the last look", ""]
    lines += [
        "Any code by which a record is withheld (the first table), `phone_missing` and `name_missing` (erased since it",
        "was read), or:",
        "",
    ]
    lines += _table(("code", "meaning"), [(f"`{reason.value}`", reason.description) for reason in Turned])
    lines += ["", "### Why a record is withdrawn", ""]
    lines += [
        "`explicit`: somebody said no, or a permission is missing; withdrawn at once, at any volume. `absence`: a row",
        "is gone, or its data is in doubt; when these are too many,",
        "[a person is asked](architecture.md#the-asymmetric-guard).",
    ]
    lines += ["Where several hold, the first explicit one is told.", ""]
    # What a late copy is dropped for is no reason to take anything back.
    codes = [*REASONS, *(code for code in Turned if code not in (*REASONS, Turned.OVERTAKEN)), *Revoked]
    lines += _table(
        ("code", "counts as", "meaning"),
        [(f"`{code.value}`", "absence" if code in ABSENCE else "explicit", describe(code)) for code in codes],
    )
    lines += ["", "### What reconciliation finds", ""]
    lines += _table(("code", "meaning, and what is done"), [(f"`{drift.value}`", drift.description) for drift in Drift])
    return "\n".join(lines)


def with_generated(path: Path, text: str) -> str:
    """Return the document with ``text`` between its two marks. Raises ``DocumentError`` when it has them not."""
    head, begin, rest = _read(path).partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DocumentError(f"{path.name} lacks the two marks between which generated text stands: restore them.")
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}"


# Helpers


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _alone() -> int:
    """Run as a script: without the settings, the database or the home folder of any Airflow that is installed here."""
    with tempfile.TemporaryDirectory(prefix="medflex-docs-") as home:
        # Airflow reads its settings when it is first imported.
        os.environ["AIRFLOW_HOME"] = home
        os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"
        os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
        sys.path.insert(0, str(ROOT / "plugins"))
        return main()


if __name__ == "__main__":
    sys.exit(_alone())
