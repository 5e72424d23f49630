"""Write the documents that are made from code: ``python scripts/generate_docs.py [--check]``, also as ``make docs``.

``docs/DAGS.md`` comes from the DAGs as Airflow reads them, the tables of reason codes in ``docs/data-contract.md`` from
the domain. ``--check`` writes nothing and ends with 1 when one of them is not what the code says. It takes no database.
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
        lines += _table(("name", "default", "may be", "meaning"), _parameters(dag))
        lines += ["", "### Tasks", ""]
        lines += _table(("task", "after", "does", "trigger rule", "retries"), _tasks(dag))
    return "\n".join(lines) + "\n"


def _settings(dag: Any) -> list[tuple[str, str]]:
    return [
        ("schedule", f"`{dag.timetable.expression}`, {dag.timetable.timezone}"),
        ("catch-up", "yes" if dag.catchup else "no"),
        ("runs at the same time", str(dag.max_active_runs)),
        ("owner", dag.owner),
        ("tags", ", ".join(sorted(dag.tags))),
    ]


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
    before = {task_id: set(task.upstream_task_ids) for task_id, task in dag.task_dict.items()}
    ordered = TopologicalSorter({task_id: sorted(before[task_id]) for task_id in sorted(before)}).static_order()
    rows = []
    for task_id in ordered:
        task = dag.task_dict[task_id]
        each = " (for each shard)" if task.get_closest_mapped_task_group() else ""
        does = getattr(task, "python_callable", type(task)).__doc__ or ""
        does = " ".join(does.strip().split("\n\n")[0].split())
        outlets = "".join(f" Adds an event to the asset `{outlet.name}`." for outlet in task.outlets)
        after = ", ".join(f"`{name}`" for name in _direct(before, task_id)) or "–"
        kind = "teardown" if task.is_teardown else str(task.trigger_rule.value)
        rows.append((f"`{task_id}`{each}", after, does + outlets, kind, str(task.retries)))
    return rows


def _direct(before: dict[str, set[str]], task_id: str) -> list[str]:
    """Return the tasks right before this one, without those that are before one of the others as well."""

    def ancestors(name: str) -> set[str]:
        return before[name].union(*(ancestors(upper) for upper in before[name]))

    return sorted(before[task_id] - set().union(*(ancestors(upper) for upper in before[task_id])))


# Reason codes


def reasons_text() -> str:
    """Return the tables of reason codes: of records, of clinics, of the last look."""
    from medflex.domain.access import ClosedReason
    from medflex.domain.eligibility import ALL_RULES
    from medflex.domain.last_look import Turned
    from medflex.domain.reasons import REASONS, WITHHOLDING

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
    lines += ["Any code by which a record is withheld (the first table), or:", ""]
    lines += _table(("code", "meaning"), [(f"`{reason.value}`", reason.description) for reason in Turned])
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
