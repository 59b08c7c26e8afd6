"""Uses RunPod's own Python client; prints what the test looks at as JSON.

The environment names the server and the key: RUNPOD_ENDPOINT_BASE_URL and RUNPOD_API_KEY.
"""

import asyncio
import json
import os
import sys

import runpod
from runpod import AsyncioEndpoint, AsyncioJob, http_client

FAILS = {"error": "INVALID_INPUT: steps = 0. Send 1 to 150."}
NEVER = {"until": "/nonexistent/file"}
SOON = 30

seen = {}
runpod.api_key = os.environ["RUNPOD_API_KEY"]
endpoint = runpod.Endpoint("ep0")

done = endpoint.run({"input": {"echo": "run"}})
seen["run"] = [done.output(timeout=SOON)["echo"], done.status()]
seen["run_sync"] = endpoint.run_sync({"input": {"echo": "sync"}}, timeout=SOON)["echo"]

failed = endpoint.run({"input": FAILS})
seen["failed"] = [failed.output(timeout=SOON)["detail"], failed.status()]
seen["failed sync"] = endpoint.run_sync({"input": FAILS}, timeout=SOON)["detail"]
seen["stream"] = [chunk["echo"] for chunk in endpoint.run({"input": {"echo": "s"}}).stream()]
many = [{"type": "picture", "number": number} for number in range(40)]
seen["chunks"] = [chunk["number"] for chunk in endpoint.run({"input": {"chunks": many}}).stream()]

running, waiting = (endpoint.run({"input": NEVER}) for _ in range(2))
while running.status() != "IN_PROGRESS":
    pass
seen["health"] = endpoint.health()["jobs"]
seen["purge"] = endpoint.purge_queue()
seen["waiting"] = waiting.status()
seen["cancel"] = [running.cancel()["status"], running.status()]


async def with_asyncio():
    async with http_client.AsyncClientSession() as session:
        again = AsyncioEndpoint("ep0", session)
        job: AsyncioJob = await again.run({"echo": "asyncio"})
        seen["asyncio"] = [(await job.output(timeout=SOON))["echo"], await job.status()]
        job = await again.run(NEVER)
        seen["asyncio cancel"] = [(await job.cancel())["status"], await job.status()]
        seen["asyncio health"] = sorted(await again.health())


asyncio.run(with_asyncio())
sys.stdout.write(json.dumps(seen))
