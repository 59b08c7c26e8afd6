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
HF = "https://huggingface.co/org/repo"
DOWNLOAD = "https://civitai.com/api/download/models"
EXAMPLE = "https://example.com/a"


def each(text):
    return text.split()


FILTERED = (("format", "SafeTensor"), ("fp", "fp16"), ("size", "pruned"), ("type", "Model"))
FORMS = {
    CivitAIVersion(2514310): each("2514310 urn:air:sdxl:checkpoint:civitai:827184@2514310"),
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
    StoreName("SDXL/own.safetensors"): each(r"SDXL/own.safetensors SDXL\own.safetensors"),
    StoreName("SD1.5/photo/own"): ["SD1.5/photo/own", "SD1.5/photo/own [879db523c3]"],
    StoreName("dreamshaper_8"): ["dreamshaper_8", "dreamshaper_8 [879db523c3] [879DB523C3]"],
    CivitAIModel(827184): each("""https://civitai.com/models/827184
        https://civitai.com/models/827184/ https://civitai.com/models/827184/wai-illustrious-sdxl
        https://civitai.com/models/827184/slug/#comments"""),
    CivitAIVersion(2): each("""https://civitai.com/models/1/x?modelVersionId=2
        https://civitai.com/models/1?foo=3&modelVersionId=2#top
        civitai.com/models/1?modelVersionId=2 https://civitai.com/model-versions/2
        https://civitai.com/api/download/models/2 https://api.civitai.com/api/v1/model-versions/2
        https://civitai.com/api/v1/model-versions/mini/2 air:sd1:lora:civitai:1@2 CivitAI:1@2
        sdxl:lora:civitai:1@2 URN:AIR:SDXL:LORA:CIVITAI:1@2.SafeTensor civitai:1@2.safetensor"""),
    CivitAIModel(1): each("""https://civitai.com/models/1?modelVersionId= civitai:1
        http://civitai.com/models/1 civitai.com/models/1 HTTPS://Www.CivitAI.Com:443/models/1
        https://civitai.com./models/1 https://civitai.red/models/1 www.civitai.green/models/1
        https://civitai.com/api/v1/models/1 civitai:1.safetensor"""),
    CivitAIVersion(2, 3): each("""https://civitai.com/api/download/models/2?fileId=3
        https://civitai.com/api/v1/model-versions/mini/2?modelFileId=3 civitai:1@2+3.safetensor"""),
    CivitAIVersion(2, filters=FILTERED): [
        "https://civitai.com/api/download/models/2?type=Model&size=pruned&format=SafeTensor&fp=fp16",
    ],
    CivitAIVersion(2, filters=(("quantType", "Q4_K_M"), ("type", "Text Encoder"))): [
        "https://civitai.com/api/download/models/2?type=Text+Encoder&quantType=Q4_K_M",
        "https://civitai.com/api/download/models/2?type=Text+Encoder&amp;quantType=Q4_K_M",
    ],
    CivitAIVersion(2514310, 2402203): each("""civitai:827184@2514310+2402203
        urn:air:sdxl:checkpoint:civitai:827184@2514310+2402203"""),
    WebFile("https://example.com:8443/A/b.pt"): ["HTTPS://Example.COM:8443/A/b.pt#part"],
    WebFile("https://example.com/a"): ["https://example.com/a?#x"],
    WebFile("https://[2001:db8::1]:80/a"): ["https://[2001:DB8::1]:80/a"],
}
HF_FORMS = {  # path and revision in org/repo
    ("a/b.safetensors", "main"): ["urn:air:sdxl:vae:huggingface:org/repo/a/b.safetensors"],
    ("b.safetensors", "v1"): ["huggingface:org/repo@v1/b.safetensors"],
    ("a/b.safetensors", "v1.0"): ["huggingface:org/repo/a/b.safetensors@v1.0"],
    ("b.safetensors", "refs/pr/1"): ["huggingface:org/repo/b.safetensors@refs/pr/1"],
    ("a.safetensors", "main"): [
        *(f"{HF}/resolve/main/a.safetensors?download=true", "org/repo/a.safetensors"),
    ],
    ("vae/a.safetensors", "main"): [f"{HF}/blob/main/vae/a.safetensors"],
    ("a.bin", "fp16"): ["http://www.huggingface.co/org/repo/raw/fp16/a.bin"],
    ("a b%.safetensors", "refs/pr/1"): [f"{HF}/resolve/refs%2Fpr%2F1/a%20b%25.safetensors"],
    ("a.safetensors", "refs/pr/1"): [f"{HF}/resolve/refs/pr/1/a.safetensors"],
    ("a.safetensors", COMMIT): [f"hf://org/repo@{COMMIT}/a.safetensors"],
    ("folder/config", "main"): ["hf://org/repo/folder/config"],
    ("a.pt", "main"): ["HF://models/org/repo/a.pt"],
    ("a.safetensors", "feature/x"): ["hf://org/repo@feature%2Fx/a.safetensors"],
    ("my file@1.CKPT", "main"): ["org/repo/my file@1.CKPT"],
    ("sub/a.gguf", "v2"): ["org/repo@v2/sub/a.gguf"],
    ("a.pth", "refs/convert/x"): ["org/repo@refs/convert/x/a.pth"],
}
FORMS |= {HuggingFaceFile("org/repo", *where): texts for where, texts in HF_FORMS.items()}
FORMS[HuggingFaceFile("org/repo-1.5_x", "a.safetensors")] = [
    "hf.co/org/repo-1.5_x/resolve/main/a.safetensors#readme",
]
FILE_NAMES = [
    *("style [v2]", "[879db523c3]", "a: b, c (d).safetensors", "123456.safetensors", "١٢٣"),
    *("my civitai: best.safetensors", "絵本風.safetensors"),
]
FORMS |= {StoreName(name): [name] for name in FILE_NAMES}
URLS = each("""https://example.com/a.safetensors http://example.com https://10.0.0.1/a
    https://example.com/a?X-Sig=a%2Fb&x= https://example.com?a=b@c https://civitai.work/models/1
    https://civitai.com:8080/models/1 https://notcivitai.com/models/1
    https://civitai.com.evil.io/models/1 https://evil.io/civitai.com/models/1""")
