"""The pages *Clinics* and *One clinic*, and the access switch, which the head of the clinic alone can turn (R2)."""

from __future__ import annotations

import json
import logging
from collections import Counter
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

from airflow.models.log import Log
from airflow.utils.session import create_session
from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError

from medflex.airflow import connections
from medflex.airflow.hooks.medlock_switch import turn_switch
from medflex.domain.access import HOLD
from medflex.errors import ConfigurationError, MedflexPipelineError, NotHeadError, SwitchTurnedError
from medflex.ledger.clinic_overview import LastRun
from medflex.ledger.overview import TIMEOUT_SECONDS
from medflex.ledger.store import Ledger
from medflex.ledger.switches import Switch
from medflex.ui.charts import stacked_days
from medflex.ui.directory import (
    DIRECTORY,
    PAGE_SIZE,
    SORTS,
    STATES,
    Clinic,
    Listing,
    chosen,
    gone_clinic,
    read_clinics,
)
from medflex.ui.security import check_form_token, form_token, require_same_site
from medflex.ui.view import View, view_of

log = logging.getLogger(__name__)

router = APIRouter()

Reader = Annotated[View, Depends(view_of)]
Target = Literal["on", "off"]
HISTORY_DAYS = 30
JUST_TURNED = timedelta(minutes=5)
"""So long is whoever has turned a switch told so."""


# -- pages ---------------------------------------------------------------------------------------------------------


@router.get("/")
def home(view: Reader) -> Response:
    """Lead to the clinics."""
    return RedirectResponse(view.url("clinics_page"))


