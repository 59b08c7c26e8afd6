"""The field `s3Config` of RunPod's request, beside `input`: the caller's own bucket. Pure.

    {"accessId": "...", "accessSecret": "...", "bucketName": "pictures",
     "endpointUrl": "https://s3.eu-west-1.amazonaws.com"}

Both keys are secrets: no message, log line or file contains them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from pydantic import SecretStr

from worker.config import bucket_address
from worker.config.bucket_address import BucketAccess
from worker.errors import InvalidInput
from worker.shown import shown_name

FIELDS = ("accessId", "accessSecret", "bucketName", "endpointUrl")
_SECRETS = FIELDS[:2]
_NAMES = bucket_address.Names("s3Config.endpointUrl", "s3Config.bucketName")
_LONGEST = {"accessId": 512, "accessSecret": 2048, "bucketName": 255, "endpointUrl": 2048}
_MOST_FIELDS = 50
_SHORTEST_KEY = 8  # characters
# Another character in a header would cause an error whose text contains the secret.
_ONE_WORD = re.compile(r"[!-~]+")

# Names that other programs have for these fields, in small letters without `_` and `-`.
_OTHER_NAMES = {
    **dict.fromkeys(("accesskey", "accesskeyid", "awsaccesskeyid", "keyid"), "accessId"),
    **dict.fromkeys(
        ("secret", "secretkey", "secretaccesskey", "awssecretaccesskey", "accesskeysecret"),
        "accessSecret",
    ),
    **dict.fromkeys(("bucket", "name"), "bucketName"),
    **dict.fromkeys(("endpoint", "url"), "endpointUrl"),
    **{name.lower(): name for name in FIELDS},
}
_HINT = (
    'Send "s3Config": {"accessId": ..., "accessSecret": ..., "bucketName": ..., "endpointUrl":'
    ' "https://..."} beside `input`, or leave it out.'
)


def read(given: object) -> BucketAccess | None:
    """Check a job's `s3Config`; None if the job has none, or one without any value.

    Raises:
        InvalidInput: names the fields that are missing or wrong, without any secret.
    """
    if given is None or given == "":
        return None
    if not isinstance(given, Mapping):
        raise InvalidInput(f"s3Config is a {type(given).__name__}, not an object.", hint=_HINT)
    if len(given) > _MOST_FIELDS:
        raise InvalidInput(f"s3Config has {len(given)} fields.", hint=_HINT)
    values = {str(name): value for name, value in given.items() if not _is_blank(value)}
    if not values:  # RunPod may add the field without values
        return None
    if problems := list(_problems(values)):
        raise InvalidInput(f"{_without(_keys(values), '; '.join(problems))}.", hint=_HINT)
    key_id, secret, name, url = (values[field].strip() for field in FIELDS)
    try:
        address = bucket_address.read(url, name, names=_NAMES)
    except ValueError as error:
        raise InvalidInput(f"{_without((key_id, secret), str(error))}.", hint=_HINT) from None
    return BucketAccess(address, SecretStr(key_id), SecretStr(secret))


def _keys(values: Mapping[str, object]) -> list[str]:
    """Both keys, if they are long enough for one: a message may have a short text by chance."""
    keys = (values.get(name) for name in _SECRETS)
    return [one.strip() for one in keys if isinstance(one, str) and len(one) >= _SHORTEST_KEY]


def _without(secrets: Iterable[str], text: str) -> str:
    """The text without the keys, which a caller may have put into another place as well."""
    for secret in secrets:
        for shown in {secret, repr(secret)[1:-1]}:
            text = text.replace(shown, "***")
    return text


def secrets_of(given: object) -> list[str]:
    """The values of a job's unchecked `s3Config` that must never be logged.

    Fields with a wrong name count too: they may be a key.
    """
    if not isinstance(given, Mapping) or len(given) > _MOST_FIELDS:
        return []
    longest = _LONGEST["accessSecret"]
    return [
        value.strip()
        for name, value in given.items()
        if isinstance(value, str) and name not in FIELDS[2:] and len(value) <= longest
    ]


def _problems(values: Mapping[str, object]) -> Iterator[str]:
    missing = [f"s3Config.{field}" for field in FIELDS if field not in values]
    if missing:
        yield f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    for name, value in values.items():
        yield from _problems_of(name, value)


def _problems_of(name: str, value: object) -> Iterator[str]:
    if name not in FIELDS:
        yield f"s3Config.{shown_name(name)} {_instead_of(name)}"
    elif not isinstance(value, str):
        yield f"s3Config.{name} is a {type(value).__name__}, not a text"
    elif len(value) > _LONGEST[name]:
        yield f"s3Config.{name} has {len(value)} characters, more than {_LONGEST[name]}"
    elif name in _SECRETS and not _ONE_WORD.fullmatch(value.strip()):
        yield f"s3Config.{name} must be one word of printable ASCII characters"


def _instead_of(name: str) -> str:
    folded = name[:100].lower().replace("_", "").replace("-", "").removeprefix("bucket") or "bucket"
    if folded == "region":
        return "is not a field: the region is read from the host of endpointUrl"
    known = _OTHER_NAMES.get(folded)
    return f"is not a field (did you mean `{known}`?)" if known else "is not a field"


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
