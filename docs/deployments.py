"""The deployments that docs/deploy.md describes, as one table, and RunPod's calls that make them.

The presets of `.runpod/hub.json` come from the same table (docs/hub.py). The calls are those of
RunPod's API v2 (docs.runpod.io/api-reference-v2) and of runpodctl 2.7; tests/project/
test_deployments.py checks each of them against what RunPod documents. docs/generate.py writes them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.config import gpus
from worker.config.settings import Settings

API = "https://api.runpod.io/v2"
DATA_CENTER = "EU-RO-1"  # one with an S3 API, for `model_manager.py push`
JOB_TIMEOUT = int(Settings.model_fields["job_timeout"].default)
REST_OF_DISK_GB = 10
MARGIN = 60  # seconds in which the worker can still say why a job took too long
BALANCER_TIMEOUT = 330  # seconds after which RunPod's load balancer ends a request
PORT = 7860

Body = dict[str, Any]


def secret(name: str) -> str:
    """A reference to a secret of the RunPod account, which RunPod replaces when a worker starts."""
    return f"{{{{ RUNPOD_SECRET_{name} }}}}"


@dataclass(frozen=True)
class Deployment:
    """An endpoint: what it needs, and how it scales.

    Attributes:
        name: its name in the account, and in the names of the generated parts.
        pools: RunPod's pools of GPUs, the preferred one first.
        models_gb: GB of models for which the container's disk must have room.
        env: its variables. Those of `worker.config.settings`.
        preset: its name among the presets of the Hub; None: it is none.
        volume_gb: size of the network volume for its models; None: it has none.
        model: repository on Hugging Face that RunPod caches for it; None: none.
        type: which of RunPod's two types it has.
    """

    name: str
    pools: tuple[str, ...]
    models_gb: int
    env: Mapping[str, str]
    preset: str | None = None
    volume_gb: int | None = None
    model: str | None = None
    type: Literal["QUEUE", "LOAD_BALANCER"] = "QUEUE"
    workers_max: int = 3
    idle_timeout: int = 5  # seconds
    ports: tuple[int, ...] = field(default=())

    @property
    def disk_gb(self) -> int:
        """Size of the container's disk: A1111 writes to it, and the store keeps 2 GiB free."""
        return self.models_gb + REST_OF_DISK_GB

    @property
    def timeout(self) -> int:
        """Seconds after which RunPod ends a job: later than the worker itself."""
        return BALANCER_TIMEOUT if self.type == "LOAD_BALANCER" else JOB_TIMEOUT + MARGIN

    @property
    def minimum_cuda(self) -> str:
        """The oldest CUDA that a host's driver must support for one of the pools."""
        cards = [cards for pool in self.pools for cards in gpus.POOLS[pool]]
        only_blackwell = all(one.capability[0] >= gpus.BLACKWELL for one in cards)
        return gpus.CUDA if only_blackwell else gpus.CUDA_OF_HOSTS[0]

    @property
    def scaling(self) -> Body:
        """When RunPod starts another worker."""
        if self.type == "LOAD_BALANCER":  # a worker draws one picture, and one request waits
            return {"type": "REQUEST_COUNT", "requestCount": 2}
        return {"type": "QUEUE_DELAY", "queueDelay": 4}  # RunPod's default


CIVITAI = {"CIVITAI_API_KEY": secret("civitai_api_key")}
CARDS_OF_24_GB = ("ADA_24", "AMPERE_24")
BLACKWELL = ("ADA_32_PRO", "BLACKWELL_96", "BLACKWELL_180")

