"""The suites as data: complete, fixed, lazy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from medflex.domain.payload import PAYLOAD_COLUMNS
from medflex.domain.reasons import Reason
from medflex.quality import gx, suites, validation
from medflex.quality.results import Severity
from medflex.quality.suites import Rule

PLUGINS = Path(suites.__file__).parents[2]
ALL = [(name, rule) for name, suite in suites.SUITES.items() for rule in suite()]
#: Their results quote values whatever the result format says (most common, distinct), or a statistic of the values.
ECHOING = ("distinct", "most_common", "quantile", "_max_", "_min_", "_mean_", "_median_", "_sum_", "query", "_rows")


def test_importing_the_package_does_not_import_great_expectations() -> None:
    code = (
        "import sys, medflex.quality.suites, medflex.quality.results, medflex.quality.validation;"
        "import medflex.quality.report;"
        "sys.exit(any(name.split('.')[0] == 'great_expectations' for name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PLUGINS)}, check=False)
    assert run.returncode == 0


def test_great_expectations_comes_without_what_no_rule_uses() -> None:
    """Statistics and plots: a third of the seconds and half of the memory of its import. They are there when asked."""
    code = (
        "import sys; from medflex.quality.gx import import_great_expectations as load; load();"
        "assert not {'scipy.stats._stats_py', 'altair.vegalite'} & set(sys.modules);"
        "assert not any(type(one).__name__ == '_LazyFinder' for one in sys.meta_path);"
        "import altair; from scipy import stats; stats.norm.cdf(0); altair.Chart"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PLUGINS)}, check=False)
    assert run.returncode == 0


def test_white_space_is_what_unicode_calls_so_and_zero_width_characters() -> None:
    characters = [chr(number) for number in range(sys.maxunicode + 1) if not 0xD800 <= number < 0xE000]
    zero_width = {"\u180e", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff"}
    spaces = [one for one in characters if one.isspace() or one in zero_width]
    by_python = [one for one in characters if re.fullmatch(suites._SPACE, one)]
    texts = pd.Series(characters, dtype="str")
    by_pandas = texts[texts.str.contains(suites._SPACE)].tolist()
    assert spaces == by_python == by_pandas


@pytest.mark.parametrize(("suite", "rule"), [(s, r) for s, r in ALL if "regex" in r.kwargs])
def test_no_pattern_is_matched_row_by_row_in_python(suite: str, rule: Rule) -> None:
    r"""What makes pandas leave RE2, which is ten times faster: \u, \s, look-around, back references."""
    assert not re.search(r"\\[uUNsSwWbB]|\(\?[=!<]|\\[1-9]", rule.kwargs["regex"]), suite


@pytest.mark.parametrize("suite", suites.SUITES)
def test_names_are_unique_within_a_suite(suite: str) -> None:
    names = [rule.name for rule in suites.SUITES[suite]()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("suite", "rule"), ALL, ids=[f"{suite}-{rule.name}" for suite, rule in ALL])
def test_arguments_are_constants_and_nothing_echoes_values(suite: str, rule: Rule) -> None:
    assert not any(word in rule.expectation_type for word in ECHOING), suite
    assert "row_condition" not in rule.kwargs
    assert json.loads(json.dumps(dict(rule.kwargs))) == dict(rule.kwargs), "only plain constants are arguments"


@pytest.mark.parametrize("suite", suites.SUITES)
def test_a_suite_takes_no_argument_and_is_the_same_each_time(suite: str) -> None:
    build = suites.SUITES[suite]
    assert build.__code__.co_argcount == 0
    assert build() == build()


def test_each_rule_is_an_expectation_that_great_expectations_knows() -> None:
    gx.import_great_expectations()
    for _, rule in ALL:
        expectation = validation.to_expectation(rule)
        assert expectation.expectation_type == rule.expectation_type
        assert expectation.severity == rule.severity.value


def test_everything_outgoing_is_critical() -> None:
    assert {rule.severity for rule in suites.outgoing_suite()} == {Severity.CRITICAL}


def test_r5_the_outgoing_columns_are_those_of_the_payload_and_no_more_of_the_patient() -> None:
    assert tuple(suites.PAYLOAD_COLUMNS) == PAYLOAD_COLUMNS
    personal = {"last_name", "birth_date", "sex", "email", "address", "comment", "phone", "full_name"}
    assert not personal & set(suites.OUTGOING_COLUMNS)


def test_the_run_suite_watches_every_reason() -> None:
    names = {rule.name for rule in suites.run_suite()}
    assert names >= {f"{reason.value}_share_steady" for reason in Reason}


def test_the_outgoing_suite_shares_no_code_with_the_filter() -> None:
    code = (
        "import sys, medflex.quality.validation;"
        "sys.exit(any(name in sys.modules for name in ('medflex.domain.eligibility', 'medflex.domain.payload')))"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PLUGINS)}, check=False)
    assert run.returncode == 0
