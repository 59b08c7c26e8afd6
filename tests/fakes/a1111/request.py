"""A txt2img body read as A1111's pydantic 1 model reads it, and the error bodies of its API."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fakes.recorded import recorded

Params = dict[str, Any]

# Every other field is Optional in A1111's model: null passes here, and fails later or not at all.
NOT_NULLABLE = {"sampler_index", "script_args", "send_images", "save_images", "alwayson_scripts"}


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


def invalid(loc: list[str | int], msg: str, kind: str) -> ApiError:
    """FastAPI's validation answer with one complaint."""
    return ApiError(422, {"detail": [{"loc": loc, "msg": msg, "type": kind}]})


def _integer(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else int(value)


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
        return list(value)
    raise TypeError


class Coercion(NamedTuple):
    """How one JSON type is read, and the message if it cannot be."""

    read: Callable[[Any], Any]
    msg: str
    kind: str


COERCIONS = {
    "integer": Coercion(_integer, "value is not a valid integer", "type_error.integer"),
    "number": Coercion(float, "value is not a valid float", "type_error.float"),
    "string": Coercion(_string, "str type expected", "type_error.str"),
    "boolean": Coercion(_boolean, "value could not be parsed to a boolean", "type_error.bool"),
    "array": Coercion(_array, "value is not a valid list", "type_error.list"),
    "object": Coercion(dict, "value is not a valid dict", "type_error.dict"),
}
SCHEMA = recorded("openapi")["components"]["schemas"]["StableDiffusionProcessingTxt2Img"][
    "properties"
]


def _coerce(value: Any, kind: str, loc: list[str | int]) -> Any:
    coercion = COERCIONS[kind]
    try:
        return coercion.read(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(loc, coercion.msg, coercion.kind) from error


def _read_field(name: str, value: Any) -> Any:
    schema = SCHEMA[name]
    loc: list[str | int] = ["body", name]
    if value is None:
        if name in NOT_NULLABLE:
            raise invalid(loc, "none is not an allowed value", "type_error.none.not_allowed")
        return None
    read = _coerce(value, schema["type"], loc)
    item_type = schema.get("items", {}).get("type")
    if item_type:
        return [_coerce(item, item_type, [*loc, index]) for index, item in enumerate(read)]
    return read


def read_request(body: Any) -> Params:
    """Every txt2img field, from the body or by default; unknown fields are dropped."""
    if body is None:
        raise invalid(["body"], "field required", "value_error.missing")
    sent = _coerce(body, "object", ["body"])
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
