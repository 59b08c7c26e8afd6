"""Every way to name a model: how it is read, what is refused, and that secrets stay hidden."""

import hashlib
import string
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.errors import InvalidInput
from worker.job.reference import (
    CivitAIModel,
    CivitAIVersion,
    HuggingFaceFile,
    Sha256,
    StoreName,
    WebFile,
    parse_reference,
    reference_from_fields,
)

DIGEST = "0123456789abcdef" * 4
COMMIT = "0123456789abcdef" * 2 + "01234567"
SECRET = "hunter2hunter2"
BIGGEST = 2**63 - 1

FORMS = {
    CivitAIVersion(2514310): ["2514310", "urn:air:sdxl:checkpoint:civitai:827184@2514310"],
    CivitAIVersion(7): ["  007\n"],
    CivitAIVersion(BIGGEST): [str(BIGGEST)],
    Sha256(DIGEST): [
        *(DIGEST, DIGEST.upper(), f"sha256:{DIGEST}", f"SHA256:{DIGEST.upper()}"),
        f"https://civitai.com/api/v1/model-versions/by-hash/{DIGEST.upper()}",
    ],
    Sha256("1" * 64): ["1" * 64],
    StoreName("dreamshaper_8.safetensors"): [
        *("dreamshaper_8.safetensors", "dreamshaper_8.safetensors [879db523c3]"),
    ],
    StoreName("dreamshaper_8"): ["dreamshaper_8", "dreamshaper_8 [879db523c3] [879DB523C3]"],
    StoreName("style [v2]"): ["style [v2]"],
    StoreName("[879db523c3]"): ["[879db523c3]"],
    StoreName("a: b, c (d).safetensors"): ["a: b, c (d).safetensors"],
    StoreName("123456.safetensors"): ["123456.safetensors"],
    StoreName("١٢٣"): ["١٢٣"],
    StoreName("my civitai: best.safetensors"): ["my civitai: best.safetensors"],
    StoreName("絵本風.safetensors"): ["絵本風.safetensors"],
    CivitAIModel(827184): [
        *("https://civitai.com/models/827184", "https://civitai.com/models/827184/"),
        "https://civitai.com/models/827184/wai-illustrious-sdxl",
        "https://civitai.com/models/827184/slug/#comments",
    ],
    CivitAIVersion(2): [
        "https://civitai.com/models/1/x?modelVersionId=2",
        "https://civitai.com/models/1?foo=3&modelVersionId=2#top",
        *("civitai.com/models/1?modelVersionId=2", "https://civitai.com/model-versions/2"),
        "https://civitai.com/api/download/models/2",
        "https://api.civitai.com/api/v1/model-versions/2",
        *("https://civitai.com/api/v1/model-versions/mini/2", "air:sd1:lora:civitai:1@2"),
        *("sdxl:lora:civitai:1@2", "CivitAI:1@2", "URN:AIR:SDXL:LORA:CIVITAI:1@2.SafeTensor"),
        "civitai:1@2.safetensor",
    ],
    CivitAIModel(1): [
        *("https://civitai.com/models/1?modelVersionId=", "http://civitai.com/models/1"),
        *("civitai.com/models/1", "HTTPS://Www.CivitAI.Com:443/models/1"),
        *("https://civitai.com./models/1", "https://civitai.red/models/1"),
        *("www.civitai.green/models/1", "https://civitai.com/api/v1/models/1", "civitai:1"),
        "civitai:1.safetensor",
    ],
    CivitAIVersion(2, 3): [
        "https://civitai.com/api/download/models/2?fileId=3",
        "https://civitai.com/api/v1/model-versions/mini/2?modelFileId=3",
        "civitai:1@2+3.safetensor",
    ],
    CivitAIVersion(
        2, filters=(("format", "SafeTensor"), ("fp", "fp16"), ("size", "pruned"), ("type", "Model"))
    ): [
        "https://civitai.com/api/download/models/2?type=Model&size=pruned&format=SafeTensor&fp=fp16",
    ],
    CivitAIVersion(2, filters=(("quantType", "Q4_K_M"), ("type", "Text Encoder"))): [
        "https://civitai.com/api/download/models/2?type=Text+Encoder&quantType=Q4_K_M",
    ],
    CivitAIVersion(2514310, 2402203): [
        "urn:air:sdxl:checkpoint:civitai:827184@2514310+2402203",
        "civitai:827184@2514310+2402203",
    ],
    HuggingFaceFile("org/repo", "a/b.safetensors"): [
        "urn:air:sdxl:vae:huggingface:org/repo/a/b.safetensors",
    ],
    HuggingFaceFile("org/repo", "b.safetensors", "v1"): ["huggingface:org/repo@v1/b.safetensors"],
    HuggingFaceFile("org/repo", "a/b.safetensors", "v1.0"): [
        "huggingface:org/repo/a/b.safetensors@v1.0",
    ],
    HuggingFaceFile("org/repo", "b.safetensors", "refs/pr/1"): [
        "huggingface:org/repo/b.safetensors@refs/pr/1",
    ],
    HuggingFaceFile("org/repo", "a.safetensors"): [
        "https://huggingface.co/org/repo/resolve/main/a.safetensors?download=true",
        "org/repo/a.safetensors",
    ],
    HuggingFaceFile("org/repo", "vae/a.safetensors"): [
        "https://huggingface.co/org/repo/blob/main/vae/a.safetensors",
    ],
    HuggingFaceFile("org/repo", "a.bin", "fp16"): [
        "http://www.huggingface.co/org/repo/raw/fp16/a.bin",
    ],
    HuggingFaceFile("org/repo-1.5_x", "a.safetensors"): [
        "hf.co/org/repo-1.5_x/resolve/main/a.safetensors#readme",
    ],
    HuggingFaceFile("org/repo", "a b%.safetensors", "refs/pr/1"): [
        "https://huggingface.co/org/repo/resolve/refs%2Fpr%2F1/a%20b%25.safetensors",
    ],
    HuggingFaceFile("org/repo", "a.safetensors", "refs/pr/1"): [
        "https://huggingface.co/org/repo/resolve/refs/pr/1/a.safetensors",
    ],
    HuggingFaceFile("org/repo", "a.safetensors", COMMIT): [f"hf://org/repo@{COMMIT}/a.safetensors"],
    HuggingFaceFile("org/repo", "folder/config"): ["hf://org/repo/folder/config"],
    HuggingFaceFile("org/repo", "a.pt"): ["HF://models/org/repo/a.pt"],
    HuggingFaceFile("org/repo", "a.safetensors", "feature/x"): [
        "hf://org/repo@feature%2Fx/a.safetensors",
    ],
    HuggingFaceFile("org/repo", "my file@1.CKPT"): ["org/repo/my file@1.CKPT"],
    HuggingFaceFile("org/repo", "sub/a.gguf", "v2"): ["org/repo@v2/sub/a.gguf"],
    HuggingFaceFile("org/repo", "a.pth", "refs/convert/x"): ["org/repo@refs/convert/x/a.pth"],
    WebFile("https://example.com:8443/A/b.pt"): ["HTTPS://Example.COM:8443/A/b.pt#part"],
    WebFile("https://example.com/a"): ["https://example.com/a?#x"],
    WebFile("https://[2001:db8::1]:80/a"): ["https://[2001:DB8::1]:80/a"],
}
UNCHANGED = [
    "https://example.com/a.safetensors",
    "http://example.com",
    "https://example.com/a?X-Sig=a%2Fb&x=",
    "https://example.com?a=b@c",
    "https://10.0.0.1/a",
    "https://civitai.com:8080/models/1",
    "https://civitai.work/models/1",
    "https://notcivitai.com/models/1",
    "https://civitai.com.evil.io/models/1",
    "https://evil.io/civitai.com/models/1",
]