DEPLOYMENTS = (
    Deployment(
        name="sdxl",
        pools=CARDS_OF_24_GB,
        models_gb=30,
        env={"DEFAULT_TEMPLATE": "jib_mix_realistic", "JOB_CONCURRENCY": "1", **CIVITAI},
        preset="SDXL on 24 GB: RTX 4090, RTX 3090 (needs a CivitAI key)",
    ),
    Deployment(
        name="many-models",
        pools=(*CARDS_OF_24_GB, "AMPERE_48", "ADA_48_PRO"),  # more, in the volume's data center
        models_gb=5,
        env={
            "DEFAULT_TEMPLATE": "none",
            "JOB_CONCURRENCY": "2",
            "MODELS_BUDGET_GB": "180",
            **CIVITAI,
        },
        volume_gb=200,
        idle_timeout=30,
    ),
    Deployment(
        name="cached",
        pools=CARDS_OF_24_GB,
        models_gb=5,
        env={"DEFAULT_TEMPLATE": "illustrious_xl", "JOB_CONCURRENCY": "1"},
        preset="Cached model: set Model to OnomaAIResearch/Illustrious-XL-v2.0",
        model="OnomaAIResearch/Illustrious-XL-v2.0",
    ),
    Deployment(
        name="sd1",
        pools=("AMPERE_16",),
        models_gb=10,
        env={"DEFAULT_TEMPLATE": "sd15", "JOB_CONCURRENCY": "1"},
        preset="SD1 on 16 GB: RTX A4000, RTX 2000 Ada (no key)",
    ),
    Deployment(
        name="blackwell",
        pools=BLACKWELL,
        models_gb=30,
        env={"DEFAULT_TEMPLATE": "illustrious_xl", "JOB_CONCURRENCY": "2"},
        preset="SDXL on Blackwell: RTX 5090, RTX PRO 6000, B200 (no key)",
    ),
    Deployment(
        name="load-balancing",
        pools=CARDS_OF_24_GB,
        models_gb=30,
        env={
            "DEFAULT_TEMPLATE": "jib_mix_realistic",
            "PORT": str(PORT),
            "PORT_HEALTH": str(PORT),
            **CIVITAI,
        },
        type="LOAD_BALANCER",
        ports=(PORT,),
    ),
)
BY_NAME = {deployment.name: deployment for deployment in DEPLOYMENTS}
SETUPS = ("sdxl", "many-models", "cached")  # those of docs/deploy.md
SETUPS_BY_API = tuple(name for name in SETUPS if not BY_NAME[name].model)  # it knows no model


# Bodies of API v2 --------------------------------------------------------------------------------


def endpoint_body(deployment: Deployment) -> Body:
    """The body of `POST /v2/serverless`. Shell variables stand for the image and the volume."""
    body: Body = {
        "name": deployment.name,
        "type": deployment.type,
        "image": "$IMAGE",
        "gpu": {
            "pools": list(deployment.pools),
            "count": 1,
            "minCudaVersion": deployment.minimum_cuda,
        },
        "disk": deployment.disk_gb,
        "env": dict(deployment.env),
        "workers": {
            "min": 0,
            "max": deployment.workers_max,
            "idleTimeout": deployment.idle_timeout,
        },
        "scaling": deployment.scaling,
        "timeout": deployment.timeout * 1000,  # RunPod's own default is shorter than a job may take
        "flashboot": "FLASHBOOT",  # RunPod's default is OFF here, and on in the console
    }
    if deployment.ports:
        body["ports"] = [f"{port}/http" for port in deployment.ports]
    if deployment.volume_gb:
        body["networkVolumes"] = ["$VOLUME"]
    return body


def volume_body(deployment: Deployment) -> Body:
    """The body of `POST /v2/network-volumes`."""
    return {"name": "models", "size": deployment.volume_gb, "dataCenter": DATA_CENTER}


# Changes of an endpoint that exists: `PATCH /v2/serverless/ENDPOINT`.
CHANGES: dict[str, Body] = {
    "image": {"image": "$IMAGE"},
    "stop": {"workers": {"min": 0, "max": 0}},
    "more-pools": {"gpu": {"pools": list(BY_NAME["cached"].pools)}},
}


# Lines of a shell --------------------------------------------------------------------------------

WIDTH = 100


def api_calls(name: str) -> str:
    """The calls of API v2 that make a deployment, as lines of a shell."""
    deployment = BY_NAME[name]
    calls = [_saved("ENDPOINT", curl("serverless", endpoint_body(deployment)))]
    if deployment.volume_gb:
        calls.insert(0, _saved("VOLUME", curl("network-volumes", volume_body(deployment))))
    return fenced(calls)


