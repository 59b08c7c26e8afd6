"""Every way to name a model: what it is read as, what is refused, and that secrets stay inside."""

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

SIMPLE_FORMS = [
    ("2514310", CivitAIVersion(2514310)),
    ("  007\n", CivitAIVersion(7)),
    (str(BIGGEST), CivitAIVersion(BIGGEST)),
    (DIGEST, Sha256(DIGEST)),
    (DIGEST.upper(), Sha256(DIGEST)),
    (f"sha256:{DIGEST}", Sha256(DIGEST)),
    (f"SHA256:{DIGEST.upper()}", Sha256(DIGEST)),
    ("1" * 64, Sha256("1" * 64)),  # too large for an id, right for a hash
    ("dreamshaper_8.safetensors", StoreName("dreamshaper_8.safetensors")),
    ("dreamshaper_8", StoreName("dreamshaper_8")),
    ("dreamshaper_8.safetensors [879db523c3]", StoreName("dreamshaper_8.safetensors")),
    ("dreamshaper_8 [879db523c3] [879DB523C3]", StoreName("dreamshaper_8")),
    ("style [v2]", StoreName("style [v2]")),
    ("[879db523c3]", StoreName("[879db523c3]")),
    ("a: b, c (d).safetensors", StoreName("a: b, c (d).safetensors")),
    ("123456.safetensors", StoreName("123456.safetensors")),
    ("١٢٣", StoreName("١٢٣")),  # digits, but not those of an id
    ("my civitai: best.safetensors", StoreName("my civitai: best.safetensors")),
    ("絵本風.safetensors", StoreName("絵本風.safetensors")),
]

CIVITAI_URLS = [
    ("https://civitai.com/models/827184", CivitAIModel(827184)),
    ("https://civitai.com/models/827184/", CivitAIModel(827184)),
    ("https://civitai.com/models/827184/wai-illustrious-sdxl", CivitAIModel(827184)),
    ("https://civitai.com/models/827184/slug/#comments", CivitAIModel(827184)),
    ("https://civitai.com/models/1/x?modelVersionId=2", CivitAIVersion(2)),
    ("https://civitai.com/models/1?foo=3&modelVersionId=2#top", CivitAIVersion(2)),
    ("https://civitai.com/models/1?modelVersionId=", CivitAIModel(1)),
    ("http://civitai.com/models/1", CivitAIModel(1)),
    ("civitai.com/models/1", CivitAIModel(1)),
    ("civitai.com/models/1?modelVersionId=2", CivitAIVersion(2)),
    ("HTTPS://Www.CivitAI.Com:443/models/1", CivitAIModel(1)),
    ("https://civitai.com./models/1", CivitAIModel(1)),
    ("https://civitai.red/models/1", CivitAIModel(1)),
    ("www.civitai.green/models/1", CivitAIModel(1)),
    ("https://civitai.com/model-versions/2", CivitAIVersion(2)),
    ("https://civitai.com/api/download/models/2", CivitAIVersion(2)),
    ("https://civitai.com/api/download/models/2?fileId=3", CivitAIVersion(2, 3)),
    (
        "https://civitai.com/api/download/models/2?type=Model&size=pruned&format=SafeTensor&fp=fp16",
        CivitAIVersion(
            2,
            None,
            (("format", "SafeTensor"), ("fp", "fp16"), ("size", "pruned"), ("type", "Model")),
        ),
    ),
    (
        "https://civitai.com/api/download/models/2?type=Text+Encoder&quantType=Q4_K_M",
        CivitAIVersion(2, None, (("quantType", "Q4_K_M"), ("type", "Text Encoder"))),
    ),
    ("https://civitai.com/api/v1/models/1", CivitAIModel(1)),
    ("https://api.civitai.com/api/v1/model-versions/2", CivitAIVersion(2)),
    ("https://civitai.com/api/v1/model-versions/mini/2", CivitAIVersion(2)),
    ("https://civitai.com/api/v1/model-versions/mini/2?modelFileId=3", CivitAIVersion(2, 3)),
    (f"https://civitai.com/api/v1/model-versions/by-hash/{DIGEST.upper()}", Sha256(DIGEST)),
]