@pytest.mark.parametrize(
    ("text", "ref"),
    [(text, ref) for ref, texts in FORMS.items() for text in texts]
    + [(text, WebFile(text)) for text in UNCHANGED],
)
def test_text_is_read(text, ref):
    assert parse_reference(text) == ref
    assert parse_reference(str(ref)) == ref


CANONICAL_FORMS = [
    (CivitAIVersion(2), "https://civitai.com/api/download/models/2"),
    (
        CivitAIVersion(2, 3, (("format", "Core ML"), ("type", "Model"))),
        "https://civitai.com/api/download/models/2?fileId=3&format=Core%20ML&type=Model",
    ),
    (CivitAIModel(1), "https://civitai.com/models/1"),
    (
        HuggingFaceFile("org/repo", "a/b.safetensors"),
        "https://huggingface.co/org/repo/resolve/main/a/b.safetensors",
    ),
    (
        HuggingFaceFile("org/repo", "a b/c?#%.pt", "refs/pr/1"),
        "https://huggingface.co/org/repo/resolve/refs%2Fpr%2F1/a%20b/c%3F%23%25.pt",
    ),
    (WebFile("https://example.com/a?b=c"), "https://example.com/a?b=c"),
    (Sha256(DIGEST), f"sha256:{DIGEST}"),
    (StoreName("a b.safetensors"), "a b.safetensors"),
]