def change_call(name: str) -> str:
    """The call of API v2 that changes an endpoint."""
    call, body = curl("serverless/$ENDPOINT", CHANGES[name], "PATCH")
    return fenced([f"{call}\n{body}"])


def curl(path: str, body: Body, method: str = "POST") -> tuple[str, str]:
    """A call whose body follows it, so that the shell replaces the variables in the body."""
    asked = "" if method == "POST" else f"-X {method} "
    call = (
        f'curl -sS {asked}{API}/{path} \\\n    -H "authorization: Bearer $RUNPOD_API_KEY"'
        " -H 'content-type: application/json' -d @- <<EOF"
    )
    return call, f"{written(body)}\nEOF\n"


def _saved(variable: str, call: tuple[str, str]) -> str:
    """A call whose answer is shown, and whose `id` goes into a variable of the shell."""
    return f"{variable}=$({call[0]} | {_SHOW_AND_TAKE_ID}\n{call[1]})\n"


_SHOW_AND_TAKE_ID = "tee /dev/stderr | jq -r .id"


def written(body: Mapping[str, Any], indent: str = "") -> str:
    """JSON on one line, or with a line for each field if that line would be too long."""
    line = json.dumps(dict(body))
    if len(line) < WIDTH - len(indent) - 20:
        return line
    fields = (
        f"{json.dumps(key)}: "
        + (written(value, f"{indent}  ") if isinstance(value, dict) else json.dumps(value))
        for key, value in body.items()
    )
    return "{" + ",".join(f"\n{indent}  {one}" for one in fields) + f"\n{indent}}}"


def runpodctl_calls(name: str) -> str:
    """The commands of runpodctl that make a deployment, as lines of a shell."""
    deployment = BY_NAME[name]
    commands = [
        _command("TEMPLATE", "template create --serverless", _template_flags(deployment)),
        _command("ENDPOINT", "serverless create --flash-boot=true", _endpoint_flags(deployment)),
    ]
    if deployment.volume_gb:
        body = volume_body(deployment)
        flags = [("name", body["name"]), ("size", body["size"]), ("data-center-id", DATA_CENTER)]
        commands.insert(0, _command("VOLUME", "network-volume create", flags))
    return fenced(commands)


Flags = list[tuple[str, object]]


def _template_flags(deployment: Deployment) -> Flags:
    return [
        ("name", deployment.name),
        ("image", "$IMAGE"),
        ("container-disk-in-gb", deployment.disk_gb),
        ("env", written(deployment.env, "    ")),
    ]


def _endpoint_flags(deployment: Deployment) -> Flags:
    flags: Flags = [
        ("name", deployment.name),
        ("template-id", "$TEMPLATE"),
        ("gpu-id", deployment.pools[0]),  # it takes one pool only
        ("min-cuda-version", deployment.minimum_cuda),
        ("workers-min", 0),
        ("workers-max", deployment.workers_max),
        ("idle-timeout", deployment.idle_timeout),
        ("scale-by", "delay"),
        ("scale-threshold", deployment.scaling["queueDelay"]),
        ("execution-timeout", deployment.timeout),
    ]
    if deployment.volume_gb:
        flags.append(("network-volume-ids", "$VOLUME"))
    if deployment.model:
        flags.append(("model-reference", f"https://huggingface.co/{deployment.model}:main"))
    return flags


def _command(variable: str, words: str, flags: Flags) -> str:
    """A command of runpodctl on short lines; its answer's `id` goes into a variable."""
    parts = [f"--{name} {_quoted(str(value))}" for name, value in flags]
    parts += [f"| {_SHOW_AND_TAKE_ID})"]
    lines = [f"{variable}=$(runpodctl {words}"]
    for part in parts:
        if len(lines[-1]) + len(part) + len("  \\") > WIDTH:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}"
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"' if text.startswith("$") else shlex.quote(text)


def fenced(calls: Iterable[str]) -> str:
    """A block of Markdown."""
    return "```\n" + "".join(calls) + "```\n"
