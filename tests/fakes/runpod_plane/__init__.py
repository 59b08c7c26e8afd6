"""A RunPod control plane on loopback, for tests that drive a worker through the real SDK.

    with RunPodPlane() as plane:
        ...start a worker with plane.worker_env()...
        job_id = plane.submit({"prompt": "a fox"})
        assert plane.wait(job_id, timeout=30)["status"] == "COMPLETED"

It speaks the worker's half of the API and the client's half, with the batch API. What happens
behind RunPod's routes is not public: this is a model of it. Its sources, where D is RunPod's
documents (runpod/docs of 2026-08-20), S the code of runpod-python 1.12.0, I a thread of an issue
tracker, and "inferred" what no source says:

    job-take, job-take-batch,     S rp_job; `s3Config` and `batchId` beside `input`: D
    job-stop, ping                send-requests, S rp_scale; the other keys: inferred
    job-done, job-stream          S rp_http; 400 for a result over 10 MB (/run) or 20 MB (/runsync):
                                  D handler-functions, I worker-comfyui 129; 1 MB a chunk: D
                                  operation-reference, the 400 for a larger one: inferred
    run, runsync, status          D operation-reference; 413 for a body over the limit: inferred
    stream                        D operation-reference, S endpoint/runner; that the output of a job
                                  without chunks comes once: inferred
    cancel, purge-queue, health   D operation-reference, job-states
    retry                         D operation-reference; 400 for a job in another state: inferred
    policy                        D send-requests (executionTimeout: TIMED_OUT and a stop signal;
                                  ttl: the job is gone, 404); its limits are not checked here.
                                  That a result outlives the ttl: D send-requests; D
                                  endpoint-configurations says the opposite
    webhook                       D send-requests; the body is that of /status: inferred
    batch, and all below it       D batch-jobs; 400 and 413 for what is over a limit, `name` in PUT
                                  and the order of the requests: inferred

Not modelled: rate limits (give a route the fault 429), the time for which results are kept, and
batch workers of their own (the one queue has all jobs).
"""

from fakes.runpod_plane.plane import RunPodPlane

__all__ = ["RunPodPlane"]