@pytest.mark.parametrize(("ref", "canonical"), CANONICAL_FORMS)
def test_a_reference_has_one_canonical_form(ref, canonical):
    assert str(ref) == canonical
    assert parse_reference(canonical) == ref
    assert ref.key == hashlib.sha256(canonical.encode()).hexdigest()
    assert ref.shown == canonical.partition("?b=")[0]
    assert ref.has_secret is (ref.shown != canonical)


MOVING = [
    (CivitAIVersion(2), False),
    (CivitAIModel(1), True),
    (HuggingFaceFile("org/repo", "a.pt"), True),
    (HuggingFaceFile("org/repo", "a.pt", COMMIT[:39]), True),
    (HuggingFaceFile("org/repo", "a.pt", COMMIT), False),
    (WebFile("https://example.com/a"), True),
    (Sha256(DIGEST), False),
    (StoreName("a"), False),
]


@pytest.mark.parametrize(("ref", "is_moving"), MOVING)
def test_some_references_can_mean_another_file_tomorrow(ref, is_moving):
    assert ref.is_moving is is_moving


REFUSED = {
    "is empty": ["", " \n "],
    "control character": [
        "a\x00b",
        "a\nb",
        "a\u202eb",
    ],  # the last one would reverse a line of a log
    "half a character": ["a\ud83d"],
    "nor a file name of up to 255": ["a" * 256],
    "longer than 4096": ["a" * 4097],
    "not text but NoneType": [None],
    "not text but int": [12],
    "not text but bytes": [b"a"],
    "id from 1 to": [
        *("0", str(BIGGEST + 1), "1" * 4096, "https://civitai.com/models/0", "civitai:1@0"),
    ],
    "64 hex digits": ["sha256:abc", "sha256:", f"sha256:{DIGEST}0"],
    "nor a file name": [
        *(".", "..", "sub/a.safetensors", "/models/a.safetensors", "../../etc/passwd"),
        *("C:\\models\\a.safetensors", "civitai.work/models/1", "org/repo/a.txt"),
        *("example.com/models/a.safetensors", "//example.com/a"),
    ],
    "another form": ["123 [879db523c3]"],
    "names no model": [
        *("https://civitai.com", "civitai.com", "https://civitai.com/images/1"),
        *("https://civitai.com/posts/1", "https://civitai.red/user/someone/models"),
        *("https://civitai.com/models/abc", "https://civitai.com/models/1/slug/more"),
        "https://civitai.com/api/download/attachments/1",
        "https://civitai.com/api/v1/model-versions/by-hash/abcdef1234",
        *("https://huggingface.co/org/repo", "https://huggingface.co/org/repo/tree/main"),
        "https://huggingface.co/org/repo/resolve/main/",
        "https://huggingface.co/datasets/org/repo",
    ],
    "not a number": [
        "https://civitai.com/models/1?modelVersionId=x",
        "https://civitai.com/api/download/models/1?fileId=-1",
    ],
    "or two": ["https://civitai.com/models/1?modelVersionId=2&modelVersionId=3"],
    "filter": [
        "https://civitai.com/api/download/models/1?type=a&type=b",
        "https://civitai.com/api/download/models/1?type=%00",
    ],
    "AIR of orchestrator": ["urn:air:sdxl:lora:orchestrator:1@2"],
    "AIR of civitai-r2": ["urn:air:sdxl:lora:civitai-r2:bucket@file"],
    "AIR of civitai": [
        *("air:lora:civitai:", "civitai:abc@1", "civitai:1@latest", "civitai:1@2.5"),
        "civitai:1+3",
    ],
    "AIR of huggingface": [
        *("huggingface:org/repo", "huggingface:org/repo@main", "huggingface:org/repo/folder"),
    ],
    "'datasets/org/repo' is not": ["https://huggingface.co/datasets/org/repo/resolve/main/a.pt"],
    "'spaces/org/repo' is not": ["https://huggingface.co/spaces/org/repo/resolve/main/a.pt"],
    "'datasets/org' is not a model repository": ["hf://datasets/org/repo/a.pt"],
    "not the path": [
        "https://huggingface.co/org/repo/resolve/main/../a.pt",
        "https://huggingface.co/org/repo/resolve/main/%2e%2e/a.pt",
        "https://huggingface.co/org/repo/resolve/main/a//b.pt",
        "https://huggingface.co/org/repo/resolve/main/a%00.pt",
        "https://huggingface.co/org/repo/resolve/main/a%FF.pt",
        *("https://huggingface.co/org/repo/resolve/../a.pt", "hf://org/repo/../a.pt"),
        "org/repo/../a.pt",
    ],
    "not a model repository": ["https://huggingface.co/or%2Fg/repo/resolve/main/a.pt"],
    "hf:// URL": ["hf://org/repo", "hf://org/repo@main"],
    "s3:// URL": ["s3://bucket/a.safetensors"],
    "file:// URL": ["file:///etc/passwd"],
    "FTP:// URL": ["FTP://example.com/a"],
    "valid host": ["https://", "https:///a", "https://[::1/a", "https://c\u0131vitai.com/models/1"],
    "blank": ["https://a b.com/", "https://example.com/a\xa0b"],
    "valid host and port": [
        *("https://example.com:0/a", "https://example.com:65536/a", "https://example.com:x/a"),
    ],
    "user or password": ["https://example.com\\@evil.io/"],
}


