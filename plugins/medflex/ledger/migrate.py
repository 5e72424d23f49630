"""Bring the ledger's schema to the newest version: ``python -m medflex.ledger.migrate``.

The connection is Airflow's ``medflex_ledger``, read from ``AIRFLOW_CONN_MEDFLEX_LEDGER`` (as a URI) or given
with ``--uri``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from medflex.errors import ConfigurationError, LedgerOutdatedError, LedgerRefusedError

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0012"
"""The schema version that this code needs; a test holds it equal to the newest migration."""


def migrate(uri: str, version: str = "head") -> None:
    """Create or upgrade the schema ``ledger`` in the database behind ``uri`` (``postgresql://…``).

    Safe to call at any time and by several processes at once.

    Args:
        version: of the schema; ``head`` is its newest.

    Raises:
        LedgerRefusedError: the database cannot be reached, refuses the log-in or the rights, or has no room.
        LedgerOutdatedError: a newer release has migrated it.
    """
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config
    from alembic.script.revision import ResolutionError
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scheme, _, rest = uri.partition("://")
    if not scheme.startswith("postgres") or not rest:
        raise ConfigurationError("The ledger's connection must be a URI like postgresql://user:password@host/database.")
    engine = sa.create_engine(f"postgresql+psycopg://{rest}", poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            # Two deployments that start together must not migrate side by side.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('medflex.ledger.migrate'))"))
            connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS ledger"))
            config.attributes["connection"] = connection
            command.upgrade(config, version)
            connection.commit()
    except CommandError as error:
        unknown = error.__cause__
        if not isinstance(unknown, ResolutionError) or unknown.argument == version:
            raise
        raise LedgerOutdatedError(
            f"The ledger is newer than this release (its schema is at version {unknown.argument}, this one knows"
            f" {HEAD}): deploy the release that it was migrated by, or a newer one."
        ) from None
    except (sa.exc.OperationalError, sa.exc.InternalError) as error:
        # Not at the top: that module takes the version from this one.
        from medflex.ledger.connection import answered

        raise LedgerRefusedError(
            answered(error.orig)
            or "The ledger's database cannot be reached or refuses the log-in: check host, port, user and password of"
            " the connection medflex_ledger."
        ) from None
    except sa.exc.ProgrammingError:
        raise LedgerRefusedError(
            "The ledger's schema cannot be changed: the user of the connection medflex_ledger must own its database."
        ) from None
    finally:
        engine.dispose()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m medflex.ledger.migrate", description=__doc__)
    parser.add_argument(
        "--uri", default=os.environ.get("AIRFLOW_CONN_MEDFLEX_LEDGER"), help="the ledger's connection URI"
    )
    options = parser.parse_args(arguments)
    if not options.uri:
        parser.error("no connection: set AIRFLOW_CONN_MEDFLEX_LEDGER or give --uri")
    try:
        migrate(options.uri)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
