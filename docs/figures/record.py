"""Records the answers that timeline.py draws: `python -m docs.figures.record`, beside `make serve`.

`make serve` must have just started, with TRUSTED_HOSTS=127.0.0.1:8765, so that it may download the
demo model from the slow line that this program serves on that port.
"""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from worker.config.settings import PROJECT

FILE = Path(__file__).with_name("timings.json")
API = f"http://localhost:{os.environ.get('PORT', '8000')}/runsync"
MODEL = PROJECT / "demo" / "Stable-diffusion" / "demo-shapes.safetensors"
SLOW_LINE_PORT, BYTES_PER_SECOND, BLOCK = 8765, 5_000_000, 1 << 16
JOB = {"prompt": "a red heart on a white background", "steps": 20, "n_iter": 2}


class SlowLine(http.server.BaseHTTPRequestHandler):
    """Sends the demo model at 5 MB/s."""

    def do_GET(self) -> None:
        """Answer any path with the file."""
        self.send_response(200)
        self.send_header("content-length", str(MODEL.stat().st_size))
        self.end_headers()
        with MODEL.open("rb") as file:
            while block := file.read(BLOCK):
                self.wfile.write(block)
                time.sleep(BLOCK / BYTES_PER_SECOND)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; of its answer, the times."""
    body = json.dumps({"input": job}).encode()
    request = urllib.request.Request(API, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:  # noqa: S310
        output = json.load(response)["output"]
    return {key: output[key] for key in ("timings", "startup") if key in output}


def main() -> None:
    """Run the jobs and write the file."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", SLOW_LINE_PORT), SlowLine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{SLOW_LINE_PORT}/slow-line.safetensors"
    first = answer(JOB)
    downloaded = answer(JOB | {"template": None, "width": 256, "height": 256, "checkpoint": url})
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(answer, [JOB, JOB]))
    together.sort(key=lambda one: one["timings"]["queue"])
    rows = [
        {"job": "first job of a worker", **first},
        {"job": "with a model to download", **downloaded},
        {"job": "the next job", **together[0]},
        {"job": "sent at the same time", **together[1]},
    ]
    FILE.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
