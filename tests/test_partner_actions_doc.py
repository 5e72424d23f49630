"""docs/partner-actions.md names exactly the rulings there are, with their codes, in the order of the code; and
docs/data-contract.md the rights that carrying them out takes."""

from __future__ import annotations

import inspect
import re

from medflex.airflow.acting import Actor
from medflex.airflow.hooks.medlock_actions import LOCK_SECONDS
from medflex.domain import partner_actions
from medflex.domain.partner_actions import KEPT_DAYS, LONG_TRANSACTION, ActionType, Ruling
from scripts.generate_docs import DOCS

TEXT = (DOCS / "partner-actions.md").read_text()
HEAD, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in re.findall(r"^\| (?:code|\d{3}) \|.*\|$", TEXT, flags=re.MULTILINE)
]


def cells() -> dict[Ruling, set[ActionType]]:
    """Return for each ruling of the table which types of actions can get it, in the table's order."""
    columns = {ActionType(name): place for place, name in enumerate(HEAD) if name in list(ActionType)}
    return {
        Ruling(cells[1].strip("`")): {type_ for type_, place in columns.items() if cells[place] != "–"}
        for cells in ROWS
    }


def test_the_table_has_each_ruling_once_with_its_code() -> None:
    assert HEAD[:2] == ["code", "reason"]
    assert HEAD[2:-1] == list(ActionType)
    named = [(row[1].strip("`"), int(row[0])) for row in ROWS]
    assert dict(named) == {ruling.value: ruling.status_code for ruling in Ruling}
    assert len(named) == len(Ruling)
    assert all(len(row) == len(HEAD) and row[-1] for row in ROWS)


def test_the_table_is_in_the_order_in_which_the_code_asks() -> None:
    table = list(cells())
    asked = [
        [
            Ruling[name]
            for name in dict.fromkeys(re.findall(r"Ruling\.([A-Z_]+)", inspect.getsource(function)))
            if name != "DONE"
        ]
        for function in (Actor._rule, partner_actions.rule, partner_actions._rule_version, partner_actions.rule_time)
    ]
    for rulings in asked:
        assert rulings == sorted(rulings, key=table.index)
    outer, inner, version, time = asked
    assert outer[:3] + inner + version == table[: 3 + len(inner) + len(version)]
    assert [Ruling.NO_SUCH_TIME, *time, Ruling.DONE] == table[3 + len(inner) + len(version) :]


def test_whatever_is_404_reads_alike_and_no_sentence_has_a_place_for_a_value() -> None:
    assert len({ruling.detail for ruling in Ruling if ruling.status_code == 404}) == 1
    assert {ruling.detail for ruling in Ruling if ruling.status_code == 204} == {""}
    for ruling in Ruling:
        assert not re.search(r"[{}%]", ruling.detail), ruling
        assert ruling.description.endswith("."), ruling
    # What somebody refused, who is shared with whom, and what clinics note down is told to nobody outside.
    assert not re.search(r"refus|patient has|partner|clinic", " ".join(r.detail for r in Ruling), re.IGNORECASE)


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"more than {KEPT_DAYS} days ago" in TEXT
    assert LONG_TRANSACTION.total_seconds() == 3600
    assert "within an hour before that copy was read" in TEXT
    assert LOCK_SECONDS == 3
    assert "waits up to three seconds" in TEXT


def test_the_rights_in_the_data_contract_are_those_with_which_all_is_tested() -> None:
    (told,) = re.findall(r"```sql\n(GRANT [^`]*?)```", (DOCS / "data-contract.md").read_text())
    schema = re.sub(r"--.*", "", (DOCS.parent / "sandbox" / "medlock" / "schema.sql").read_text())
    statements = [statement.split() for statement in schema.split(";")]
    granted = [words for words in statements if words[:1] == ["GRANT"] and words[-1] == "medlock_actions"]
    assert granted == [words for words in map(str.split, told.split(";")) if words]
    assert len(granted) == 4