FORMS |= {WebFile(url): [url] for url in URLS}


@pytest.mark.parametrize(
    ("text", "ref"),
    [(text, ref) for ref, texts in FORMS.items() for text in texts],
)
def test_text_is_read(text, ref):
    assert parse_reference(text) == ref
    assert parse_reference(str(ref)) == ref


CANONICAL_FORMS = {
    f"{DOWNLOAD}/2": CivitAIVersion(2),
    f"{DOWNLOAD}/2?fileId=3&format=Core%20ML&type=Model": CivitAIVersion(
        2, 3, (("format", "Core ML"), ("type", "Model"))
    ),
    "https://civitai.com/models/1": CivitAIModel(1),
    f"{HF}/resolve/main/a/b.safetensors": HuggingFaceFile("org/repo", "a/b.safetensors"),
    f"{HF}/resolve/refs%2Fpr%2F1/a%20b/c%3F%23%25.pt": HuggingFaceFile(
        "org/repo", "a b/c?#%.pt", "refs/pr/1"
    ),
    "https://example.com/a?b=c": WebFile("https://example.com/a?b=c"),
    f"sha256:{DIGEST}": Sha256(DIGEST),
    "a b.safetensors": StoreName("a b.safetensors"),
}


@pytest.mark.parametrize(("canonical", "ref"), CANONICAL_FORMS.items())
def test_a_reference_has_one_canonical_form(canonical, ref):
    assert str(ref) == canonical
    assert parse_reference(canonical) == ref
    assert ref.key == hashlib.sha256(canonical.encode()).hexdigest()
    assert ref.shown == canonical.partition("?b=")[0]
    assert ref.has_secret is (ref.shown != canonical)


FIXED = [CivitAIVersion(2), HuggingFaceFile("org/repo", "a.pt", COMMIT), Sha256(DIGEST)]
MOVING = [CivitAIModel(1), WebFile("https://example.com/a"), HuggingFaceFile("org/repo", "a.pt")]
MOVING += [HuggingFaceFile("org/repo", "a.pt", COMMIT[:39])]


def test_some_references_can_mean_another_file_tomorrow():
    assert [ref.is_moving for ref in [*FIXED, StoreName("a"), *MOVING]] == [False] * 4 + [True] * 4


