"""A txt2img body read as A1111's pydantic 1 model reads it, and the error bodies of its API."""

from typing import Any

from fakes.recorded import recorded

Params = dict[str, Any]

# Every other field is Optional in A1111's model: null passes here, and fails later or not at all.
NOT_NULLABLE = {"sampler_index", "script_args", "send_images", "save_images", "alwayson_scripts"}
SCHEMA = recorded("openapi")["components"]["schemas"]["StableDiffusionProcessingTxt2Img"][
    "properties"
]


class ApiError(Exception):
    """An answer that is not a picture: an HTTP status and its JSON body."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


def refusal(status: int, detail: str) -> ApiError:
    """A1111's HTTPException: the text is in `detail`."""
    return ApiError(status, {"error": "HTTPException", "detail": detail, "body": "", "errors": ""})


def engine_error(name: str, text: str) -> ApiError:
    """Any other exception inside A1111: a 500 with the text in `errors`."""
    return ApiError(500, {"error": name, "detail": "", "body": "", "errors": text})


def _string(value: Any) -> str:
    if isinstance(value, (str, int, float)):
        return str(value)
    raise TypeError


def _boolean(value: Any) -> bool:
    word = value.lower() if isinstance(value, str) else value
    if word in {0, "0", "off", "f", "false", "n", "no"}:
        return False
    if word in {1, "1", "on", "t", "true", "y", "yes"}:
        return True
    raise ValueError


def _array(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise TypeError


# How each JSON type is read, and the message and type of the complaint if it cannot be.
COERCIONS = {
    "integer": (int, "value is not a valid integer", "type_error.integer"),
    "number": (float, "value is not a valid float", "type_error.float"),
    "string": (_string, "str type expected", "type_error.str"),
    "boolean": (_boolean, "value could not be parsed to a boolean", "type_error.bool"),
    "array": (_array, "value is not a valid list", "type_error.list"),
    "object": (dict, "value is not a valid dict", "type_error.dict"),
}


def _coerce(value: Any, kind: str, *loc: str | int) -> Any:
    read, msg, error_type = COERCIONS[kind]
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError) as error:
        complaint = {"loc": ["body", *loc], "msg": msg, "type": error_type}
        raise ApiError(422, {"detail": [complaint]}) from error


def _read_field(name: str, value: Any) -> Any:
    if value is None and name not in NOT_NULLABLE:
        return None
    read = _coerce(value, SCHEMA[name]["type"], name)
    item_type = SCHEMA[name].get("items", {}).get("type")
    if item_type:
        return [_coerce(item, item_type, name, index) for index, item in enumerate(read)]
    return read


def read_request(body: Any) -> Params:
    """Every txt2img field, from the body or by default; unknown fields are dropped."""
    sent = _coerce(body, "object")
    params = {name: schema.get("default") for name, schema in SCHEMA.items()}
    complaints = []
    for name in [name for name in params if name in sent]:
        try:
            params[name] = _read_field(name, sent[name])
        except ApiError as error:  # pydantic reports every field at once
            complaints += error.body["detail"]
    if complaints:
        raise ApiError(422, {"detail": complaints})
    return params