AIRS = [
    ("urn:air:sdxl:checkpoint:civitai:827184@2514310", CivitAIVersion(2514310)),
    ("urn:air:sdxl:checkpoint:civitai:827184@2514310+2402203", CivitAIVersion(2514310, 2402203)),
    ("air:sd1:lora:civitai:1@2", CivitAIVersion(2)),
    ("sdxl:lora:civitai:1@2", CivitAIVersion(2)),
    ("civitai:827184@2514310+2402203", CivitAIVersion(2514310, 2402203)),
    ("CivitAI:1@2", CivitAIVersion(2)),
    ("URN:AIR:SDXL:LORA:CIVITAI:1@2.SafeTensor", CivitAIVersion(2)),
    ("civitai:1@2.safetensor", CivitAIVersion(2)),
    ("civitai:1@2+3.safetensor", CivitAIVersion(2, 3)),
    ("civitai:1", CivitAIModel(1)),
    ("civitai:1.safetensor", CivitAIModel(1)),
    (
        "urn:air:sdxl:vae:huggingface:org/repo/a/b.safetensors",
        HuggingFaceFile("org/repo", "a/b.safetensors"),
    ),
    (
        "huggingface:org/repo@v1/b.safetensors",
        HuggingFaceFile("org/repo", "b.safetensors", "v1"),
    ),
    (
        "huggingface:org/repo/a/b.safetensors@v1.0",
        HuggingFaceFile("org/repo", "a/b.safetensors", "v1.0"),
    ),
    (
        "huggingface:org/repo/b.safetensors@refs/pr/1",
        HuggingFaceFile("org/repo", "b.safetensors", "refs/pr/1"),
    ),
]

HUGGING_FACE_FILES = [
    (
        "https://huggingface.co/org/repo/resolve/main/a.safetensors?download=true",
        HuggingFaceFile("org/repo", "a.safetensors"),
    ),
    (
        "https://huggingface.co/org/repo/blob/main/vae/a.safetensors",
        HuggingFaceFile("org/repo", "vae/a.safetensors"),
    ),
    (
        "http://www.huggingface.co/org/repo/raw/fp16/a.bin",
        HuggingFaceFile("org/repo", "a.bin", "fp16"),
    ),
    (
        "hf.co/org/repo-1.5_x/resolve/main/a.safetensors#readme",
        HuggingFaceFile("org/repo-1.5_x", "a.safetensors"),
    ),
    (
        "https://huggingface.co/org/repo/resolve/refs%2Fpr%2F1/a%20b%25.safetensors",
        HuggingFaceFile("org/repo", "a b%.safetensors", "refs/pr/1"),
    ),
    (
        "https://huggingface.co/org/repo/resolve/refs/pr/1/a.safetensors",
        HuggingFaceFile("org/repo", "a.safetensors", "refs/pr/1"),
    ),
    (
        f"hf://org/repo@{COMMIT}/a.safetensors",
        HuggingFaceFile("org/repo", "a.safetensors", COMMIT),
    ),
    ("hf://org/repo/folder/config", HuggingFaceFile("org/repo", "folder/config")),
    ("HF://models/org/repo/a.pt", HuggingFaceFile("org/repo", "a.pt")),
    (
        "hf://org/repo@feature%2Fx/a.safetensors",
        HuggingFaceFile("org/repo", "a.safetensors", "feature/x"),
    ),
    ("org/repo/a.safetensors", HuggingFaceFile("org/repo", "a.safetensors")),
    ("org/repo/my file@1.CKPT", HuggingFaceFile("org/repo", "my file@1.CKPT")),
    ("org/repo@v2/sub/a.gguf", HuggingFaceFile("org/repo", "sub/a.gguf", "v2")),
    (
        "org/repo@refs/convert/x/a.pth",
        HuggingFaceFile("org/repo", "a.pth", "refs/convert/x"),
    ),
]

