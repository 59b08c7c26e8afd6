"""A worker that starts as published ones do: download, then boot, then jobs.

    python -m benchmarks.sides.sequential_start URL PORT FOLDER

It fetches the checkpoint with one request, as `wget` or `requests` do. Then it starts the engine
(FOLDER/webui.py) and the plain RunPod SDK beside it, whose handler polls the engine every 0.2 s
until it answers, as worker-a1111's `wait_for_service` does.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

POLL = 0.2  # seconds, of worker-a1111


def download(url: str, path: Path) -> None:
    """Fetch the checkpoint."""
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    with requests.get(url, stream=True, timeout=60) as answer, path.open("wb") as file:
        answer.raise_for_status()
        for block in answer.iter_content(1 << 20):
            file.write(block)


def wait_for_engine(base: str, session: Any) -> None:  # noqa: ANN401 - a requests.Session
    """Ask every 0.2 s until the engine answers."""
    import requests

    while True:
        try:
            session.get(f"{base}/sd-models", timeout=120).raise_for_status()
        except requests.exceptions.RequestException:
            time.sleep(POLL)
        else:
            return


def serve(base: str) -> None:
    """Wait for the engine, then take jobs."""
    import requests
    import runpod

    session = requests.Session()
    wait_for_engine(base, session)

    def handler(job: dict[str, Any]) -> Any:  # noqa: ANN401 - the engine's answer
        answer = session.post(f"{base}/txt2img", json=job["input"], timeout=600)
        answer.raise_for_status()
        return answer.json()

    runpod.serverless.start({"handler": handler})


def main() -> None:
    """Be the worker."""
    url, port, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    download(url, folder / "models/Stable-diffusion/model.safetensors")
    flags = ["--api", "--nowebui", "--port", port]
    subprocess.Popen([sys.executable, "webui.py", *flags], cwd=folder)
    serve(f"http://127.0.0.1:{port}/sdapi/v1")


if __name__ == "__main__":
    main()
