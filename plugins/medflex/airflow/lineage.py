"""What the tasks read and write, for lineage: the inlets and outlets that OpenLineage tells.

Datasets have logical names: the connection in the place of a host, so that no address or log-in leaves and the names
stay when a database moves. A ``Table`` is no asset: it starts no DAG and leaves no event behind. Airflow's connections
say which database is meant.
"""

from __future__ import annotations

from airflow.providers.common.compat.lineage.entities import Table


def _medlock(name: str, what: str) -> Table:
    return Table(cluster="postgres://medlock_db", database="medlock", name=name, description=what)


def _ledger(name: str) -> Table:
    return Table(cluster="postgres://medflex_ledger", database="ledger", name=name)


def _staged(name: str, what: str) -> Table:
    return Table(cluster="staging://medflex", database="transfer", name=name, description=what)


def _medflex(name: str, what: str) -> Table:
    return Table(cluster="https://medflex_api", database="api", name=name, description=what)


_PARTNERS = [
    _medlock("clinic_partner", "Which partners a clinic is linked with."),
    _medlock("partner", "The partner services."),
]
_APPOINTMENT = _medlock("appointment", "Appointments; who is meant by an id is personal data.")
_JOURNAL = _medlock("partner_action", "The journal of what partners did; without names.")

PERMISSIONS = [
    _medlock("clinic", "Clinics."),
    _medlock("medflex_access", "The access switch of each clinic."),
    _medlock("staff", "Who may turn the switch; of them only the role is read."),
    *_PARTNERS,
]
"""What says whether a clinic shares, and with whom."""
SOURCE = [
    *PERMISSIONS,
    _APPOINTMENT,
    _medlock("patient", "Personal data: first name, patronymic, phone and what the patient refused are read."),
    _medlock("doctor", "Doctors, and whether sending is banned for them."),
]
"""All that is read to share appointments."""
SCHEDULE = _medlock("doctor_schedule", "When doctors see patients.")
MESSAGES = [
    *_PARTNERS,
    _medlock("smart_care_scenario", "Which messages a clinic sends itself."),
    _medlock("smart_care_message", "That a message went out; without its text."),
]

STAGED_ROWS = _staged("extract", "Personal data; removed when the run ends.")
STAGED_PAYLOAD = _staged("eligible", "Personal data; removed when the run ends.")
STAGED_PLAN = _staged("plan", "Which eligible records are to be sent; removed when the run ends.")

SHOWN = _medflex("appointments", "What partners see. Personal data: first name, patronymic, phone.")
ACTIONS = _medflex("actions", "What partners ask for, and what they were answered.")

RUN = _ledger("run")
NUMBERS = _ledger("run_clinic")
VALIDATIONS = _ledger("run_validation")
RECORDS = _ledger("record")
REVOCATIONS = _ledger("revocation")
HOLDS = _ledger("hold")
FINDINGS = _ledger("finding")
DECISIONS = _ledger("partner_action")

WRITTEN = [SHOWN, _ledger("batch"), RECORDS]
"""What sending and withdrawing write."""
WITHDRAWING = [*SOURCE, RECORDS, REVOCATIONS]
WITHDRAWN = [*WRITTEN, REVOCATIONS, HOLDS]
ACTED_ON = [_APPOINTMENT, _JOURNAL, DECISIONS]
"""What a partner's action changes."""