@pytest.mark.parametrize(
    ("text", "fragment"), [(text, key) for key, texts in REFUSED.items() for text in texts]
)
def test_a_text_without_a_known_form_is_refused(text, fragment):
    with pytest.raises(InvalidInput) as refused:
        parse_reference(text)
    assert fragment in refused.value.message
    assert "CivitAI" in refused.value.hint
    assert "\n" not in str(refused.value)
    assert len(refused.value.message) < 250


def test_a_long_text_is_shown_shortened():
    with pytest.raises(InvalidInput, match=r"the model 'x{77}\.\.\.' is"):
        parse_reference("x" * 300)


# The classes refuse these, so that every reference can be written and read again.
INVALID = [
    lambda: CivitAIVersion(0),
    lambda: CivitAIVersion(True),
    lambda: CivitAIVersion(1, 0),
    lambda: CivitAIVersion(1, None, (("token", "x"),)),
    lambda: CivitAIVersion(1, None, (("type", ""),)),
    lambda: CivitAIVersion(1, None, (("type", "\ud800"),)),
    lambda: CivitAIVersion(1, None, (("type", "a"), ("format", "b"))),
    lambda: CivitAIModel(-1),
    lambda: HuggingFaceFile("repo", "a.pt"),
    lambda: HuggingFaceFile("../repo", "a.pt"),
    lambda: HuggingFaceFile("datasets/repo", "a.pt"),
    lambda: HuggingFaceFile("org/repo", "/a.pt"),
    lambda: HuggingFaceFile("org/repo", "a\\b.pt"),
    lambda: HuggingFaceFile("org/repo", "ä" * 1000),  # its URL would be too long
    lambda: HuggingFaceFile("org/repo", "pr/1/a.pt", "refs"),
    lambda: HuggingFaceFile("org/repo", "a.pt", ""),
    lambda: WebFile("https://Example.com/a"),
    lambda: WebFile("https://example.com/a#b"),
    lambda: WebFile("https://u:p@example.com/a"),
    lambda: WebFile("hf.co/org/repo/resolve/main/a.pt"),
    lambda: WebFile("https://example.com/" + "a" * 4096),
    lambda: Sha256(DIGEST.upper()),
    lambda: StoreName(" a"),
    lambda: StoreName("a/b"),
    lambda: StoreName("a [879db523c3]"),
    lambda: StoreName("123"),
    lambda: StoreName(DIGEST),
    lambda: StoreName("civitai:1@2"),
    lambda: StoreName("civitai.com"),
]


