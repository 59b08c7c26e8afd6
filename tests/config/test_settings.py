"""The settings and their checks."""

from pathlib import Path

import pytest
from fakes.hosts.bucket import KEY_ID, NAME, SECRET

from worker.config.credentials import CREDENTIALS, hidden_from_engine, secret_values
from worker.config.settings import PROJECT, Settings
from worker.errors import ConfigError


def problem(**environ):
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ(environ)
    assert "PydanticUndefined" not in str(raised.value)
    assert SECRET not in str(raised.value)
    return str(raised.value)


def test_variables_are_fields_in_upper_case_and_empty_ones_count_as_not_set():
    settings = Settings.from_environ({"READY_TIMEOUT": "5.5", "ENGINE": "", "OTHER": "x"})
    assert (settings.ready_timeout, settings.engine) == (5.5, "embedded")
    assert settings.engine_address == ("127.0.0.1", 3000)
    assert settings.webui_dir == PROJECT / "webui-data"
    assert Settings.from_environ({"OUTPUT_DIR": "out"}).output_dir == PROJECT / "out"
    settings = Settings.from_environ({"WEBUI_URL": "http://127.0.0.1:3001/"})
    assert settings.run_dir.name == "a1111-worker-3001"  # each engine has its own
    assert settings.webui_url == "http://127.0.0.1:3001"


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("ENGINE", "comfy", "ENGINE='comfy': must be 'a1111', 'embedded' or 'external'"),
        *(
            ("READY_TIMEOUT", "soon", "READY_TIMEOUT='soon'"),
            ("READY_TIMEOUT", "0", "greater than 0"),
        ),
        ("MAX_ENGINE_RESTARTS", "-1", "MAX_ENGINE_RESTARTS='-1'"),
        *(
            ("WEBUI_URL", wrong, "must look like http://127.0.0.1:3000")
            for wrong in ("localhost", "http://127.0.0.1:99999", "http://127.0.0.1:30o0")
        ),
        ("WEBUI_ARGS", "'open", "No closing quotation"),
        ("WEBUI_URL", "http://a b:3000", "must look like http://127.0.0.1:3000"),
        ("HF_ENDPOINT", "http://a\rb.lan", "must look like http://127.0.0.1:3000"),
        ("MODELS_DIR", '"/vol', "MODELS_DIR='\"/vol': has a quotation mark at one end only"),
        ("MODELS_DIR", "$HOME/models", "has $HOME, which nothing replaces here"),
        ("RUN_DIR", "${HOME}/run", "has ${HOME}, which nothing replaces here"),
        ("OUTPUT_DIR", "~nobody-of-this-name/x", "the home of a user that this machine does not"),
        ("OUTPUT_DIR", "/a\r/b", "must be one line of printable characters"),
        ("TRUSTED_HOSTS", "'a.lan','b.lan'", "without https://"),
        ("ALLOW_PICKLES", "maybe", "ALLOW_PICKLES='maybe'"),
        ("WEBUI_ARGS", "--no-hashing", "--no-hashing is not allowed"),
        *(
            ("TRUSTED_HOSTS", wrong, "without https://")
            for wrong in ("https://mirror.example", "*", "a.lan:b:c", "*.lan", "[::1")
        ),
        ("COMMANDLINE_ARGS", "--port=5", "WEBUI_ARGS='--port=5': --port is not allowed"),
        ("WEBUI_ARGS", "--port=5", "--port is not allowed, because the worker asks at WEBUI_URL"),
        ("ALLOW_PICKLES", "ja", "ALLOW_PICKLES='ja': must be true or false."),
        ("JOB_CONCURRENCY", "1.5", "JOB_CONCURRENCY='1.5': must be a whole number."),
        # no secret in a message
        ("WEBUI_URL", f"http://a:{SECRET}@b:99999", "WEBUI_URL='http://...@b:99999': must look"),
        ("HF_ENDPOINT", f"https://a.b/?t={SECRET}", "HF_ENDPOINT='https://a.b/?...': must look"),
        ("WEBUI_ARGS", f"--api-auth a:{SECRET} 'b", "WEBUI_ARGS=***: No closing quotation"),
        *(("RESULT_LIMIT_MB", wrong, f"RESULT_LIMIT_MB={wrong!r}") for wrong in ("-1", "many")),
        ("BUCKET_PUBLIC_URL", "cdn.example", "BUCKET_PUBLIC_URL='cdn.example'"),
        ("HF_TOKEN", "{{ RUNPOD_SECRET_a }}", "HF_TOKEN=***: is a reference that RunPod did not"),
        ("CIVITAI_API_KEY", "two\nlines", "CIVITAI_API_KEY=***: must be one word of printable"),
        ("HF_TOKEN_FILE", "/nope", "HF_TOKEN_FILE='/nope' cannot be read"),
        *(("GATEWAY_LOGIN", wrong, "LOGIN=***: must be user:pa") for wrong in ("ann", "a:", ":b")),
        *(("GATEWAY_ORIGINS", wrong, "must name origins") for wrong in ("null", "http://a *")),
        *(("GATEWAY_ORIGINS", wrong, "must be orig") for wrong in ("a.com", "http://a/b", "x://")),
        ("GATEWAY_HOSTS", "https://a.com", "GATEWAY_HOSTS='https://a.com': must be host names"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(name, wrong, message):
    assert message in problem(**{name: wrong})


AS_WRITTEN = [
    # variable, as written, as meant
    ("MODELS_DIR", '"/vol"', Path("/vol")),
    ("MODELS_DIR", "'/a b'\r", Path("/a b")),
    ("MODELS_DIR", "\u201c/vol\u201d", Path("/vol")),
    ("MODELS_DIR", "~/models", Path("/home/fox/models")),
    ("MODELS_DIR", '"~/models" ', Path("/home/fox/models")),
    ("TEMPLATES_FILE", "~/t.json\r\n", Path("/home/fox/t.json")),
    ("WEBUI_PYTHON", "~/venv/bin/python", Path("/home/fox/venv/bin/python")),
    ("OUTPUT_DIR", '""', None),
    ("WEBUI_URL", "http://127.0.0.1:3001\r", "http://127.0.0.1:3001"),
    ("WEBUI_URL", "' http://127.0.0.1:3001/ '", "http://127.0.0.1:3001"),
    ("CIVITAI_URL", "\ufeffhttps://civitai.lan\r", "https://civitai.lan"),
    ("ENGINE", "A1111", "a1111"),
    ("ENGINE", "'External'\r", "external"),
    ("LOG_LEVEL", "debug", "DEBUG"),
    ("LOG_LEVEL", "Warn", "WARNING"),
    ("LOG_FORMAT", "JSON", "json"),
    *(("ALLOW_PICKLES", text, True) for text in ("True", "YES", '"1"', " on\r")),
    ("DEFAULT_TEMPLATE", "None", "none"),
    *(("DEFAULT_TEMPLATE", f'"{name}"', name) for name in ("a fox", "Json", "Debug")),
    ("JOB_CONCURRENCY", "'2'\r", 2),
    ("READY_TIMEOUT", "\u00a0400 ", 400.0),
    ("WEBUI_ARGS", '"--medvram --api"', ("--medvram", "--api")),
    ("WEBUI_ARGS", '"--a" "b c"\r', ("--a", "b c")),
    ("TRUSTED_HOSTS", '"a.lan, b.lan"\r', ("a.lan", "b.lan")),
    ("TRUSTED_HOSTS", "a.lan;,[::1]:80,", ("a.lan", "[::1]:80")),
    ("WEBUI_URL", "http://127.0.0.1:3000/sdapi/v1/", "http://127.0.0.1:3000"),
    ("GATEWAY_HOSTS", "Fox.Example:7860; me.ngrok.app", ("fox.example", "me.ngrok.app")),
    (
        "GATEWAY_ORIGINS",
        "http://LOCALHOST:5173/, moz-extension://a-b",
        ("http://localhost:5173", "moz-extension://a-b"),
    ),
]


@pytest.mark.parametrize(("name", "written", "meant"), AS_WRITTEN)
def test_a_setting_is_understood_as_people_and_files_write_it(name, written, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/fox")
    assert getattr(Settings.from_environ({name: written}), name.lower()) == meant


@pytest.mark.parametrize("written", ["'{}'", '"{}"\r', " {}\r\n"])
@pytest.mark.parametrize(("field", "names"), CREDENTIALS.items())
def test_a_credential_is_understood_under_each_of_its_names_and_hidden(field, names, written):
    others = BUCKET if field.startswith("bucket") else {}
    for name in names:
        environ = others | {name: written.format("abc:def0123")}
        assert getattr(Settings.from_environ(environ), field).get_secret_value() == "abc:def0123"
        assert "abc:def0123" in secret_values(environ)
        assert name in hidden_from_engine(environ)
    both = others | {name: f"key:of-{name}" for name in names}
    assert getattr(Settings.from_environ(both), field).get_secret_value() == f"key:of-{names[0]}"
    assert {f"key:of-{name}" for name in names} <= set(secret_values(both))


def test_the_password_of_a_login_or_a_url_is_hidden_alone_too():
    environ = {"GATEWAY_LOGIN": "ann:abc:def", "HF_ENDPOINT": "https://bob:swordfish@hf.lan/a"}
    assert {"ann:abc:def", "abc:def", "swordfish"} <= set(secret_values(environ))


SECRETS = ["OPENAI_APIKEY", "hf_token", "DB_PASS", "GITHUB_PAT", "SSH_KEY", "PGPASSWORD", "MY_AUTH"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_variable_that_is_named_like_a_secret_is_never_logged(name):
    assert secret_values({name: "swordfish", "PATH": "/bin", "OLDPWD": "/a"}) == ["swordfish"]


ENGINES = ["PATH", "HOME", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTORCH_CUDA_ALLOC_CONF"]
ENGINES += [
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MALLOC_ARENA_MAX",
    "HF_HOME",
    "A1111_SPEEDUPS",
]
OTHERS = [*SECRETS, "MY_EXTENSION", "AWS_REGION", "RUNPOD_POD_ID", "DATABASE_URL", "GITHUB_SHA"]
OTHERS += ["PATHS", "MYPYTHON_HOME", "GRADIO_AUTH", "HF_HUB_TOKEN", "PYTHONPASSWORD"]


def test_the_engine_gets_what_engines_read_and_what_the_operator_names():
    """No pattern knows all names of secrets, and an extension could leak one."""
    harmless = dict.fromkeys([*ENGINES, *OTHERS], "value")
    assert hidden_from_engine(harmless) == OTHERS
    assert hidden_from_engine(harmless, ["MY_EXTENSION", "DB_PASS"]) == [
        name for name in OTHERS if name not in {"MY_EXTENSION", "DB_PASS"}
    ]
    assert hidden_from_engine({"https_proxy": "http://ann:swordfish@proxy.lan"}) == ["https_proxy"]
    assert Settings.from_environ({"ENGINE_VARIABLES": "A, B_C"}).engine_variables == ("A", "B_C")


def test_every_setting_has_a_description():
    assert all(field.description for field in Settings.model_fields.values())


def test_hosts_that_the_operator_set_are_mirrors():
    environ = {"TRUSTED_HOSTS": "Mirror.example:8080, 10.0.0.1", "CIVITAI_URL": "http://civ.lan/"}
    settings = Settings.from_environ(environ)
    assert settings.trusted_hosts == ("mirror.example:8080", "10.0.0.1")
    assert settings.mirrors == ["civ.lan"]
    assert Settings.from_environ({}).mirrors == []


# Secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CIVITAI_API_KEY", "CIVITAI_TOKEN", "HF_TOKEN"])
def test_a_credential_can_be_in_a_file(name, tmp_path):
    (tmp_path / "secret").write_text(" abcdef0123 \n")
    environ = {f"{name}_FILE": str(tmp_path / "secret")}
    settings = Settings.from_environ(environ)

    secret = settings.hf_token if name == "HF_TOKEN" else settings.civitai_api_key
    assert secret.get_secret_value() == "abcdef0123"
    assert "abcdef0123" not in repr(settings)
    secrets = set(secret_values(environ | {"MY_PASSWORD": "x", "ENGINE": "y", "A_TOKEN": ""}))
    assert secrets & {"abcdef0123", "x", "y", ""} == {"abcdef0123", "x"}


def test_the_variable_overrides_its_file_which_overrides_its_alias(tmp_path):
    (tmp_path / "secret").write_text("from-file")
    environ = {"CIVITAI_TOKEN": "alias", "CIVITAI_API_KEY_FILE": str(tmp_path / "secret")}
    assert Settings.from_environ(environ).civitai_api_key.get_secret_value() == "from-file"
    environ["CIVITAI_API_KEY"] = "plain"
    assert Settings.from_environ(environ).civitai_api_key.get_secret_value() == "plain"


# The bucket ---------------------------------------------------------------------------------------

BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://s3.eu-west-1.amazonaws.com",
    "BUCKET_NAME": NAME,
    "BUCKET_ACCESS_KEY_ID": KEY_ID,
    "BUCKET_SECRET_ACCESS_KEY": SECRET,
}
RUNPOD = "https://s3api-eu-ro-1.runpod.io"


def test_a_whole_bucket_is_read():
    settings = Settings.from_environ(BUCKET)
    assert settings.bucket.name == NAME
    assert Settings.from_environ({}).bucket is None
    assert SECRET not in repr(settings)
    assert {KEY_ID, SECRET} <= set(secret_values(BUCKET))
    volume = Settings.from_environ(BUCKET | {"BUCKET_ENDPOINT_URL": RUNPOD}).bucket
    assert (volume.region, volume.signs_urls) == ("EU-RO-1", False)


@pytest.mark.parametrize("name", BUCKET)
def test_a_part_of_a_bucket_is_an_error_that_names_the_missing_rest(name):
    rest = {other: text for other, text in BUCKET.items() if other != name}
    needed = set(BUCKET) - {"BUCKET_NAME"}

    missing = "BUCKET_NAME is missing" if name == "BUCKET_NAME" else f"without {name}: set all"
    assert missing in problem(**rest)
    assert all(other in problem(**{name: BUCKET[name]}) for other in needed - {name})


@pytest.mark.parametrize("name", ["BUCKET_REGION", "BUCKET_PUBLIC_URL"])
def test_an_option_of_a_bucket_needs_the_bucket(name):
    assert f"{name} is set without BUCKET_ENDPOINT_URL, BUCKET_ACC" in problem(**{name: RUNPOD})


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("BUCKET_ENDPOINT_URL", "s3.example", "must look like https://"),
        ("BUCKET_ENDPOINT_URL", "https://a.example/other", "name two buckets"),
        ("BUCKET_SECRET_ACCESS_KEY", "two words", "BUCKET_SECRET_ACCESS_KEY=***"),
    ],
)
def test_a_wrong_part_of_a_bucket_is_named(name, wrong, message):
    assert message in problem(**BUCKET | {name: wrong})
