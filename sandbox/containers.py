"""The demo's data where everything runs in containers: ``python -m sandbox.containers``.

Fills the demo Medlock when nobody has put anything in yet, and tells the Medflex sandbox which clinics there are.

    DEMO_MEDLOCK_URI    the database of its owner, medlock_owner
    DEMO_CONTROL_URL    the sandbox's control port, which it serves on loopback only: run it in the same network
    DEMO_APPOINTMENTS, DEMO_CLINICS, DEMO_SEED    what is made up (20000, 21, 1)
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Mapping

import psycopg

from sandbox.medflex.control import Control, ControlError
from sandbox.medlock.generate import add_schedules, clinic_offsets, create_schema, generate, is_empty


def fill(environment: Mapping[str, str]) -> str:
    """Do it; return one sentence about it. Raises ``KeyError``, ``ValueError``, ``ControlError``, ``psycopg.Error``."""
    uri, control_url = environment["DEMO_MEDLOCK_URI"], environment["DEMO_CONTROL_URL"]
    appointments, clinics, seed = (
        int(environment.get(f"DEMO_{name}") or default)
        for name, default in (("APPOINTMENTS", 20_000), ("CLINICS", 21), ("SEED", 1))
    )
    create_schema(uri)
    if is_empty(uri):
        generate(uri, appointments=appointments, clinics=clinics, seed=seed)
        done = f"Medlock has {appointments:,} made-up appointments now"
    else:
        add_schedules(uri, seed=seed)
        done = "Medlock keeps what it has"
    with Control(control_url) as control:
        known = control.put_clinics(clinic_offsets(uri, dt.datetime.now(dt.UTC)))
    return f"{done}; Medflex knows {known} clinics."


def main() -> int:
    try:
        print(fill(os.environ))
    except KeyError as error:
        print(f"The variable {error} is not set.", file=sys.stderr)
    except (ControlError, ValueError) as error:
        print(error, file=sys.stderr)
    except psycopg.Error as error:
        # Not its text, which can quote rows.
        print(f"The demo Medlock cannot be filled ({type(error).__name__}).", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
