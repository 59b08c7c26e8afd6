"""A body for txt2img or img2img as A1111's pydantic 1 models read it, and its error bodies."""

from typing import Any

from fakes.recorded import recorded

Params = dict[str, Any]

# Every other field is Optional in A1111's model: null passes here, and fails later or not at all.
NOT_NULLABLE = {"sampler_index", "script_args", "send_images", "save_images", "alwayson_scripts"}
NOT_NULLABLE_IN = {"txt2img": set(), "img2img": {"denoising_strength", "include_init_images"}}
_SCHEMAS = recorded("openapi")["components"]["schemas"]
SCHEMAS = {
    "txt2img": _SCHEMAS["StableDiffusionProcessingTxt2Img"]["properties"],
    "img2img": _SCHEMAS["StableDiffusionProcessingImg2Img"]["properties"],
}


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


def _read_field(route: str, name: str, value: Any) -> Any:
    if value is None and name not in NOT_NULLABLE | NOT_NULLABLE_IN[route]:
        return None
    schema = SCHEMAS[route][name]
    read = _coerce(value, schema["type"], name)
    item_type = schema.get("items", {}).get("type")
    if item_type:
        return [_coerce(item, item_type, name, index) for index, item in enumerate(read)]
    return read


def read_request(body: Any, route: str = "txt2img") -> Params:
    """Every field of the route, from the body or by default; unknown fields are dropped."""
    sent = _coerce(body, "object")
    params = {name: schema.get("default") for name, schema in SCHEMAS[route].items()}
    complaints = []
    for name in [name for name in params if name in sent]:
        try:
            params[name] = _read_field(route, name, sent[name])
        except ApiError as error:  # pydantic reports every field at once
            complaints += error.body["detail"]
    if complaints:
        raise ApiError(422, {"detail": complaints})
    return params
