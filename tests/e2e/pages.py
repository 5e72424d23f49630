"""What the browser tests of the pages, and the pictures of the README, look at."""

from __future__ import annotations

from urllib.parse import quote, urlencode

TRANSFER = "medflex_transfer"


def own_pages(run_id: str) -> dict[str, str]:
    """Name → address of each page as it stands for itself."""
    run = urlencode({"dag_id": TRANSFER, "run_id": run_id})
    return {
        "clinics": "/medflex/clinics",
        "clinic": "/medflex/clinics/1",
        "runs": "/medflex/runs",
        "run": f"/medflex/runs/view?{run}",
        "shard": f"/medflex/runs/view?{run}&shard=0",
        "withdrawals": "/medflex/withdrawals",
        "actions": "/medflex/actions",
        "quality": "/medflex/quality",
        "nothing": "/medflex/clinics/987654321",
    }


def framed_pages(run_id: str) -> dict[str, str]:
    """Name → address of each place in the Airflow UI in which a page is shown."""
    run = f"/dags/{TRANSFER}/runs/{quote(run_id, safe='')}"
    return {
        "in-navigation": "/plugin/medflex",
        "deep-link": "/plugin/medflex/medflex/clinics/1",
        "of-the-dag": f"/dags/{TRANSFER}/plugin/medflex-dag",
        "of-a-run": f"{run}/plugin/medflex-run",
        "of-validate": f"{run}/tasks/shard.validate/mapped/0/plugin/medflex-task",
        "of-load": f"{run}/tasks/shard.load/mapped/0/plugin/medflex-task",
    }