REFUSED = {
    "is empty": ["", " \n "],
    # The last one would reverse a line of a log.
    "control character": ["a\x00b", "a\nb", "a\u202eb"],
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
    "nor a file name": each(r""". .. /models/a.safetensors ../../etc/passwd sub/../a
        C:\models\a.safetensors civitai.work/models/1 sub/a?token=1 //example.com/a
        example.com/models/a.safetensors"""),
    "another form": ["123 [879db523c3]"],
    "names no model": each(f"""https://civitai.com civitai.com https://civitai.com/images/1
        https://civitai.com/posts/1 https://civitai.red/user/someone/models {HF} {HF}/tree/main
        https://civitai.com/models/abc https://civitai.com/models/1/slug/more {HF}/resolve/main/
        https://civitai.com/api/download/attachments/1 https://huggingface.co/datasets/org/repo
        https://civitai.com/api/v1/model-versions/by-hash/abcdef1234"""),
    "not a number": each(f"https://civitai.com/models/1?modelVersionId=x {DOWNLOAD}/1?fileId=-1"),
    "or two": ["https://civitai.com/models/1?modelVersionId=2&modelVersionId=3"],
    "filter": [f"{DOWNLOAD}/1?type=a&type=b", f"{DOWNLOAD}/1?type=%00"],
    "AIR of orchestrator": ["urn:air:sdxl:lora:orchestrator:1@2"],
    "AIR of civitai-r2": ["urn:air:sdxl:lora:civitai-r2:bucket@file"],
    "AIR of civitai": each(
        "air:lora:civitai: civitai:abc@1 civitai:1@latest civitai:1@2.5 civitai:1+3"
    ),
    "AIR of huggingface": each(
        "huggingface:org/repo huggingface:org/repo@main huggingface:org/repo/folder"
    ),
    "'datasets/org/repo' is not": ["https://huggingface.co/datasets/org/repo/resolve/main/a.pt"],
    "'spaces/org/repo' is not": ["https://huggingface.co/spaces/org/repo/resolve/main/a.pt"],
    "'datasets/org' is not a model repository": ["hf://datasets/org/repo/a.pt"],
    "not the path": each(f"""{HF}/resolve/main/../a.pt {HF}/resolve/main/%2e%2e/a.pt
        {HF}/resolve/main/a//b.pt {HF}/resolve/main/a%00.pt {HF}/resolve/main/a%FF.pt
        {HF}/resolve/../a.pt hf://org/repo/../a.pt org/repo/../a.pt"""),
    "not a model repository": ["https://huggingface.co/or%2Fg/repo/resolve/main/a.pt"],
    "hf:// URL": ["hf://org/repo", "hf://org/repo@main"],
    "s3:// URL": ["s3://bucket/a.safetensors"],
    "file:// URL": ["file:///etc/passwd"],
    "FTP:// URL": ["FTP://example.com/a"],
    "valid host": ["https://", "https:///a", "https://[::1/a", "https://c\u0131vitai.com/models/1"],
    "blank": ["https://a b.com/", "https://example.com/a\xa0b"],
    "valid host and port": [f"https://example.com:{port}/a" for port in ("0", "65536", "x")],
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
INVALID = {
    CivitAIVersion: [(0,), (True,), (1, 0)]
    + [
        (1, None, filters)
        for filters in (
            (("token", "x"),),
            (("type", ""),),
            (("type", "\ud800"),),
            (("type", "a"), ("format", "b")),
        )
    ],
    CivitAIModel: [(-1,)],
    HuggingFaceFile: [
        *(("repo", "a.pt"), ("../repo", "a.pt"), ("datasets/repo", "a.pt"), ("org/repo", "/a.pt")),
        ("org/repo", "a\\b.pt"),
        ("org/repo", "ä" * 1000),  # its URL would be too long
        *(("org/repo", "pr/1/a.pt", "refs"), ("org/repo", "a.pt", "")),
    ],
    WebFile: [
        *(("https://Example.com/a",), (f"{EXAMPLE}#b",), ("https://u:p@example.com/a",)),
        *(("hf.co/org/repo/resolve/main/a.pt",), ("https://example.com/" + "a" * 4096,)),
    ],
    Sha256: [(DIGEST.upper(),)],
    StoreName: [
        *((" a",), ("a/../b",), ("a [879db523c3]",), ("123",), (DIGEST,)),
        *(("civitai:1@2",), ("civitai.com",)),
    ],
}


@pytest.mark.parametrize(
    ("kind", "parts"), [(kind, parts) for kind, many in INVALID.items() for parts in many]
)
def test_no_invalid_reference_can_be_built(kind, parts):
    with pytest.raises(InvalidInput):
        kind(*parts)


TOKENS = each(f"""{DOWNLOAD}/2?token={SECRET} {DOWNLOAD}/2?type=Model&token={SECRET}&fileId=3
    civitai.com/models/1?modelVersionId=2&token={SECRET} {HF}/resolve/main/a.pt?token={SECRET}
    https://civitai.com/api/v1/models/1?token={SECRET}#{SECRET}""")


@pytest.mark.parametrize("text", TOKENS)
def test_the_token_in_a_url_of_a_known_site_is_dropped(text):
    ref = parse_reference(text)
    assert SECRET not in f"{ref} {ref!r} {ref.shown} {vars(ref)}"


def test_a_signed_query_is_kept_for_the_download_but_not_shown():
    ref = parse_reference(f"https://example.com/a.pt?sig={SECRET}@x")
    assert SECRET in ref.url
    assert SECRET not in f"{ref!r} {ref.shown} {[ref]}"
    assert (ref.shown, ref.has_secret) == ("https://example.com/a.pt", True)
    assert not parse_reference(ref.shown).has_secret


REFUSED_WITH_SECRETS = each(f"""https://user:{SECRET}@example.com/a https://{SECRET}@example.com/a
    https://user:{SECRET}@civitai.com/models/1 user:{SECRET}@civitai.com/models/1
    https:/user:{SECRET}@example.com/a https://user:pa/{SECRET}@example.com/a
    https://user:{SECRET}?pa@example.com/a https://user:{SECRET}#pa@example.com/a
    hf://user:{SECRET}@org/repo/a.pt ftp://user:{SECRET}@example.com/a
    s3://bucket/a?X-Amz-Signature={SECRET} s3://bucket/a?sig=a@{SECRET}
    https://example.com:99999/a?sig={SECRET} https://civitai.com/images/1?token={SECRET}
    {DOWNLOAD}/1?fileId={SECRET} {DOWNLOAD}/1?type=%00{SECRET} {HF}?token={SECRET}""")
REFUSED_WITH_SECRETS += [
    f"{text}?sig={SECRET}" for text in ("https://example.com/a b", "look at https://example.com/a")
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
    ({"url": EXAMPLE, "sha256": DIGEST, "name": "x"}, WebFile(EXAMPLE)),
    ({"version_id": 2, "sha256": DIGEST, "filename": "a.pt"}, CivitAIVersion(2)),
    ({"air": "urn:air:sdxl:lora:civitai:1@2", "filename": "a.pt"}, CivitAIVersion(2)),
    ({"sha256": DIGEST.upper(), "filename": "a.pt", "name": "x"}, Sha256(DIGEST)),
    ({"sha256": f"sha256:{DIGEST}"}, Sha256(DIGEST)),
    ({"filename": "a.pt", "name": EXAMPLE}, StoreName("a.pt")),
    ({"filename": "a.pt [879db523c3]"}, StoreName("a.pt")),
    ({"name": "a"}, StoreName("a")),
    ({"name": EXAMPLE}, WebFile(EXAMPLE)),
]


@pytest.mark.parametrize(("fields", "ref"), FIELDS)
def test_the_object_form_is_read(fields, ref):
    assert reference_from_fields(**NOTHING | fields) == ref


TWO = [{"url": "2", "version_id": 2}, {"url": "2", "air": "civitai:1"}]
TWO += [{"version_id": 2, "air": "civitai:1"}]
BAD_FIELDS = [
    ({}, "is not named"),
    *((fields, "two sources") for fields in TWO),
    ({"url": "a.safetensors"}, "is not a URL"),
    ({"url": ""}, "is empty"),
    *(({"air": text}, "is not an AIR") for text in ("2", "https://civitai.com/models/1")),
    ({"version_id": 0}, "id from 1 to"),
    ({"sha256": "abc", "filename": "a.pt"}, "64 hex digits"),
    *(({"filename": text}, "nor a file name") for text in (EXAMPLE, "../a")),
    ({"filename": "123"}, "another form"),
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