WEB_FILES = [
    ("https://example.com/a.safetensors", WebFile("https://example.com/a.safetensors")),
    ("http://example.com", WebFile("http://example.com")),
    ("HTTPS://Example.COM:8443/A/b.pt#part", WebFile("https://example.com:8443/A/b.pt")),
    ("https://example.com/a?X-Sig=a%2Fb&x=", WebFile("https://example.com/a?X-Sig=a%2Fb&x=")),
    ("https://example.com?a=b@c", WebFile("https://example.com?a=b@c")),
    ("https://example.com/a?#x", WebFile("https://example.com/a")),
    ("https://[2001:DB8::1]:80/a", WebFile("https://[2001:db8::1]:80/a")),
    ("https://10.0.0.1/a", WebFile("https://10.0.0.1/a")),  # what is public is decided later
    ("https://civitai.com:8080/models/1", WebFile("https://civitai.com:8080/models/1")),
    ("https://civitai.work/models/1", WebFile("https://civitai.work/models/1")),
    ("https://notcivitai.com/models/1", WebFile("https://notcivitai.com/models/1")),
    ("https://civitai.com.evil.io/models/1", WebFile("https://civitai.com.evil.io/models/1")),
    ("https://evil.io/civitai.com/models/1", WebFile("https://evil.io/civitai.com/models/1")),
]