@pytest.mark.parametrize("build", INVALID)
def test_no_invalid_reference_can_be_built(build):
    with pytest.raises(InvalidInput):
        build()


TOKENS = [
    f"https://civitai.com/api/download/models/2?token={SECRET}",
    f"https://civitai.com/api/download/models/2?type=Model&token={SECRET}&fileId=3",
    f"civitai.com/models/1?modelVersionId=2&token={SECRET}",
    f"https://civitai.com/api/v1/models/1?token={SECRET}#{SECRET}",
    f"https://huggingface.co/org/repo/resolve/main/a.pt?token={SECRET}",
]


@pytest.mark.parametrize("text", TOKENS)
def test_the_token_in_a_url_of_a_known_site_is_dropped(text):
    ref = parse_reference(text)
    assert SECRET not in f"{ref} {ref!r} {ref.shown} {vars(ref)}"


def test_a_signed_query_is_kept_for_the_download_but_not_shown():
    ref = parse_reference(f"https://example.com/a.pt?sig={SECRET}@x")
    assert SECRET in ref.url
    assert SECRET not in f"{ref!r} {ref.shown} {[ref]}"
    assert ref.shown == "https://example.com/a.pt"
    assert ref.has_secret
    assert not parse_reference(ref.shown).has_secret


REFUSED_WITH_SECRETS = [
    f"https://user:{SECRET}@example.com/a",
    f"https://{SECRET}@example.com/a",
    f"https://user:{SECRET}@civitai.com/models/1",
    f"user:{SECRET}@civitai.com/models/1",
    f"https:/user:{SECRET}@example.com/a",
    f"https://user:pa/{SECRET}@example.com/a",
    f"https://user:{SECRET}?pa@example.com/a",
    f"https://user:{SECRET}#pa@example.com/a",
    f"hf://user:{SECRET}@org/repo/a.pt",
    f"ftp://user:{SECRET}@example.com/a",
    f"s3://bucket/a?X-Amz-Signature={SECRET}",
    f"s3://bucket/a?sig=a@{SECRET}",
    f"https://example.com:99999/a?sig={SECRET}",
    f"https://example.com/a b?sig={SECRET}",
    f"https://civitai.com/images/1?token={SECRET}",
    f"https://civitai.com/api/download/models/1?fileId={SECRET}",
    f"https://civitai.com/api/download/models/1?type=%00{SECRET}",
    f"https://huggingface.co/org/repo?token={SECRET}",
    f"look at https://example.com/a?sig={SECRET}",
]


@pytest.mark.parametrize("text", REFUSED_WITH_SECRETS)
def test_a_refusal_has_no_secrets(text):
    with pytest.raises(InvalidInput) as refused:
        parse_reference(text)
    assert SECRET not in f"{refused.value} {refused.value!r} {refused.value.details}"
    assert refused.value.__context__ is None


NOTHING = dict.fromkeys(["url", "version_id", "air", "sha256", "filename", "name"])
FIELDS = [
    ({"url": "https://civitai.com/models/1"}, CivitAIModel(1)),
    ({"url": "2"}, CivitAIVersion(2)),
    ({"url": "civitai:1@2"}, CivitAIVersion(2)),
    (
        {"url": "https://example.com/a", "sha256": DIGEST, "name": "x"},
        WebFile("https://example.com/a"),
    ),
    ({"version_id": 2, "sha256": DIGEST, "filename": "a.pt"}, CivitAIVersion(2)),
    ({"air": "urn:air:sdxl:lora:civitai:1@2", "filename": "a.pt"}, CivitAIVersion(2)),
    ({"sha256": DIGEST.upper(), "filename": "a.pt", "name": "x"}, Sha256(DIGEST)),
    ({"sha256": f"sha256:{DIGEST}"}, Sha256(DIGEST)),
    ({"filename": "a.pt", "name": "https://example.com/a"}, StoreName("a.pt")),
    ({"filename": "a.pt [879db523c3]"}, StoreName("a.pt")),
    ({"name": "a"}, StoreName("a")),
    ({"name": "https://example.com/a"}, WebFile("https://example.com/a")),
]


@pytest.mark.parametrize(("fields", "ref"), FIELDS)
def test_the_object_form_is_read(fields, ref):
    assert reference_from_fields(**NOTHING | fields) == ref


