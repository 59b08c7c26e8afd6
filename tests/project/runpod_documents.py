"""What RunPod documents about its tools' input: our own short form, read on 2026-11-29.

- Bodies of API v2: docs.runpod.io/api-reference-v2/openapi.json, version 2.0.0 (runpod/docs of
  2026-08-20), the requests that create and change endpoints and create network volumes.
- runpodctl: docs.runpod.io/runpodctl/reference, and the code of 2.7.2 (runpod/runpodctl of
  2026-07-23). A flag stands here only if both have it: the page about `serverless update` names
  flags that 2.7.2 does not have.
- The Hub's files: docs.runpod.io/hub/publishing-guide of 2026-08-20.
"""

TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT}
VERSIONS = {"type": "array", "items": {"type": "string", "pattern": r"^\d+\.\d+$"}}


def whole(minimum, maximum=None):
    return {"type": "integer", "minimum": minimum} | ({"maximum": maximum} if maximum else {})


def closed(required, properties, **more):
    """An object that has no other fields."""
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
        **more,
    }


# API v2 ------------------------------------------------------------------------------------------

REQUEST_COUNT = closed(
    ["type", "requestCount"], {"type": {"const": "REQUEST_COUNT"}, "requestCount": whole(1)}
)
QUEUE_DELAY = closed(
    ["type", "queueDelay"],
    {"type": {"const": "QUEUE_DELAY"}, "queueDelay": {"type": "number", "minimum": 0.5}},
)
GPU = closed(
    ["pools"],
    {
        "pools": TEXTS | {"minItems": 1},
        "excludedTypes": TEXTS | {"uniqueItems": True},
        "count": whole(1),
        "allowedCudaVersions": VERSIONS,
        "minCudaVersion": VERSIONS["items"],
    },
    **{"not": {"required": ["minCudaVersion", "allowedCudaVersions"]}},  # unless that is empty
)
FIELDS_OF_ENDPOINT = {
    "name": TEXT,
    "image": TEXT,
    "args": {"type": "string"},
    "disk": whole(1),
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^\d+/(http|tcp)$"}},
    "registry": {"type": ["string", "null"]},
    "templateId": TEXT,
    "gpu": GPU,
    "dataCenterIds": TEXTS,
    "networkVolumes": TEXTS,
    "flashboot": {"enum": ["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]},
    "scaling": {"oneOf": [QUEUE_DELAY, REQUEST_COUNT]},
    "timeout": {"type": "integer"},
    "workers": closed([], {"min": whole(0), "max": whole(0), "idleTimeout": whole(1, 3600)}),
}
CREATE_ENDPOINT = closed(
    ["name", "type", "scaling", "gpu"],  # we have no CPU endpoint, which has `cpu` instead
    FIELDS_OF_ENDPOINT | {"type": {"enum": ["QUEUE", "LOAD_BALANCER"]}},
    anyOf=[{"required": ["image"]}, {"required": ["templateId"]}],
    allOf=[
        {
            "if": {"properties": {"type": {"const": "LOAD_BALANCER"}}},
            "then": {"properties": {"scaling": REQUEST_COUNT}},
        },
        {  # the scaler by requests of a queue refuses an idle timeout
            "if": {"properties": {"type": {"const": "QUEUE"}, "scaling": REQUEST_COUNT}},
            "then": {"properties": {"workers": {"not": {"required": ["idleTimeout"]}}}},
        },
    ],
)
CHANGE_ENDPOINT = closed([], FIELDS_OF_ENDPOINT | {"gpu": GPU | {"required": []}})
CREATE_VOLUME = closed(
    ["name", "size", "dataCenter"],
    {
        "name": TEXT,
        "size": whole(10, 4000),  # 4096 in API v2, 4000 in runpodctl
        "dataCenter": TEXT,
        "type": {"enum": ["STANDARD", "HIGH_PERFORMANCE"]},
    },
)
# method and path -> what the body must be
BODIES = {
    ("POST", "/v2/serverless"): CREATE_ENDPOINT,
    ("PATCH", "/v2/serverless/ENDPOINT"): CHANGE_ENDPOINT,
    ("POST", "/v2/network-volumes"): CREATE_VOLUME,
}
# ... and those without a body
OTHER_CALLS = {
    ("GET", "/v2/serverless/ENDPOINT/releases"),
    ("DELETE", "/v2/serverless/ENDPOINT"),
    ("DELETE", "/v2/network-volumes/VOLUME"),
}

# runpodctl ---------------------------------------------------------------------------------------


def flags(texts="", numbers="", switches="", objects=""):
    """Each flag with the kind of its value. A switch takes a value only after a `=`."""
    kinds = {str: texts, int: numbers, bool: switches, dict: objects}
    return {flag: kind for kind, words in kinds.items() for flag in words.split()}


COMMANDS = {
    "network-volume create": flags("name data-center-id", "size"),
    "network-volume delete": flags(),
    "template create": flags(
        "name image ports docker-start-cmd docker-entrypoint registry-auth-id readme",
        "container-disk-in-gb",
        "serverless",
        "env",
    ),
    "template delete": flags(),
    "serverless create": flags(
        "name template-id hub-id gpu-id compute-type data-center-ids network-volume-id"
        " network-volume-ids min-cuda-version scale-by env model-reference",
        "gpu-count workers-min workers-max scale-threshold idle-timeout execution-timeout",
        "flash-boot",
    ),
    "serverless delete": flags(),
    "registry create": flags("name username password"),
    "datacenter list": flags(),
}
REQUIRED = {
    "network-volume create": {"name", "size", "data-center-id"},
    "template create": {"name", "image"},
    "serverless create": {"template-id"},  # or `hub-id`
}

# The Hub -----------------------------------------------------------------------------------------

INPUT = closed(
    ["name", "type"],
    {
        "name": TEXT,
        "type": {"enum": ["string", "number", "boolean", "huggingface"]},
        "description": TEXT,
        "default": {"type": ["string", "number", "boolean"]},
        "advanced": {"type": "boolean"},
        "required": {"type": "boolean"},
        "min": {"type": "number"},
        "max": {"type": "number"},
        "trueValue": TEXT,
        "falseValue": TEXT,
        "options": {
            "type": "array",
            "items": closed(["label", "value"], {"label": TEXT, "value": {"type": "string"}}),
        },
    },
    allOf=[
        {
            "if": {"properties": {"type": {"const": kind}}},
            "then": {"properties": {"default": {"type": of_default}}},
        }
        for kind, of_default in (("string", "string"), ("number", "number"))
    ],
)
VARIABLE = {
    "oneOf": [
        closed(["key", "value"], {"key": TEXT, "value": {"type": "string"}}),
        closed(["key", "input"], {"key": TEXT, "input": INPUT}),
    ]
}
PRESET = closed(
    ["name", "defaults"],
    {
        "name": TEXT,
        "defaults": {
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        },
    },
)
HUB = closed(
    ["title", "description", "type", "category", "config"],
    {
        "title": TEXT,
        "description": TEXT,
        "type": {"const": "serverless"},
        "category": {"enum": ["audio", "embedding", "language", "video", "image"]},
        "iconUrl": {"type": "string", "pattern": r"^https://[\w./-]+\.png$"},
        "config": closed(
            ["runsOn", "containerDiskInGb", "gpuCount", "gpuIds"],  # those of a GPU listing
            {
                "runsOn": {"const": "GPU"},
                "endpointType": {"const": "LB"},
                "containerDiskInGb": whole(1),
                "gpuCount": whole(1),
                "gpuIds": {"type": "string", "pattern": r"^[A-Z0-9_]+(,[A-Z0-9_]+)*$"},
                "allowedCudaVersions": VERSIONS,
                "presets": {"type": "array", "items": PRESET},
                "env": {"type": "array", "items": VARIABLE},
            },
        ),
    },
)
HUB_TESTS = closed(
    ["tests", "config"],
    {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                ["name", "input"], {"name": TEXT, "input": {"type": "object"}, "timeout": whole(1)}
            ),
        },
        "config": closed(
            ["gpuTypeId", "gpuCount"],
            {
                "gpuTypeId": TEXT,
                "gpuCount": whole(1),
                "env": {"type": "array", "items": VARIABLE["oneOf"][0]},
                "allowedCudaVersions": VERSIONS,
            },
        ),
    },
)
