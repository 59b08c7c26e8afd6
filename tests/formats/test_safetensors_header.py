"""A safetensors header from a file's first bytes, judged as the safetensors library judges it."""

import contextlib
import json
import struct

import numpy as np
import pytest
from fakes.model_files import BITS, entries, framed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from worker.errors import JobError, ModelFileInvalid, ModelNotSupported, ModelUnsafe
from worker.formats.architecture import detect
from worker.formats.safetensors_header import (
    Header,
    Tensor,
    check_pickle,
    header_length,
    parse_header,
    refuse_foreign,
)

ONE = entries({"w": (1,)})


def short(value):
    """A parameter in a test's name: bytes would fill the screen."""
    return value if isinstance(value, str) else ""


def damaged(**changes):
    return framed({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


def test_a_header_gives_shapes_metadata_and_the_size_of_the_whole_file():
    start = framed(entries({"a": (2, 3), "b": ()}, "F32") | {"__metadata__": {"k": "v"}})
    tensors = {"a": Tensor("F32", (2, 3)), "b": Tensor("F32", ())}
    expected = Header(tensors, {"k": "v"}, len(start), len(start) + 28)
    assert parse_header(start + b"data that is not read") == expected
    assert header_length(start[:7]) is None
    assert header_length(start[:8]) == header_length(start) == len(start)


@pytest.mark.parametrize("dtype", BITS)
def test_the_size_of_a_file_follows_from_its_dtypes(dtype):
    header = parse_header(framed(entries({"w": (4, 8)}, dtype)))
    assert header.size - header.data_start == 32 * BITS[dtype] // 8


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "empty"),
        (b"\x10\x00\x00", "ends inside its header"),
        (framed({})[:-1], "ends inside its header"),
        (struct.pack("<Q", 16_000_001) + b"{}", "header of 16000001 bytes is too long"),
        (struct.pack("<Q", 2**63) + b"{}", "is too long"),
        (framed(b"{nonsense"), "not JSON"),
        (framed(b'{"a": NaN}'), "not JSON"),
        (framed(b'{"\xff": {}}'), "not JSON"),
        (framed(b"[" * 100_000), "not JSON"),
        (framed(b"[]"), "not an object"),
        (framed(b'{"__metadata__": {"a": "1", "a": "2"}}'), "duplicate names"),
        (framed({"__metadata__": []}), "metadata is not an object"),
        (framed({"__metadata__": {"a": 1}}), "is not text"),
        (framed({"w": []}), "'w' is not a tensor"),
        (framed({"w": {"dtype": "F32", "shape": [1]}}), "'w' is not a tensor"),
        (damaged(data_offsets=[0]), "'w' is not a tensor"),
        (damaged(shape="2"), "'w' is not a tensor"),
        (damaged(dtype="F31"), "invalid dtype"),
        (damaged(shape=[2.0]), "invalid dtype, shape"),
        (damaged(shape=[True, 2]), "invalid dtype, shape"),
        (damaged(shape=[-1, -2]), "invalid dtype, shape"),
        (damaged(shape=[2**64, 0], data_offsets=[0, 0]), "invalid dtype, shape"),
        (damaged(shape=[2**40, 2**40]), "too large"),
        (damaged(shape=[1]), "does not match its shape"),
        (damaged(shape=[3]), "does not match its shape"),
        (damaged(data_offsets=[8, 0]), "does not match its shape"),
        # torch 2.1.2 and safetensors 0.4.2, which A1111 has, cannot load these
        *((damaged(dtype=dtype), "invalid dtype") for dtype in ("F4", "F8_E8M0", "U16", "C64")),
        (framed(b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [-0, 4]}}'), "offset"),
        (framed({"\ud800": ONE["w"]}), "not Unicode"),
        (framed({"__metadata__": {"a": "\udfff"}}), "not Unicode"),
        (damaged(shape=[1] * 17), "'w' has 17 axes"),
        (framed({"n" * 1001: ONE["w"]}), "a name has 1001 characters"),
        (framed(entries({f"t{n}": () for n in range(30_001)})), "it has 30001 tensors"),
        (framed(b'{"a": [' + b"[]," * 1_000_000 + b"[]]}"), "it has 1000004 values"),
        (damaged(data_offsets=[8, 16]), "does not begin where"),
        (framed({name: entries({"w": (2,)})["w"] for name in "ab"}), "'b' does not begin where"),
    ],
    ids=short,
)
def test_a_damaged_header_is_rejected_with_the_position(start, message):
    with pytest.raises(ModelFileInvalid, match=message):
        parse_header(start)


PICKLES = [
    b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94",
    b"\x80\x05\x95\x10\x01\x00\x00\x00\x00\x00\x00}\x94",
]
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in &amp; go\n on</title></head>"


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (PAGE, ModelFileInvalid, "is a web page, not a model: 'Sign in & go on'"),
        (b"<html>", ModelFileInvalid, "is a web page"),
        (b"<html><body>Not here</body>", ModelFileInvalid, "'<html><body>Not here</body>'"),
        (b"\xef\xbb\xbf\r\n <html><title> </title>", ModelFileInvalid, "is a web page"),
        ("<html><title>Zugriff für äöü</title>".encode(), ModelFileInvalid, "für äöü"),
        (b'{"error":"Unauthorized"}', ModelFileInvalid, "is a JSON text, .*Unauthorized"),
        (b"version https://git-lfs.github.com/spec/v1\n", ModelFileInvalid, "is a text, .*git-lfs"),
        (b"Entry not found", ModelFileInvalid, "is a text, .*Entry not found"),
        *((start, ModelUnsafe, "pickle") for start in PICKLES),
        (b"GGUF\x03\x00\x00\x00\x10\x00", ModelNotSupported, "GGUF"),
    ],
    ids=short,
)
def test_another_format_is_rejected_by_name_before_the_header_is_complete(start, error, message):
    for look in (refuse_foreign, header_length, parse_header):
        with pytest.raises(error, match=message):
            look(start)


