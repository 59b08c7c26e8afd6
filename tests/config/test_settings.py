import pytest

from worker.config.credentials import secret_values
from worker.config.settings import PROJECT, Settings
from worker.errors import ConfigError


def test_without_variables_the_defaults_hold():
    settings = Settings.from_environ({})

    assert settings.engine == "embedded"
    assert settings.engine_address == ("127.0.0.1", 3000)
    assert settings.webui_dir == PROJECT / "webui-data"


def test_variables_are_fields_in_upper_case_and_empty_ones_count_as_absent():
    settings = Settings.from_environ({"READY_TIMEOUT": "5.5", "ENGINE": "", "OTHER": "x"})

    assert (settings.ready_timeout, settings.engine) == (5.5, "embedded")


def test_relative_folders_are_relative_to_the_project():
    assert Settings.from_environ({"OUTPUT_DIR": "out"}).output_dir == PROJECT / "out"


def test_each_engine_has_a_run_dir_of_its_own():
    one = Settings.from_environ({"WEBUI_URL": "http://127.0.0.1:3001/"})

    assert one.run_dir.name == "a1111-worker-3001"
    assert one.webui_url == "http://127.0.0.1:3001"


WRONG = [
    ({"ENGINE": "comfy"}, "ENGINE='comfy': must be 'a1111', 'embedded' or 'external'"),
    ({"READY_TIMEOUT": "soon"}, "READY_TIMEOUT='soon'"),
    ({"READY_TIMEOUT": "0"}, "greater than 0"),
    ({"MAX_ENGINE_RESTARTS": "-1"}, "MAX_ENGINE_RESTARTS='-1'"),
    ({"WEBUI_URL": "localhost"}, "must look like http://127.0.0.1:3000"),
    ({"WEBUI_URL": "http://127.0.0.1:99999"}, "must look like http://127.0.0.1:3000"),
    ({"WEBUI_URL": "http://127.0.0.1:30o0"}, "must look like http://127.0.0.1:3000"),
    ({"WEBUI_ARGS": "'open"}, "No closing quotation"),
    ({"WEBUI_ARGS": "--no-hashing"}, "takes away the proof"),
]


@pytest.mark.parametrize(("environ", "said"), WRONG)
def test_a_wrong_variable_is_named_with_its_value(environ, said):
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ(environ)

    assert said in str(raised.value)
    assert "PydanticUndefined" not in str(raised.value)


def test_secrets_are_found_by_their_names():
    environ = {"CIVITAI_API_KEY": "abc", "HF_TOKEN": "def", "ENGINE": "x", "MY_PASSWORD": ""}

    assert sorted(secret_values(environ)) == ["abc", "def"]


def test_every_setting_is_explained():
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", ["CIVITAI_API_KEY", "CIVITAI_TOKEN", "HF_TOKEN"])
def test_a_credential_may_be_in_a_file(name, tmp_path):
    (tmp_path / "secret").write_text(" abcdef0123 \n")
    environ = {f"{name}_FILE": str(tmp_path / "secret")}
    settings = Settings.from_environ(environ)

    secret = settings.hf_token if name == "HF_TOKEN" else settings.civitai_api_key
    assert secret.get_secret_value() == "abcdef0123"
    assert "abcdef0123" not in repr(settings)
    assert "abcdef0123" in secret_values(environ)


def test_the_variable_goes_before_its_file_and_its_other_name(tmp_path):
    (tmp_path / "secret").write_text("from-file")
    environ = {"CIVITAI_TOKEN": "other", "CIVITAI_API_KEY_FILE": str(tmp_path / "secret")}

    assert Settings.from_environ(environ).civitai_api_key.get_secret_value() == "from-file"
    environ["CIVITAI_API_KEY"] = "plain"
    assert Settings.from_environ(environ).civitai_api_key.get_secret_value() == "plain"


def test_a_missing_file_of_a_credential_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"HF_TOKEN_FILE='.*nope' cannot be read"):
        Settings.from_environ({"HF_TOKEN_FILE": str(tmp_path / "nope")})


def test_a_credential_that_no_header_can_carry_is_refused_without_showing_it():
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ({"CIVITAI_API_KEY": "two\nlines"})

    assert "CIVITAI_API_KEY=***: must be one word" in str(raised.value)
    assert "lines" not in str(raised.value).replace("one word", "")


def test_hosts_that_the_operator_chose_are_trusted():
    settings = Settings.from_environ(
        {"TRUSTED_HOSTS": "Mirror.example:8080, 10.0.0.1", "CIVITAI_URL": "http://civitai.lan/"}
    )

    assert settings.trusted_hosts == ("mirror.example:8080", "10.0.0.1")
    assert settings.mirrors == ["civitai.lan"]
    assert Settings.from_environ({}).mirrors == []
    with pytest.raises(ConfigError, match="without https://"):
        Settings.from_environ({"TRUSTED_HOSTS": "https://mirror.example"})
