"""Print a ``.env`` for docker-compose.yml: ``.env.example`` with fresh random secrets. Needs Python alone.

``--demo`` also fills in the connections, to the services of the profile ``demo``. Nothing is written or overwritten.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / ".env.example"


def fernet_key() -> str:
    """32 random bytes as Fernet wants them."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


# Hexadecimal digits go into addresses as they are.
MADE_UP: dict[str, Callable[[], str]] = {
    "POSTGRES_PASSWORD": lambda: secrets.token_hex(24),
    "POSTGRES_AIRFLOW_PASSWORD": lambda: secrets.token_hex(24),
    "POSTGRES_LEDGER_PASSWORD": lambda: secrets.token_hex(24),
    "REDIS_PASSWORD": lambda: secrets.token_hex(24),
    "STORAGE_SECRET_KEY": lambda: secrets.token_hex(24),
    "AIRFLOW_FERNET_KEY": fernet_key,
    "AIRFLOW_JWT_SECRET": lambda: secrets.token_hex(64),
    "AIRFLOW_API_SECRET_KEY": lambda: secrets.token_hex(32),
    "MEDFLEX_DIGEST_KEY": lambda: secrets.token_hex(32),
}
MADE_UP_FOR_DEMO: dict[str, Callable[[], str]] = {
    "DEMO_MEDLOCK_PASSWORD": lambda: secrets.token_hex(24),
    "DEMO_MEDFLEX_TOKEN": lambda: secrets.token_hex(24),
}


def filled(example: str, *, demo: bool = False) -> str:
    """Return the text ``example`` with a fresh secret behind each name of :data:`MADE_UP`."""
    values = {name: make() for name, make in (MADE_UP | MADE_UP_FOR_DEMO if demo else MADE_UP).items()}
    if demo:
        for name in ("DB", "ACTIONS", "SWITCH"):
            user = {"DB": "app"}.get(name, name.lower())
            password = values["DEMO_MEDLOCK_PASSWORD"]
            values[f"AIRFLOW_CONN_MEDLOCK_{name}"] = f"postgresql://medlock_{user}:{password}@medlock/medlock"
        medflex = {
            "conn_type": "http",
            "schema": "http",
            "host": "medflex",
            "port": 8100,
            "password": values["DEMO_MEDFLEX_TOKEN"],
            "extra": {"rate_per_second": 50, "timeout_seconds": 60},
        }
        values["AIRFLOW_CONN_MEDFLEX_API"] = f"'{json.dumps(medflex)}'"

    def line(match: re.Match[str]) -> str:
        name = match["name"]
        return f"{name}={values[name]}" if name in values else match[0]

    return re.sub(r"^#?(?P<name>[A-Z_]+)=.*$", line, example, flags=re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="connect to the services of the profile demo")
    options = parser.parse_args(arguments)
    sys.stdout.write(filled(EXAMPLE.read_text(encoding="utf-8"), demo=options.demo))
    return 0


if __name__ == "__main__":
    sys.exit(main())