def test_only_the_beginning_of_a_web_page_is_searched_for_its_title():
    """A host decides how long it is, and a search can take the square of that."""
    for padding, title in ((b"", "here"), (b" " * 4096, "")):
        with pytest.raises(ModelFileInvalid) as refused:
            refuse_foreign(b"<html>" + padding + b"<title>here</title>" + b"<title" * 40_000)
        assert refused.value.details["excerpt"] == (title or "<html>")


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (b"", ModelFileInvalid, "empty"),
        (PAGE, ModelFileInvalid, "web page, .*'Sign in & go on'"),
        (b"GGUF\x03\x00\x00\x00", ModelNotSupported, "GGUF"),
        (b"\x80\x02\0\0\0\0\0\0{}", ModelFileInvalid, "but is not one"),
        (b"\x80\x06\0\0\xff\0", ModelFileInvalid, "but is not one"),
        (b"\x80", ModelFileInvalid, "but is not one"),
        (b"PK\x05\x06" + bytes(18), ModelFileInvalid, "but is not one"),
    ],
    ids=short,
)
def test_another_format_with_a_pickles_suffix_is_rejected(start, error, message):
    for pickle in PICKLES:
        check_pickle(pickle)
    with pytest.raises(error, match=message):
        check_pickle(start)


@pytest.mark.parametrize("length", [0x3C, 0x5B, 0x7B, 0x0280, 0x0380, 0x0480, 0x0580, 0x2020])
def test_a_length_that_begins_like_another_format_is_a_length(length):
    text = json.dumps(ONE).encode()
    start = framed(text.ljust(length) if len(text) <= length else b"{}".ljust(length))
    for known in range(1, len(start)):
        refuse_foreign(start[:known])
    assert header_length(start) == 8 + length
    parse_header(start)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
odd_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*BITS, "X", 1]),
        "shape": st.lists(st.integers(-1, 9) | st.sampled_from([2**40, 2**64, 1.0]), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 20), min_size=1, max_size=3),
        "more": json_values,
    },
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), odd_entries | json_values))
def test_any_object_is_a_header_or_one_of_our_errors(document):
    try:
        header = parse_header(framed(document))
    except ModelFileInvalid:
        return
    assert detect(header).role in {None, "embedding"}


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_one_of_our_errors(start):
    for look in (parse_header, header_length, refuse_foreign, check_pickle):
        with contextlib.suppress(JobError):
            look(start)


def files(smallest):
    """Files that safetensors writes, whose axes have at least `smallest` elements."""
    axes = st.lists(st.integers(smallest, 3), max_size=3)
    dtypes = st.sampled_from(["float32", "float16", "int64", "uint8", "bool"])
    arrays = st.builds(np.zeros, axes, dtypes)
    tensors = st.dictionaries(st.text(max_size=4), arrays, max_size=4)
    metadata = st.dictionaries(st.text(max_size=3), st.text(max_size=3), min_size=1, max_size=1)
    return st.builds(save, tensors, st.none() | metadata)


def our_verdict(data):
    with contextlib.suppress(JobError):
        header = parse_header(data)
        if header.size == len(data):
            return {name: one.shape for name, one in header.tensors.items()}, header.metadata
    return None


def their_verdict(path):
    with contextlib.suppress(SafetensorError), safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        return shapes, file.metadata() or {}
    return None


def compare(folder, data):
    """Both verdicts, which must be the same."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    verdict = our_verdict(data)
    assert verdict == their_verdict(path)
    return verdict


one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@one_folder
@given(data=files(smallest=0))
def test_a_file_that_safetensors_writes_is_read_alike(tmp_path, data):
    assert compare(tmp_path, data) is not None


def changed(data, place, new, cut):
    place %= len(data) + 1
    return data[:place] + new + data[place + cut :]


# Without empty tensors: a name that the change doubles leaves a gap, which both reject.
changed_files = st.builds(
    changed, files(smallest=1), st.integers(0, 300), st.binary(max_size=2), st.integers(0, 2)
).filter(len)


@one_folder
@given(data=changed_files)
def test_a_changed_file_is_rejected_if_safetensors_rejects_it(tmp_path, data):
    compare(tmp_path, data)


@pytest.mark.long
@settings(one_folder, max_examples=3000)
@given(data=changed_files)
def test_many_changed_files_are_rejected_if_safetensors_rejects_them(tmp_path, data):
    compare(tmp_path, data)


def tensor(shape, end, dtype="U8", begin=0, **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


ODD = [
    {},
    b' {"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}  ',
    {"__metadata__": None},
    {"__metadata__": {}},
    {"__metadata__": {"a": 1}},
    {"w": tensor([], 1, more=[1])},
    {"w": tensor([True], 1)},
    {"w": tensor([1.0], 1)},
    {"w": tensor([2**40, 2**40, 0], 0)},
    {"w": tensor([0, 2**40, 2**40], 0)},
    {"w": tensor([0, 2**64], 0)},
    {"w": tensor([1], 1) | {"data_offsets": [0, 1, 2]}},
    {"b": tensor([1], 1), "a": tensor([0], 0)},
]


@pytest.mark.parametrize("document", ODD)
def test_odd_headers_are_judged_alike(tmp_path, document):
    parsed = json.loads(document) if isinstance(document, bytes) else document
    ends = [v["data_offsets"][1] for k, v in parsed.items() if k != "__metadata__"]
    compare(tmp_path, framed(document) + bytes(max(ends, default=0)))