BAD_FIELDS = [
    ({}, "is not named"),
    ({"url": "2", "version_id": 2}, "two sources"),
    ({"url": "2", "air": "civitai:1"}, "two sources"),
    ({"version_id": 2, "air": "civitai:1"}, "two sources"),
    ({"url": "a.safetensors"}, "is not a URL"),
    ({"url": ""}, "is empty"),
    ({"air": "2"}, "is not an AIR"),
    ({"air": "https://civitai.com/models/1"}, "is not an AIR"),
    ({"version_id": 0}, "id from 1 to"),
    ({"sha256": "abc", "filename": "a.pt"}, "64 hex digits"),
    ({"filename": "https://example.com/a"}, "nor a file name"),
    ({"filename": "123"}, "another form"),
    ({"filename": "../a"}, "nor a file name"),
]


@pytest.mark.parametrize(("fields", "fragment"), BAD_FIELDS)
def test_a_contradictory_object_is_refused(fields, fragment):
    with pytest.raises(InvalidInput) as refused:
        reference_from_fields(**NOTHING | fields)
    assert fragment in refused.value.message


def refs_of(build, *parts):
    """References built from generated parts; parts that the class refuses are left out."""

    def built(values):
        try:
            return build(*values)
        except InvalidInput:
            assume(False)

    return st.tuples(*parts).map(built)


ids = st.integers(1, BIGGEST)
filters = st.dictionaries(
    st.sampled_from(["type", "format", "size", "fp", "quantType"]),
    st.text(string.ascii_letters + string.digits + " ._-", min_size=1, max_size=12),
).map(lambda found: tuple(sorted(found.items())))
words = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12)
paths = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3).map("/".join)
revisions = st.one_of(paths, st.sampled_from(["main", "refs/pr/1", "refs/pr", COMMIT]))
hosts = st.sampled_from(["https://example.com", "http://10.0.0.1:8080", "https://[::1]"])
refs = st.one_of(
    refs_of(CivitAIVersion, ids, st.none() | ids, filters),
    refs_of(CivitAIModel, ids),
    refs_of(HuggingFaceFile, st.tuples(words, words).map("/".join), paths, revisions),
    refs_of(lambda *parts: WebFile("".join(parts)), hosts, st.just("/"), st.text(), st.text()),
    refs_of(lambda data: Sha256(data.hex()), st.binary(min_size=32, max_size=32)),
    refs_of(StoreName, st.text(min_size=1, max_size=40)),
)
FRAGMENTS = [
    *("http://", "https://", "hf://", "s3://", "civitai.com", "huggingface.co", "example.com"),
    *("/models/", "/api/download/models/", "/api/v1/model-versions/", "?modelVersionId=", "?"),
    *("?token=", "&type=", "/resolve/main/", "org/repo", "refs/pr/", "urn:air:", "civitai:"),
    *("huggingface:", "1", "23", "/", "//", "..", "@", "+", ":", "#", "%2F", "%00", "%", "\\"),
    *(".safetensors", " [879db523c3]", " ", "\n", "\x00", "\ud83d", "\ufffd", "[", "]", "\u017f"),
    *("sha256:", DIGEST, DIGEST[:32]),
]
texts = st.one_of(
    st.text(),
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8).map("".join),
    refs.map(str),
    refs.map(lambda ref: quote(str(ref), safe=":/?&=@+")),
)


@given(refs)
def test_every_reference_can_be_written_and_read_again(ref):
    assert parse_reference(str(ref)) == ref
    assert parse_reference(f"  {ref}\n") == ref


@given(texts)
def test_any_text_is_read_or_refused(text):
    with suppress(InvalidInput):
        ref = parse_reference(text)
        assert parse_reference(str(ref)) == ref
        assert len(ref.key) == 64
        assert "\n" not in ref.shown


@given(st.text(string.ascii_letters + ":/?#.%&=", max_size=12), st.sampled_from(hosts.elements))
def test_a_password_is_never_shown(noise, host):
    scheme, _, rest = host.partition("://")
    for url in (f"{scheme}://me:{noise}{SECRET}@{rest}/a", f"ftp://{SECRET}{noise}@{rest}/a"):
        with pytest.raises(InvalidInput) as refused:
            parse_reference(url)
        assert SECRET not in str(refused.value)
