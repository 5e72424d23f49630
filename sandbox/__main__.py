"""``python -m sandbox``, better known as ``sandbox/ctl``: drives the one-machine stack."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import psycopg

from sandbox.airflow_api import AirflowError
from sandbox.postgres import HOST, PostgresError, binaries
from sandbox.services import ServiceError
from sandbox.stack import DAG_ID, ENDED, PROJECT, SERVICES, Stack, StackError, stack_environment

# Actions wait two minutes for the next run of the DAG, and for the one before to end.
_ANSWER_SECONDS = 180
DATABASES = {"medlock": "medlock_owner", "ledger": "ledger_owner", "airflow": "airflow"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command: Callable[[Stack, argparse.Namespace], int] = options.command
    # SIGTERM as Ctrl-C: what a command has started is stopped either way. Also where Ctrl-C came ignored (nohup, &).
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return command(Stack(say=_say), options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except (AirflowError, PostgresError, ServiceError, StackError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except psycopg.Error as error:
        # Not its text, which can quote rows.
        print(f"A database of the stack failed ({type(error).__name__}): see {Stack().cluster.log}.", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone (`ctl env | head`); keep Python from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"The stack cannot use {error.filename or 'this machine'}: {error.strerror}.", file=sys.stderr)
        return 1


def _interrupt(number: int, frame: object) -> None:
    # Cleaning up takes some seconds; a second Ctrl-C must not leave half of it undone.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, flush=True)


# Commands


def demo(stack: Stack, options: argparse.Namespace) -> int:
    if stack.is_running():
        print(f"The demo is running already, in {stack.folder}.")
        _print_address(stack)
        return 0
    started, began = time.monotonic(), dt.datetime.now(dt.UTC)
    print(f"Starting Postgres, Medlock, Medflex and Airflow in {stack.folder}; the first time takes about a minute.")
    stack.start(appointments=options.appointments, clinics=options.clinics, seed=options.seed)
    try:
        run_id = stack.run_day(None, again=False)
        found = stack.airflow().run(DAG_ID, run_id)
        state, made = str(found["state"]), dt.datetime.fromisoformat(found["queued_at"])
        # One that is still under way is followed, whoever made it.
        is_old = made < began and state in ENDED
        if not is_old:
            print(f"Run {run_id} of {DAG_ID}, by Airflow's scheduler:")
            state = stack.follow(run_id)
    except KeyboardInterrupt:
        print("Stopping what was started …")
        stack.stop()
        raise
    except (AirflowError, ServiceError, StackError):
        # Left up: its UI and logs are what tells why.
        _print_address(stack)
        raise
    if is_old:
        print(f"This demo's run of today was made at {_clock(made)}; its funnel:\n")
    else:
        print(f"Run {run_id}: {state}\n")
    try:
        _print_funnel(stack, run_id)
    except StackError as error:
        print(error)  # a run that failed early has none
    _print_address(stack)
    print(f"\nReady after {time.monotonic() - started:.0f} s. It stays up in the background until `make stop`.")
    return 0 if state == "success" else 1


def start(stack: Stack, options: argparse.Namespace) -> int:
    stack.start(appointments=options.appointments, clinics=options.clinics, seed=options.seed)
    _print_address(stack)
    return 0


def stop(stack: Stack, options: argparse.Namespace) -> int:
    print("Stopped." if stack.stop() else "Nothing was running.")
    return 0


def status(stack: Stack, options: argparse.Namespace) -> int:
    states = stack.states()
    for name, runs in states.items():
        print(f"  {name:<14} {'running' if runs else 'stopped'}")
    if all(states.values()):
        unhealthy = {part: state for part, state in stack.airflow().health().items() if state != "healthy"}
        # Airflow names parts that this stack does not have with an empty state.
        for part, state in unhealthy.items():
            if state != "None":
                print(f"  Airflow says of its {part}: {state}")
        _print_address(stack)
    return 0 if all(states.values()) else 1


def env(stack: Stack, options: argparse.Namespace) -> int:
    _need_stack(stack)
    if options.export:
        environment = stack_environment(stack)
        ours = ("AIRFLOW", "MEDFLEX_", "PYTHONPATH", "GX_")
        for name in sorted(name for name in environment if name.startswith(ours)):
            print(f"export {name}={shlex.quote(environment[name])}")
        return 0
    for database, role in DATABASES.items():
        print(f"{database:<10} {stack.cluster.uri(database, role)}")
    print(f"{'medlock':<10} {stack.cluster.uri('medlock', 'medlock_app')}   (as the product sees it)")
    print(f"{'':<10} {stack.cluster.uri('medlock', 'medlock_actions')}   (as it does what partners ask for)")
    print(f"{'':<10} {stack.cluster.uri('medlock', 'medlock_switch')}   (as it turns access switches)")
    print(f"{'Medflex':<10} {stack.medflex_url}   Authorization: Token {stack.token}")
    print(f"{'':<10} {stack.control_url}   (control port)")
    _print_address(stack)
    return 0


def seed(stack: Stack, options: argparse.Namespace) -> int:
    _need_running(stack)
    with stack.lock():
        stack.seed(appointments=options.appointments, clinics=options.clinics, seed=options.seed)
    return 0


def run(stack: Stack, options: argparse.Namespace) -> int:
    _need_running(stack)
    run_id = stack.run_day(options.day, mode=options.mode, clinic_ids=options.clinic_ids)
    print(f"Run {run_id} of {DAG_ID}")
    if options.no_wait:
        return 0
    state = stack.follow(run_id)
    print(f"Run {run_id}: {state}\n")
    try:
        _print_funnel(stack, run_id)
    except StackError as error:
        print(error)  # a run that failed early has none
    return 0 if state == "success" else 1


def funnel(stack: Stack, options: argparse.Namespace) -> int:
    _need_running(stack)
    _print_funnel(stack, options.run_id)
    return 0


def psql(stack: Stack, options: argparse.Namespace) -> int:
    _need_running(stack)
    role = DATABASES[options.database]
    # Not in the command line, where every user of the machine could read it.
    environment = os.environ | {"PGPASSWORD": stack.cluster.password(role)}
    address = ["-h", HOST, "-p", str(stack.cluster.port), "-U", role, "-d", options.database]
    sys.stdout.flush()
    os.execve(binaries() / "psql", ["psql", *address, *options.arguments], environment)  # noqa: S606


def medflex(stack: Stack, options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from sandbox.medflex.control import Control, ControlError, Match

    _need_running(stack)
    with Control(stack.control_url) as control:
        try:
            match options.what:
                case "on":
                    names = {"path": "path_prefix", "method": "method", "lpu_id": "lpu_id", "record_id": "record_id"}
                    given = {"match": Match(**{name: getattr(options, option) for option, name in names.items()})}
                    own = {"times": options.times, "every": options.every}
                    settings = given | {name: value for name, value in own.items() if value is not None}
                    fault = control.add_fault(options.kind, **settings, **dict(options.settings))
                    print(f"Fault {fault} is on.")
                case "off":
                    if options.fault is None:
                        control.clear_faults()
                    else:
                        control.remove_fault(options.fault)
                    print("Off.")
                case "list":
                    for known in control.faults():
                        print(f"{known['id']}  seen {known['seen']}, fired {known['fired']}  {_told(known['fault'])}")
                case "records":
                    per_clinic: dict[int, int] = {}
                    for lpu_id, _ in control.records():
                        per_clinic[lpu_id] = per_clinic.get(lpu_id, 0) + 1
                    for lpu_id, count in sorted(per_clinic.items()):
                        print(f"  lpu {lpu_id}: {count:,}")
                    print(f"  visible to partners: {sum(per_clinic.values()):,}")
                    print(f"  withdrawn: {len(control.tombstones()):,}")
        except ControlError as error:
            raise StackError(str(error)) from None
        except ValidationError as error:
            # Pydantic's text spans several lines and quotes the input.
            reasons = "; ".join(
                ": ".join([*map(str, found["loc"]), found["msg"].removeprefix("Value error, ")])
                for found in error.errors()
            )
            raise StackError(f"There is no such fault: {reasons}") from None
    return 0


def partners(stack: Stack, options: argparse.Namespace) -> int:
    from sandbox.medflex.control import Control, ControlError
    from sandbox.partners import Delivery, Partners, await_answers, play, summary

    _need_running(stack)
    made = Partners(seed=options.seed, hostile=options.hostile, repeat=options.repeat, disorder=options.disorder)
    delivered: list[Delivery] = []
    with Control(stack.control_url) as control:
        try:
            print(
                f"Partners ask for something {options.rate:g} times a second, for {options.seconds:g} s …", flush=True
            )
            with contextlib.suppress(KeyboardInterrupt):
                play(control, made, rate=options.rate, seconds=options.seconds, delivered=delivered)
                if not options.no_wait:
                    print("Waiting for their answers: the DAG reads actions every two minutes …", flush=True)
                    await_answers(control, delivered, seconds=_ANSWER_SECONDS)
            print("Answered so far, by status_code:")
            print("\n".join(summary(delivered, control.results())))
        except ControlError as error:
            raise StackError(str(error)) from None
    return 0


# Helpers


def _clock(moment: dt.datetime) -> str:
    """The moment on the user's clock; with its date unless that is today, since a run's day begins at 03:00."""
    here = moment.astimezone()
    return f"{here:%H:%M}" if here.date() == dt.datetime.now(here.tzinfo).date() else f"{here:%Y-%m-%d %H:%M}"


def _told(fault: dict[str, Any]) -> str:
    """A fault in one line, without what is left at its default."""
    from sandbox.medflex.control import Fault, FaultKind, Match, Params

    default = Fault.model_construct(kind=FaultKind(fault["kind"])).model_dump(mode="json")
    own = fault.keys() - {"match", "params"}
    told = {name: fault[name] for name in sorted(own) if fault[name] != default[name]}
    for name, plain in (("match", Match()), ("params", Params())):
        usual = plain.model_dump(mode="json")
        told |= {key: value for key, value in (fault.get(name) or {}).items() if value != usual.get(key)}
    return " ".join([str(fault["kind"]), *(f"{name}={value}" for name, value in told.items())])


def _need_stack(stack: Stack) -> None:
    if not (stack.folder / "settings.json").exists():
        raise StackError(f"There is no stack in {stack.folder} yet: `make demo` makes one.")


def _need_running(stack: Stack) -> None:
    stopped = [name for name, runs in stack.states().items() if not runs]
    if stopped:
        raise StackError(f"Not running: {', '.join(stopped)}. Start the stack with `make demo`.")


def _print_address(stack: Stack) -> None:
    print(f"\nAirflow    {stack.url}")
    for user, password in stack.passwords().items():
        print(f"  log-in   {user} / {password}")


def _print_funnel(stack: Stack, run_id: str | None) -> None:
    sys.path.insert(0, str(PROJECT / "plugins"))
    from medflex.errors import MedflexPipelineError
    from medflex.ledger.report import print_funnel

    try:
        print_funnel(stack.ledger(), run_id)
    except MedflexPipelineError as error:
        raise StackError(str(error)) from None


# Arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One sentence, instead of the usage over several lines with the reason below.
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help).\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sandbox/ctl", description="Drives the one-machine stack.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(command: Callable[[Stack, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(command.__name__, help=text, description=text, allow_abbrev=False)
        made.set_defaults(command=command)
        return made

    for command, text in (
        (demo, "Start everything, make one run of the daily DAG, print its funnel and the address."),
        (start, "Start everything and print the address."),
        (seed, "Replace the demo Medlock's data."),
    ):
        made = add(command, text)
        made.add_argument("--appointments", type=_positive, default=20_000, help="rows to make up (default 20000)")
        made.add_argument("--clinics", type=_positive, default=21, help="clinics to make up (default 21)")
        made.add_argument("--seed", type=int, default=1, help="another seed gives other data (default 1)")
    add(stop, "Stop everything; data and log-ins stay.")
    add(status, f"Show which of postgres, {', '.join(SERVICES)} runs; ends with 1 unless all do.")
    made = add(env, "Print addresses, connection URIs and log-ins.")
    made.add_argument("--export", action="store_true", help="Airflow's environment as shell `export` lines")
    made = add(run, f"Make a run of {DAG_ID} and follow it.")
    made.add_argument("--day", type=_day, metavar="YYYY-MM-DD", help="the run's day (default: today)")
    made.add_argument("--mode", choices=("transfer", "plan", "resync"), default="transfer", help="default: transfer")
    made.add_argument("--clinic-ids", type=_ids, metavar="1,2,3", help="only these clinics of Medlock")
    made.add_argument("--no-wait", action="store_true", help="do not follow it")
    made = add(funnel, "Print a run's funnel from the ledger.")
    made.add_argument("--run-id", help="default: the latest run")
    made = add(psql, "Open psql on a database as its owner.")
    made.add_argument("database", choices=DATABASES)
    made.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to psql, such as -c 'SELECT 1'")

    made = add(partners, "Play partners that act on appointments, and show how they were answered.")
    made.add_argument("--rate", type=_rate, default=5.0, metavar="PER_SECOND", help="actions a second (default 5)")
    made.add_argument("--seconds", type=_rate, default=60.0, metavar="N", help="for so long, or Ctrl-C (default 60)")
    made.add_argument("--seed", type=int, default=1, help="another seed gives other actions (default 1)")
    made.add_argument("--hostile", type=_share, default=0.1, metavar="SHARE", help="of actions without a right (0.1)")
    made.add_argument("--repeat", type=_share, default=0.1, metavar="SHARE", help="of actions delivered again (0.1)")
    made.add_argument("--disorder", type=_share, default=0.1, metavar="SHARE", help="of actions that come late (0.1)")
    made.add_argument("--no-wait", action="store_true", help="do not wait for the answers, three minutes at most")

    made = add(medflex, "Look into the Medflex sandbox, and switch its faults on and off.")
    what = made.add_subparsers(dest="what", metavar="WHAT", required=True)
    what.add_parser("records", help="count what partners can see", allow_abbrev=False)
    faults = what.add_parser("faults", help="on, off, list", allow_abbrev=False)
    switch = faults.add_subparsers(dest="what", metavar="on|off|list", required=True)
    from sandbox.medflex.faults import FaultKind, described

    example = f"such as: {parser.prog} medflex faults on status status=503 retry_after=5 --times 3"
    on = switch.add_parser(
        "on", help="switch a fault on", allow_abbrev=False, epilog=f"{described()}\n\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    on.add_argument("kind", choices=[kind.value for kind in FaultKind], metavar="fault", help="see below")
    on.add_argument("settings", nargs="*", type=_setting, metavar="name=value", help="that this fault knows, see below")
    on.add_argument("--path", default="/", help="only requests whose path begins so")
    on.add_argument("--method", choices=("GET", "POST"))
    on.add_argument("--lpu-id", type=int)
    on.add_argument("--record-id", type=int, help="only requests with a record of this id")
    on.add_argument("--times", type=_positive, help="spent after so many (default: never)")
    on.add_argument("--every", type=_positive, help="each so-many-th request")
    off = switch.add_parser("off", help="switch one or all faults off", allow_abbrev=False)
    off.add_argument("fault", nargs="?", type=int, help="its number in the list (default: all)")
    switch.add_parser("list", help="show the faults that are on", allow_abbrev=False)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _rate(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be a share from 0 to 1, such as 0.1")
    return number


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day of the form YYYY-MM-DD") from None


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of clinic ids such as 1,2,3") from None


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
