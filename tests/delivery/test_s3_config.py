"""The field `s3Config` beside a job's input: what is understood, and what is refused."""

import pytest
from fakes.hosts.bucket import KEY_ID, NAME, SECRET
from hypothesis import given
from hypothesis import strategies as st

from worker.config.bucket_address import BucketAddress
from worker.delivery.s3_config import FIELDS, read, secrets_of
from worker.errors import InvalidInput

AWS = "https://s3.eu-west-1.amazonaws.com"
WHOLE = dict(zip(FIELDS, (KEY_ID, SECRET, NAME, AWS), strict=True))
BLANK = [None, {}, "", dict.fromkeys(FIELDS, ""), dict.fromkeys(FIELDS), {"accessId": " \n"}]


@pytest.mark.parametrize("blank", BLANK, ids=str)
def test_a_field_without_values_is_as_none(blank):
    assert read(blank) is None


@pytest.mark.parametrize(
    ("change", "region"),
    [
        ({}, "eu-west-1"),
        ({"endpointUrl": f" {AWS}/{NAME}/\n", "accessId": f"{KEY_ID}\n"}, "eu-west-1"),
        ({"endpointUrl": f"https://{NAME}.s3.eu-west-1.amazonaws.com"}, "eu-west-1"),
        ({"region": "", "batch": None}, "eu-west-1"),
    ],
    ids=str,
)
def test_a_whole_one_is_a_bucket_with_the_region_of_its_host(change, region):
    found = read(WHOLE | change)
    assert found.address == BucketAddress(AWS, NAME, region, signs_urls=True)
    keys = (found.key_id.get_secret_value(), found.secret.get_secret_value())
    assert keys == (KEY_ID, SECRET)
    assert SECRET not in repr(found)


OTHERS = {"accessKeyId": "accessId", "secret_access_key": "accessSecret", "bucket": "bucketName"}
OTHERS |= {"BUCKET_ENDPOINT_URL": "endpointUrl", "AccessID": "accessId", "access-key": "accessId"}

WRONG = [
    *(({name: ""}, f"s3Config.{name} is missing") for name in FIELDS),
    ({"accessId": None, "bucketName": " "}, "s3Config.accessId, s3Config.bucketName are missing"),
    *(({name: 5}, f"s3Config.{name} is a int, not a text") for name in FIELDS),
    *(({name: "x" * 10_000}, f"s3Config.{name} has 10000 characters") for name in FIELDS),
    ({"accessId": f"{KEY_ID} x"}, "s3Config.accessId must be one word"),
    ({"accessSecret": f"{SECRET}\r\nX: y"}, "s3Config.accessSecret must be one word"),
    *(({theirs: SECRET}, f"did you mean `{ours}`?") for theirs, ours in OTHERS.items()),
    ({"region": "eu"}, "the region is read from the host of endpointUrl"),
    ({"prefix": "x"}, "s3Config.prefix is not a field"),
    ({"endpointUrl": "s3.example"}, "s3Config.endpointUrl must look like https://"),
    ({"endpointUrl": "https://me:5ecret@s3.example"}, "s3Config.endpointUrl can have a host and"),
    ({"endpointUrl": "https://s3.example?sig=5ecret"}, "s3Config.endpointUrl can have a host and"),
    ({"endpointUrl": f"{AWS}/other"}, "s3Config.endpointUrl and s3Config.bucketName name two"),
    ({"bucketName": "../x"}, "cannot be the name of a bucket"),
    ({"bucketName": SECRET}, "'***' cannot be the name of a bucket"),
    ({f"x{SECRET}": 1}, "s3Config.x*** is not a field"),
    *((value, "not an object") for value in ([1], "text", 5, True)),
    ({str(number): 1 for number in range(60)}, "s3Config has 64 fields"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda one: str(one)[:50])
def test_a_wrong_one_is_refused_with_its_field_and_without_secrets(change, message):
    with pytest.raises(InvalidInput) as raised:
        read(WHOLE | change if isinstance(change, dict) else change)
    assert message in str(raised.value)
    for secret in (KEY_ID, SECRET, "5ecret"):
        assert secret not in f"{raised.value}{raised.value.details}"
    assert len(str(raised.value)) < 1000


VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.just(SECRET)
CONFIGS = st.dictionaries(st.sampled_from(FIELDS) | st.text(), VALUES)


@given(st.one_of(VALUES, st.lists(VALUES), CONFIGS, CONFIGS.map(lambda one: WHOLE | one)))
def test_whatever_is_sent_is_understood_or_refused_in_short(sent):
    found = error = None
    try:
        found = read(sent)
    except InvalidInput as refused:
        error = str(refused)
    if error is None:
        assert found is None or found.address.endpoint.startswith("http")
    else:
        is_a_name = isinstance(sent, dict) and SECRET in sent
        assert SECRET not in error or is_a_name
        assert error.isprintable()


def test_the_log_must_hide_the_keys_and_what_may_be_one():
    sent = WHOLE | {"secretKey": f" {SECRET}x\n", "port": 5}
    assert secrets_of(sent) == [KEY_ID, SECRET, f"{SECRET}x"]
    assert [secrets_of(one) for one in (None, "x", [SECRET])] == [[], [], []]
