"""The settings, read from the environment in one place.

Only `Settings.from_environ` reads settings from environment variables. The shell scripts get them
from here too (worker/config/shell.py), so each default and each check exists once. Each field is
the variable of the same name in upper case.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from worker.config import bucket_address
from worker.config.as_written import (
    as_base_url,
    as_flags,
    as_hosts,
    as_meant,
    as_path,
    usual_word,
)
from worker.config.bucket_address import BucketAddress
from worker.config.credentials import CREDENTIALS, check_one_word, credentials, problem_with
from worker.config.platform_settings import ready_timeout_of
from worker.config.store_settings import StoreSettings
from worker.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
_DAY = 86_400
_PATHS = (
    *("webui_dir", "models_dir", "baked_models_dir", "read_only_models_dir", "hub_cache_dir"),
    *("output_dir", "run_dir", "templates_file"),
)
EXIT_BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h, as in start.sh


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _default_run_dir(webui_url: str) -> Path:
    return Path(tempfile.gettempdir()) / f"a1111-worker-{_address(webui_url)[1]}"


class Settings(StoreSettings):
    """The operator's settings. Immutable; every value is already checked."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    engine: Literal["a1111", "embedded", "external"] = Field(
        "embedded",
        description="Engine that start.sh starts; `external`: none, jobs go to `WEBUI_URL`.",
    )
    device: Literal["auto", "cpu"] = Field(
        "auto",
        description="Where the engine computes. `auto`: on the GPU; start.sh ends with 71 if the"
        " machine has one that cannot be used. Without any GPU the `embedded` engine computes on"
        " the CPU, and A1111 ends with 71. `cpu`: on the CPU, which takes minutes for a picture.",
    )
    webui_url: str = Field(
        "http://127.0.0.1:3000",
        description="URL of the engine; `a1111` and `embedded` listen on its host and port.",
    )
    webui_dir: Path = Field(
        PROJECT / "webui-data",
        description="Folder of the A1111 checkout, or of the embedded engine's data (same layout).",
    )
    webui_python: Path = Field(
        Path("venv/bin/python"),
        description="Python that runs A1111's webui.py; a relative path starts at `WEBUI_DIR`.",
    )
    webui_args: tuple[str, ...] = Field(
        (),
        description="More flags for A1111; quotes work as in a shell. Those of A1111's own variable"
        " `COMMANDLINE_ARGS` are added.",
    )
    engine_variables: tuple[str, ...] = Field(
        (),
        description="Names of further variables that the engine gets, such as one that your"
        " extension reads. It gets those of Python, CUDA, torch and A1111 anyway, and no others.",
    )
    a1111_speedups: bool = Field(
        True,
        description="Whether A1111 draws with the speed parts of"
        " [the worker's extension](internals/a1111-extension.md).",
    )
    civitai_api_key: SecretStr | None = Field(
        None,
        description="API key of CivitAI, which requires one for every download. Aliases:"
        " `CIVITAI_TOKEN`, `CIVITAI_API_TOKEN`.",
    )
    hf_token: SecretStr | None = Field(
        None,
        description="Token of Hugging Face, for gated and private files. Aliases:"
        " `HUGGING_FACE_HUB_TOKEN`, `HUGGINGFACE_HUB_TOKEN`, `HUGGINGFACE_TOKEN`.",
    )
    civitai_url: str = Field(
        "https://civitai.com", description="Base URL of CivitAI's API, or of a mirror."
    )
    hf_endpoint: str = Field(
        "https://huggingface.co", description="Base URL of Hugging Face, or of a mirror."
    )
    trusted_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that may use http and private addresses, as `host[:port]` separated by"
        " commas. The hosts of `CIVITAI_URL` and `HF_ENDPOINT`, if set, are trusted as well.",
    )
    templates_file: Path | None = Field(
        None,
        description="File with the templates. Default: `templates.json` in the current folder, else"
        " in the project's.",
    )
    default_template: str | None = Field(
        None,
        description="Template for jobs that name neither a template nor a checkpoint; overrides the"
        " file's `default_template`. `none`: no default.",
    )
    ready_timeout: float = Field(
        default_factory=lambda checked: ready_timeout_of(checked.get("runpod_init_timeout", "")),
        gt=0,
        le=_DAY,
        description="Seconds within which the engine must make its first picture. Default:"
        " `RUNPOD_INIT_TIMEOUT` less 30, at least 60; 390 without it.",
    )
    job_timeout: float = Field(
        540,
        gt=0,
        le=_DAY,
        description="Seconds that a job may take; a job can lower it by its `timeout`.",
    )
    job_concurrency: int = Field(
        1,
        ge=1,
        le=8,
        description="Jobs that are taken at once. With 1, the next job is taken from RunPod's queue"
        " when the last step of the running one has begun. With 2, the next job's models are"
        " downloaded while one generates. Only one generates at a time.",
    )
    shutdown_grace: float = Field(
        60, ge=1, le=_DAY, description="Seconds from SIGTERM until every process has ended."
    )
    max_engine_restarts: int = Field(
        3,
        ge=0,
        description="Restarts of the engine within `ENGINE_RESTART_WINDOW`; the worker ends at the"
        " next failure.",
    )
    engine_restart_window: float = Field(
        900,
        gt=0,
        le=_DAY,
        description="Seconds for which a restart counts towards `MAX_ENGINE_RESTARTS`.",
    )
    checkpoints_in_memory: int | None = Field(
        None,
        ge=1,
        le=10,
        description="Checkpoints that the engine keeps in memory; a job that uses one of them does"
        " not wait for its load. Not set: as many as the memory holds"
        " ([how it is decided](internals/resource-management.md#host-memory)).",
    )
    memory_growth_limit_gb: float | None = Field(
        None,
        gt=0,
        description="GB (10^9 bytes) by which the engine's memory may grow over checkpoint"
        " switches; above it, the worker asks RunPod to replace it. Not set: no limit.",
    )
    output_dir: Path | None = Field(
        None, description="Folder to which pictures are written, in addition to their delivery."
    )
    result_limit_mb: float = Field(
        9.0,
        ge=0,
        description="MB (10^6 bytes) that a job's result may have as JSON; 0: no limit. RunPod"
        " drops results of more than 10 MB after `/run` and 20 MB after `/runsync`, and a worker"
        " cannot see which of them the caller used.",
    )
    bucket_endpoint_url: str | None = Field(
        None,
        description="URL of an S3-compatible service for pictures; may contain the bucket's name."
        " See [delivery.md](delivery.md#a-bucket).",
    )
    bucket_name: str | None = Field(None, description="Name of the bucket, if the URL lacks it.")
    bucket_access_key_id: SecretStr | None = Field(
        None, description="Id of an access key that may write to the bucket."
    )
    bucket_secret_access_key: SecretStr | None = Field(
        None, description="Secret of that access key."
    )
    bucket_region: str | None = Field(
        None, description="Region of the bucket, if the URL does not contain it."
    )
    bucket_public_url: str | None = Field(
        None,
        description="Base URL at which the bucket is public. Results then have this URL and the"
        " object's key, instead of a URL that is signed for 7 days.",
    )
    run_dir: Path = Field(
        default_factory=lambda checked: _default_run_dir(checked.get("webui_url", "")),
        description="Folder for the state of start.sh and the handler; one per worker. Default:"
        " `a1111-worker-<port of the engine>` in the system's temporary folder.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level of the log lines that are written."
    )
    log_format: Literal["text", "json"] = Field("text", description="Format of the log lines.")

    @field_validator("webui_url", "civitai_url", "hf_endpoint", "bucket_public_url")
    @classmethod
    def _base_url(cls, url: str | None) -> str | None:
        return None if url is None else as_base_url(url)

    @field_validator(*CREDENTIALS)
    @classmethod
    def _one_line(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret:
            check_one_word(secret.get_secret_value())
        return secret

    @field_validator("trusted_hosts", mode="before")
    @classmethod
    def _hosts(cls, text: str | tuple[str, ...]) -> Sequence[str]:
        return as_hosts(text) if isinstance(text, str) else text

    @field_validator("webui_args", mode="before")
    @classmethod
    def _flags(cls, text: str | tuple[str, ...]) -> Sequence[str]:
        return as_flags(text) if isinstance(text, str) else text

    @field_validator("engine_variables", mode="before")
    @classmethod
    def _names(cls, text: str | tuple[str, ...]) -> Sequence[str]:
        return text.replace(",", " ").split() if isinstance(text, str) else text

    @field_validator(
        "device", "engine", "log_format", "log_level", "default_template", mode="before"
    )
    @classmethod
    def _word(cls, word: str | None, info: ValidationInfo) -> str | None:
        return word and usual_word(word, cls.model_fields[str(info.field_name)].annotation)

    @field_validator(*_PATHS, "webui_python", mode="before")
    @classmethod
    def _written_out(cls, path: str | Path | None) -> Path | None:
        return as_path(path) if isinstance(path, str) else path

    @field_validator(*_PATHS)
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and PROJECT / path

    @model_validator(mode="after")
    def _whole_bucket(self) -> Settings:
        bucket_address.check_whole({name.upper() for name, value in self if value is not None})
        _ = self.bucket  # raises what is wrong with its address
        return self

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check the variables; an empty one counts as not set.

        Quotes, spaces and line ends around a value are removed (`worker.config.as_written`). A
        folder on RunPod's volume is written to once, as a trial.

        Raises:
            ConfigError: names every wrong variable, its value and what it must be.
        """
        given = {name: as_meant(environ.get(name.upper(), "")) for name in cls.model_fields}
        # A1111 itself reads it, and adds it to its flags: so the checks must know it.
        a1111s = as_meant(environ.get("COMMANDLINE_ARGS", ""))
        given["webui_args"] = f"{given['webui_args']} {a1111s}".strip()
        given |= credentials(environ)
        try:
            settings = cls.model_validate({name: value for name, value in given.items() if value})
        except ValidationError as error:
            # Leave out defaults that failed only because they depend on a wrong value.
            wrong = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
            raise ConfigError("; ".join(map(problem_with, wrong)) + ".") from None
        # start.sh has decided for the processes that it starts.
        return settings if settings.supervisor_pid else settings.with_writable_store()

    @property
    def bucket(self) -> BucketAddress | None:
        """The bucket for pictures; None if there is none."""
        if self.bucket_endpoint_url is None:
            return None
        return bucket_address.read(self.bucket_endpoint_url, self.bucket_name, self.bucket_region)

    @property
    def mirrors(self) -> list[str]:
        """`host[:port]` of the model hosts that the operator has set."""
        chosen = {"civitai_url", "hf_endpoint"} & self.model_fields_set
        return [urlsplit(str(getattr(self, name))).netloc for name in sorted(chosen)]

    @property
    def templates_path(self) -> Path | None:
        """The templates file; None if none was set and no default one exists."""
        found = (folder / "templates.json" for folder in (Path.cwd(), PROJECT))
        return self.templates_file or next(filter(Path.is_file, found), None)

    @property
    def webui_interpreter(self) -> Path:
        """The Python that runs A1111."""
        return self.webui_dir / self.webui_python

    @property
    def engine_address(self) -> tuple[str, int]:
        """Host and port to which the engine is bound."""
        return _address(self.webui_url)
