import time
from urllib.parse import quote

import pytest

from worker.diagnosis.masking import Mask, secrets_of

SECRET = "Zq9/kT+4w x"  # with what a URL, JSON and a shell quote

FORMS = (
    "it is {0} here",
    "https://h.example/a?b={1}",
    '{{"a": "{0}"}}',
    "Authorization: Basic {0}",
)


@pytest.mark.parametrize("form", FORMS)
def test_a_known_secret_is_hidden_in_every_form(form):
    text = Mask([SECRET])(form.format(SECRET, quote(SECRET, safe="")))
    assert "kT" not in text
    assert "***" in text


# What nobody has told the mask. `XX` marks the part that must not be seen.
UNKNOWN = (
    "GET https://user:XXpass@mirror.example/models/a.safetensors?v=1#f",
    "https://user:p/XX@mirror.example/x",
    "https://user:p?XX@mirror.example/x",
    "redis://:XXsecret@10.0.0.1:6379/0",
    "https://civitai.com/api/download/models/1?token=XXabcdef0123",
    "https://b.s3.amazonaws.com/k.png?X-Amz-Credential=XX&X-Amz-Signature=XX",
    "https://discord.com/api/webhooks/1234567890/XXab1defghijklmnopqrstuv_wxyz-0123",
    "'Authorization': 'Bearer XXabcdefghij'",
    "authorization: AWS4-HMAC-SHA256 Credential=XX/20260101, Signature=XX",
    "Proxy-Authorization: Basic XXYWxhZGRpbg==",
    "Set-Cookie: session=XX; Path=/",
    "sent bearer XXabcdefghij to it",
    "x-api-key: XXabc",
    '{"s3Config": {"accessId": "AKIAXXABCDEFGHIJKLMN", "accessSecret": "XXabc"}}',
    "token hf_XXabcdefghijklmnop was refused",
    "rpa_XXABCDEFGHIJKLMNOPQRSTUVWXYZ1234",
    "github_pat_XX11ABCDEFG0123456789",
    "DB_PASS=XX1",
    "db_password='XX with spaces'",
    'GITHUB_PAT="XX',
    "eyJhbGciOiJIUzI1NiJ9.eyJXXIiOiIxIn0.abc-def_ghi",
    "it is wJalrXXtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "it is wJalrXXtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "-----BEGIN RSA PRIVATE KEY-----\nXXabc\nXXdef\n-----END RSA PRIVATE KEY-----",
)
PLAIN = (
    "2026-11-29T09:00:00Z INFO    [job-1 generate] done {'total': 1.5}",
    "fetching jibMixRealisticXL_v160Aphrodite.safetensors from https://civitai.com/models/1",
    "sha256 " + "0123456789abcdef" * 4,
    "pid 12 leads to /runpod-volume/models/Stable-diffusion/juggernautXL_v9Rundiffusion",
    "token_merging_ratio: 0.5, enable_pnginfo: true, sd_vae: None",
    "https://huggingface.co/org/repo/resolve/main/model.safetensors",
    "set HF_TOKEN or CIVITAI_API_KEY on the endpoint",
)


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_looks_like_a_secret_is_hidden(text):
    assert "XX" not in Mask([])(text)


@pytest.mark.parametrize("text", PLAIN)
def test_what_a_reader_needs_stays(text):
    assert Mask([])(text) == text


HOSTILE = (
    *("a", "a1", "://", "a://", "token", "key=", "-", "authorization ", "basic ", "@", '"', "eyJ"),
    *("/a1B" * 9, "-----BEGIN A-----", "x://a@b?", "pass:'"),
)


@pytest.mark.parametrize("part", HOSTILE)
def test_the_time_grows_with_the_length_and_not_with_its_square(part):
    """Four times the text; a square would need sixteen times the time."""

    def cpu(size):
        text = (part * size)[:size]
        began = time.process_time()
        Mask([SECRET])(text)
        return time.process_time() - began

    small = min(cpu(20_000) for _ in range(3))
    assert cpu(80_000) < 10 * small + 0.5


def test_every_variable_that_is_not_known_to_be_harmless_is_a_secret():
    environ = {
        "DB_PASS": "one-of-them",
        "hf_token": "two-of-them",
        "HOME": "/home/worker",
        "HF_ENDPOINT": "https://me:three-of@mirror.example",
        "GATEWAY_LOGIN": "user:four-of-them",
    }
    found = secrets_of(environ, ["HF_ENDPOINT"])
    assert {"one-of-them", "two-of-them", "three-of", "four-of-them"} <= set(found)
    assert not {"/home/worker", environ["HF_ENDPOINT"]} & set(found)