@router.get("/clinics")
def clinics_page(
    view: Reader,
    q: Annotated[str, Query(max_length=200)] = "",
    state: Annotated[str, Query(pattern=f"^({'|'.join(STATES)})?$")] = "",
    overlap: bool = False,
    sort: Annotated[str, Query(pattern=f"^({'|'.join(SORTS)})$")] = "name",
    order: Literal["asc", "desc"] = "asc",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """All clinics: search, filter, sort, one page of them.

    By it a head comes to the switch: it is shown also while the ledger is away, without last runs and alerts.
    """
    everyone, problem = DIRECTORY.clinics(lambda: _read(view))
    alerts = []
    # Asked once more, a ledger that does not answer would hold the page up once more.
    if problem is None:
        try:
            with view.overview() as ledger:
                alerts = ledger.open_alerts()
        except MedflexPipelineError as error:
            problem = _told(error)
    found = chosen(everyone, text=q, state=state, overlap=overlap, sort=sort, descending=order == "desc")
    pages = max(1, -(-len(found) // PAGE_SIZE))
    page = min(page, pages)
    counts = {name: sum(clinic.state == name for clinic in everyone) for name in STATES[:3]}
    counts["attention"] = sum(clinic.needs_attention for clinic in everyone)
    asked = {"q": q or None, "state": state or None, "overlap": "true" if overlap else None}
    return view.page(
        "clinics.html",
        section="clinics_page",
        alerts=alerts,
        problem=problem,
        clinics=found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE],
        counts=counts,
        total=len(everyone),
        found=len(found),
        asked=asked,
        states=STATES,
        sort=sort,
        order=order,
        page=page,
        pages=pages,
        first=(page - 1) * PAGE_SIZE + 1,
    )


@router.get("/clinics/{clinic_id}")
def clinic_page(clinic_id: int, view: Reader, turned: Target | None = None) -> Response:
    """One clinic: its switch and history, funnel, reasons, records to mend, withdrawals, partner actions.

    The switch is Medlock's alone: it is shown also while the ledger is away, and the head can turn it.
    """
    clinic = _found(view, clinic_id)
    try:
        context = _history(view, clinic_id)
    except MedflexPipelineError as error:
        if clinic is None:
            raise
        context = {"events": [], "problem": _told(error)}
    else:
        if clinic is None and not (context["runs"] or context["has_records"] or context["events"]):
            raise view.not_found("clinic.unknown", id=str(clinic_id))
    is_head = clinic is not None and _is_head(view, clinic_id)
    return view.page(
        "clinic.html",
        section="clinics_page",
        clinic=clinic or gone_clinic(clinic_id),
        is_head=is_head,
        days=HISTORY_DAYS,
        # The address says it to everybody who opens it, whenever that is.
        turned=turned if is_head and clinic is not None and _was_just_turned(view, clinic) else None,
        **context,
    )


def _was_just_turned(view: View, clinic: Clinic) -> bool:
    # Medlock's clock may be ahead.
    return clinic.changed_at is not None and abs(view.now - clinic.changed_at) < JUST_TURNED


def _history(view: View, clinic_id: int) -> dict[str, Any]:
    """What the ledger has of a clinic."""
    since = view.now - timedelta(days=HISTORY_DAYS)
    with view.overview() as ledger:
        runs = ledger.clinic_runs(clinic_id, since)
        newest = next((run for run in runs if run["extracted"] is not None and run["is_of_its_day"]), None)
        events, turns = ledger.switch_events(clinic_id)
        return {
            "problem": None,
            "runs": runs,
            "newest": newest,
            "reasons_chart": _reasons_chart(view, runs, ledger.clinic_reasons(clinic_id, since)),
            "quarantined": ledger.clinic_held_back(newest["run_key"], clinic_id) if newest else [],
            "rejected": ledger.clinic_rejected(clinic_id),
            "has_records": ledger.has_records(clinic_id),
            "shown": ledger.live_count(clinic_id),
            "withdrawals": ledger.clinic_withdrawals(clinic_id),
            "revocations": ledger.clinic_open_revocations(clinic_id),
            "actions": ledger.clinic_actions(clinic_id),
            "events": events,
            "turns": turns,
        }


def _reasons_chart(view: View, runs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Markup | None:
    """Return a picture of reasons over the reader's days, by the newest run of each; ``None`` without any reason.

    A run of an older day is none of the day on which it ran.
    """
    newest: dict[date, dict[str, Any]] = {}
    for run in runs:  # the newest first
        if run["extracted"] is not None and run["is_of_its_day"]:
            newest.setdefault(view.speech.local(run["started_at"]).date(), run)
    counts: dict[int, Counter[str]] = {run["run_key"]: Counter() for run in newest.values()}
    for row in rows:
        if row["run_key"] in counts:
            # A reason of quarantine has a second row where it holds for records that are withheld anyway.
            counts[row["run_key"]][row["code"]] += row["records"]
    names = {code: str(view.reason(code)) for found in counts.values() for code in found}
    shown = [(view.speech.day(run["started_at"]), counts[run["run_key"]]) for _, run in sorted(newest.items())]
    return stacked_days(view.speech, str(view.speech.text("clinic.why_caption")), shown, names) if names else None


# -- the switch ------------------------------------------------------------------------------------------------------


@router.get("/clinics/{clinic_id}/switch")
def switch_page(clinic_id: int, to: Target, view: Reader) -> Response:
    """Ask the head whether the switch is to be turned, and say what that does: what goes to whom, and from when on."""
    clinic = _clinic(view, clinic_id)
    _require_head(view, clinic_id)
    return _confirmation(view, clinic, to)


def _confirmation(
    view: View, clinic: Clinic, to: Target, problem: str | None = None, status_code: int = 200
) -> Response:
    shown = None
    try:
        with view.overview() as ledger:
            shown = ledger.live_count(clinic.clinic_id)
    except MedflexPipelineError as error:
        # Who wants to stop the sharing must not wait for our own database.
        _told(error)
    return view.page(
        "switch.html",
        status_code,
        section="clinics_page",
        clinic=clinic,
        to=to,
        possible=_changes(clinic, to),
        problem=problem,
        shown=shown,
        starts_at=view.now + HOLD,
        token=form_token(view.user, **_decision(clinic, to)),
    )


@router.post("/clinics/{clinic_id}/switch", dependencies=[Depends(require_same_site)])
def turn(
    clinic_id: int, request: Request, view: Reader, to: Annotated[Target, Form()], token: Annotated[str, Form()]
) -> Response:
    """Turn the switch for the head of the clinic, write it down, and lead back to the clinic."""
    clinic = _clinic(view, clinic_id)
    _require_head(view, clinic_id)
    if not _changes(clinic, to):
        return _confirmation(view, clinic, to, status_code=409)
    check_form_token(token, view.user, **_decision(clinic, to))
    try:
        turned = turn_switch(
            _switch_connection(),
            clinic_id=clinic_id,
            login=view.user.get_name(),
            enabled=to == "on",
            seen_enabled=clinic.enabled,
            seen_changed_at=clinic.changed_at,
        )
    except SwitchTurnedError:
        return _confirmation(view, _clinic(view, clinic_id), to, view.speech.text("switch.turned_meanwhile"), 409)
    DIRECTORY.forget()
    _write_down(view, clinic_id, to, turned.changed_at, turned.role)
    return RedirectResponse(view.url("clinic_page", clinic_id=clinic_id, turned=to), 303)


def _decision(clinic: Clinic, to: Target) -> dict[str, Any]:
    """What a form's token is for: turning this switch from how it stood when the form was shown."""
    stood = [clinic.enabled, clinic.changed_at.isoformat() if clinic.changed_at else None]
    return {"clinic_id": clinic.clinic_id, "to": to, "stood": stood}


def _changes(clinic: Clinic, to: Target) -> bool:
    """Tell whether turning does anything. On again where it counts as on would start the 24 hours anew (R3)."""
    return not clinic.is_on if to == "on" else clinic.enabled is not False


def _write_down(view: View, clinic_id: int, to: Target, changed_at: datetime, role: str) -> None:
    """Note in the ledger and in Airflow's audit log that the switch was turned.

    It is turned by then, and no page may say that it was not: a note that fails is told in the log. The next run notes
    the turn in the ledger as well.
    """
    try:
        conninfo = connections.postgres_conninfo(connections.LEDGER)
        with Ledger(conninfo, statement_seconds=TIMEOUT_SECONDS) as ledger:
            ledger.note_switches([Switch(clinic_id, to == "on", changed_at, role)], via="page")
    except MedflexPipelineError as error:
        log.warning("The switch of clinic %d was turned %s, but not noted in the ledger: %s", clinic_id, to, error)
    extra = json.dumps({"clinic_id": clinic_id, "to": to, "changed_at": changed_at.isoformat()})
    try:
        with create_session() as session:
            session.add(Log(event=f"medflex_switch_{to}", owner=view.user.get_name(), extra=extra))
    except SQLAlchemyError as error:
        what = type(error).__name__
        log.error("The switch of clinic %d was turned %s, but not noted in the audit log (%s).", clinic_id, to, what)  # noqa: TRY400 - the error quotes the statement


def _require_head(view: View, clinic_id: int) -> None:
    if not _is_head(view, clinic_id):
        raise NotHeadError(f"Only the head of clinic {clinic_id} can turn its switch.")


def _is_head(view: View, clinic_id: int) -> bool:
    with view.medlock() as medlock:
        return clinic_id in medlock.headed_clinics(view.user.get_name())


def _switch_connection() -> str:
    try:
        return connections.postgres_conninfo(connections.MEDLOCK_SWITCH)
    except ConfigurationError:
        raise ConfigurationError(
            "The Airflow connection medlock_switch does not exist, so switches can be turned in Medlock only."
        ) from None


# -- reading ---------------------------------------------------------------------------------------------------------


def _read(view: View) -> Listing:
    problems: list[str] = []

    def last_runs() -> dict[int, LastRun]:
        try:
            with view.overview() as ledger:
                return ledger.last_runs()
        except MedflexPipelineError as error:
            problems.append(_told(error))
            return {}

    with view.medlock() as medlock:
        clinics = read_clinics(medlock, last_runs, view.now)
    return Listing(clinics, problems[0] if problems else None)


def _told(error: MedflexPipelineError) -> str:
    """Return the sentence about the ledger that a page goes on without, and log it."""
    log.warning("%s: %s", type(error).__name__, error)
    return str(error)


def _clinic(view: View, clinic_id: int) -> Clinic:
    """Return one clinic as it is in Medlock now, without its last run; 404 when there is none."""
    found = _found(view, clinic_id)
    if found is None:
        raise view.not_found("clinic.unknown", id=str(clinic_id))
    return found


def _found(view: View, clinic_id: int) -> Clinic | None:
    if not 0 < clinic_id < 2**63:
        raise view.not_found("clinic.unknown", id=str(clinic_id))
    with view.medlock() as medlock:
        return next(iter(read_clinics(medlock, dict, view.now, [clinic_id])), None)