@pytest.mark.parametrize(
    ("text", "ref"), SIMPLE_FORMS + CIVITAI_URLS + AIRS + HUGGING_FACE_FILES + WEB_FILES
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
def test_what_can_change_under_its_name_says_so(ref, is_moving):
    assert ref.is_moving is is_moving


REFUSED = [
    ("", "is empty"),
    (" \n ", "is empty"),
    ("a\x00b", "control character"),
    ("a\nb", "control character"),
    ("a\u202eb", "control character"),  # would turn the direction of a log's line
    ("a\ud83d", "half a character"),
    ("a" * 256, "nor a file name of up to 255"),
    ("a" * 4097, "longer than 4096"),
    (None, "not text but NoneType"),
    (12, "not text but int"),
    (b"a", "not text but bytes"),
    # Ids and hashes
    ("0", "id from 1 to"),
    (str(BIGGEST + 1), "id from 1 to"),
    ("1" * 4096, "id from 1 to"),
    ("sha256:abc", "64 hex digits"),
    ("sha256:", "64 hex digits"),
    (f"sha256:{DIGEST}0", "64 hex digits"),
    # File names
    (".", "nor a file name"),
    ("..", "nor a file name"),
    ("sub/a.safetensors", "nor a file name"),
    ("/models/a.safetensors", "nor a file name"),
    ("../../etc/passwd", "nor a file name"),
    ("C:\\models\\a.safetensors", "nor a file name"),
    ("123 [879db523c3]", "another form"),
    # CivitAI
    ("https://civitai.com", "names no model"),
    ("civitai.com", "names no model"),
    ("https://civitai.com/images/1", "names no model"),
    ("https://civitai.com/posts/1", "names no model"),
    ("https://civitai.red/user/someone/models", "names no model"),
    ("https://civitai.com/models/abc", "names no model"),
    ("https://civitai.com/models/1/slug/more", "names no model"),
    ("https://civitai.com/api/download/attachments/1", "names no model"),
    ("https://civitai.com/api/v1/model-versions/by-hash/abcdef1234", "names no model"),
    ("https://civitai.com/models/0", "id from 1 to"),
    ("https://civitai.com/models/1?modelVersionId=x", "not a number"),
    ("https://civitai.com/models/1?modelVersionId=2&modelVersionId=3", "or two"),
    ("https://civitai.com/api/download/models/1?fileId=-1", "not a number"),
    ("https://civitai.com/api/download/models/1?type=a&type=b", "filter"),
    ("https://civitai.com/api/download/models/1?type=%00", "filter"),
    ("civitai.work/models/1", "nor a file name"),
    # AIR
    ("urn:air:sdxl:lora:orchestrator:1@2", "AIR of orchestrator"),
    ("urn:air:sdxl:lora:civitai-r2:bucket@file", "AIR of civitai-r2"),
    ("air:lora:civitai:", "AIR of civitai"),
    ("civitai:abc@1", "AIR of civitai"),
    ("civitai:1@latest", "AIR of civitai"),
    ("civitai:1@2.5", "AIR of civitai"),
    ("civitai:1+3", "AIR of civitai"),  # a file of which version?
    ("civitai:1@0", "id from 1 to"),
    ("huggingface:org/repo", "AIR of huggingface"),
    ("huggingface:org/repo@main", "AIR of huggingface"),
    ("huggingface:org/repo/folder", "AIR of huggingface"),
    # Hugging Face
    ("https://huggingface.co/org/repo", "names no model"),
    ("https://huggingface.co/org/repo/tree/main", "names no model"),
    ("https://huggingface.co/org/repo/resolve/main/", "names no model"),
    ("https://huggingface.co/datasets/org/repo", "names no model"),
    ("https://huggingface.co/datasets/org/repo/resolve/main/a.pt", "'datasets/org/repo' is not"),
    ("https://huggingface.co/spaces/org/repo/resolve/main/a.pt", "'spaces/org/repo' is not"),
    ("hf://datasets/org/repo/a.pt", "'datasets/org' is not a model repository"),
    ("https://huggingface.co/org/repo/resolve/main/../a.pt", "not the path"),
    ("https://huggingface.co/org/repo/resolve/main/%2e%2e/a.pt", "not the path"),
    ("https://huggingface.co/org/repo/resolve/main/a//b.pt", "not the path"),
    ("https://huggingface.co/org/repo/resolve/main/a%00.pt", "not the path"),
    ("https://huggingface.co/org/repo/resolve/main/a%FF.pt", "not the path"),
    ("https://huggingface.co/org/repo/resolve/../a.pt", "not the path"),
    ("https://huggingface.co/or%2Fg/repo/resolve/main/a.pt", "not a model repository"),
    ("hf://org/repo", "hf:// URL"),
    ("hf://org/repo@main", "hf:// URL"),
    ("hf://org/repo/../a.pt", "not the path"),
    ("org/repo/../a.pt", "not the path"),
    ("org/repo/a.txt", "nor a file name"),
    ("example.com/models/a.safetensors", "nor a file name"),  # rather a host than an organisation
    # Other URLs
    ("s3://bucket/a.safetensors", "s3:// URL"),
    ("file:///etc/passwd", "file:// URL"),
    ("FTP://example.com/a", "FTP:// URL"),
    ("https://", "valid host"),
    ("https:///a", "valid host"),
    ("https://a b.com/", "blank"),
    ("https://example.com/a\u00a0b", "blank"),
    ("https://example.com:0/a", "valid host and port"),
    ("https://example.com:65536/a", "valid host and port"),
    ("https://example.com:x/a", "valid host and port"),
    ("https://example.com\\@evil.io/", "user or password"),
    ("https://[::1/a", "valid host"),
    ("https://c\u0131vitai.com/models/1", "valid host"),
    ("//example.com/a", "nor a file name"),
]


@pytest.mark.parametrize(("text", "fragment"), REFUSED)
def test_what_is_none_of_the_forms_is_refused(text, fragment):
    with pytest.raises(InvalidInput) as refused:
        parse_reference(text)
    assert fragment in refused.value.message
    assert "CivitAI" in refused.value.hint
    assert "\n" not in str(refused.value)
    assert len(refused.value.message) < 250


def test_a_long_text_is_shown_shortened():
    with pytest.raises(InvalidInput, match=r"the model 'x{77}\.\.\.' is"):
        parse_reference("x" * 300)


# What the classes themselves refuse, so that every reference can be written and read again.
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
def test_a_known_site_s_token_is_dropped(text):
    ref = parse_reference(text)
    assert SECRET not in f"{ref} {ref!r} {ref.shown} {vars(ref)}"


def test_a_signed_query_is_kept_for_the_download_and_shown_to_nobody():
    ref = parse_reference(f"https://example.com/a.pt?sig={SECRET}@x")
    assert SECRET in ref.url
    assert SECRET not in f"{ref!r} {ref.shown} {[ref]}"
    assert ref.shown == "https://example.com/a.pt"


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
