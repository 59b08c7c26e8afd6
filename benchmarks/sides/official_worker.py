"""A worker as runpod-workers/worker-a1111 publishes it, with the real SDK.

Its handler is an ordinary function: one session that repeats broken requests, one POST of the job's
input to txt2img with 600 seconds of patience, and the parsed answer as the job's result. It waits
for the engine by asking for /sd-models, and starts the SDK without further options. ENGINE_URL is
the engine's address here, which the original has in its code.
"""

from __future__ import annotations

import os
import time
from typing import Any

import requests
import runpod
from requests.adapters import HTTPAdapter, Retry

ROUTES = f"{os.environ['ENGINE_URL']}/sdapi/v1"

session = requests.Session()
patient = Retry(total=10, backoff_factor=0.1, status_forcelist=[502, 503, 504])
session.mount("http://", HTTPAdapter(max_retries=patient))


def wait_for_engine() -> None:
    """Return when the engine gives any answer."""
    while True:
        try:
            requests.get(f"{ROUTES}/sd-models", timeout=120)
        except requests.RequestException:
            time.sleep(0.2)
        else:
            return


def handler(job: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """What the SDK calls for each job."""
    return session.post(f"{ROUTES}/txt2img", json=job["input"], timeout=600).json()


if __name__ == "__main__":
    wait_for_engine()
    runpod.serverless.start({"handler": handler})
