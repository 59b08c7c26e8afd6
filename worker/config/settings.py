"""The environment, read in one place.

`Settings.from_environ` is the only reader of environment variables in Python. start.sh takes its
values from here too (worker/config/preflight.py prints them as shell assignments), so a default or
a check exists once. Each field is the variable of the same name in upper case.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from worker.config import bucket_address
from worker.config.bucket_address import BucketAddress
from worker.config.credentials import CREDENTIALS, credentials
from worker.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
VOLUME = Path("/runpod-volume")  # where RunPod mounts a network volume
_DAY = 86_400
EXIT_BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h, as in start.sh


def _default_models_dir() -> Path:
    """RunPod's network volume where it is mounted, the image's /models, or ./models."""
    if VOLUME.is_dir():
        return VOLUME / "models"
    return Path("/models") if Path("/models").is_dir() else PROJECT / "models"


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _default_run_dir(webui_url: str) -> Path:
    return Path(tempfile.gettempdir()) / f"a1111-worker-{_address(webui_url)[1]}"


class Settings(BaseModel):
    """What the operator may decide. Immutable; every value is already checked."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    engine: Literal["a1111", "embedded", "external"] = Field(
        "embedded",
        description="Which engine start.sh launches. `external`: none, `WEBUI_URL` is used.",
    )
    webui_url: str = Field(
        "http://127.0.0.1:3000",
        description="Where the engine listens; for `a1111` and `embedded` also its address.",
    )
    webui_dir: Path = Field(
        PROJECT / "webui-data",
        description="The A1111 checkout, or the embedded engine's data folder in the same layout.",
    )
    webui_python: Path = Field(
        Path("venv/bin/python"),
        description="The Python that runs A1111's webui.py, relative to `WEBUI_DIR`.",
    )
    webui_args: tuple[str, ...] = Field(
        (), description="Further flags for A1111; quotes work as in a shell."
    )
    models_dir: Path = Field(
        default_factory=_default_models_dir,
        description="The model store. Default: `/runpod-volume/models` if the volume is mounted,"
        " else `/models` if it exists, else `./models`.",
    )
    baked_models_dir: Path = Field(
        Path("/app/models"),
        description="Read-only models that were built into the image, in the same layout.",
    )
    models_budget_gb: float | None = Field(
        None,
        ge=0,
        description="GB (10^9 bytes) that fetched models may take; not set: what the disk has,"
        " less 2 GB. The least recently used ones are evicted.",
    )
    allow_pickles: bool = Field(
        False,
        description="Whether `.ckpt` and `.pt` files may be used. Loading one can run any code.",
    )
    civitai_api_key: SecretStr | None = Field(
        None, description="CivitAI needs a key for every download. Also as `CIVITAI_TOKEN`."
    )
    hf_token: SecretStr | None = Field(
        None, description="For gated and private files of Hugging Face."
    )
    civitai_url: str = Field(
        "https://civitai.com", description="Where CivitAI's API is; another URL for a mirror."
    )
    hf_endpoint: str = Field(
        "https://huggingface.co", description="Where Hugging Face is; another URL for a mirror."
    )
    trusted_hosts: tuple[str, ...] = Field(
        (),
        description="`host[:port]`, separated by commas: hosts that need not have https nor a"
        " public address. Those of `CIVITAI_URL` and `HF_ENDPOINT` are trusted anyway.",
    )
    templates_file: Path | None = Field(
        None,
        description="Named presets. Default: `templates.json` in the current folder, else in the"
        " project's.",
    )
    default_template: str | None = Field(
        None,
        description="Template for jobs that name neither a template nor a checkpoint, instead of"
        " the file's own; `none` for none.",
    )
    ready_timeout: float = Field(
        390, gt=0, le=_DAY, description="Seconds until the engine must have made its first picture."
    )
    job_timeout: float = Field(
        540,
        gt=0,
        le=_DAY,
        description="Seconds that a job may take; a job's `timeout` may only lower it.",
    )
    job_concurrency: int = Field(
        1,
        ge=1,
        le=8,
        description="Jobs that are taken at once. 2: the next job's models are fetched, and the"
        " last one's pictures delivered, while one generates. Only one ever generates.",
    )
    shutdown_grace: float = Field(
        60, ge=1, le=_DAY, description="Seconds from SIGTERM until everything is gone."
    )
    max_engine_restarts: int = Field(
        3, ge=0, description="Restarts of the engine within the window before the worker gives up."
    )
    engine_restart_window: float = Field(
        900, gt=0, le=_DAY, description="Seconds over which restarts are counted."
    )
    memory_growth_limit_gb: float | None = Field(
        None,
        gt=0,
        description="GB (10^9 bytes) by which the engine's memory may grow over checkpoint switches"
        " before the worker asks RunPod for a fresh one; not set: it may grow.",
    )
    output_dir: Path | None = Field(
        None, description="Pictures are also written here when it is set."
    )
    result_limit_mb: float = Field(
        9.0,
        ge=0,
        description="MB (10^6 bytes) that a job's result may have as JSON; 0: no limit. RunPod"
        " loses results of more than 10 MB of `/run` and 20 MB of `/runsync`, and a worker"
        " cannot see which one a job came by.",
    )
    bucket_endpoint_url: str | None = Field(
        None,
        description="An S3-compatible service for pictures, see"
        " [delivery.md](delivery.md#a-bucket); may hold the bucket's name.",
    )
    bucket_name: str | None = Field(None, description="Needed unless the URL holds the name.")
    bucket_access_key_id: SecretStr | None = Field(None, description="Key that may write there.")
    bucket_secret_access_key: SecretStr | None = Field(None, description="Its secret half.")
    bucket_region: str | None = Field(
        None, description="The bucket's region, where `BUCKET_ENDPOINT_URL` does not tell it."
    )
    bucket_public_url: str | None = Field(
        None,
        description="Where everybody can read the bucket: results get this and the key instead of"
        " a URL signed for 7 days.",
    )
    run_dir: Path = Field(
        default_factory=lambda known: _default_run_dir(known.get("webui_url", "")),
        description="Where start.sh and the handler keep their state; one for each worker."
        " Default: a folder of the system's temporary one, named after the engine's port.",
    )
    supervisor_pid: int | None = Field(
        None, description="Set by start.sh for the handler: whom to ask for a restart."
    )
    runpod_gpu_count: str = Field("", description="Set by RunPod: the GPUs of this worker.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log lines that are written."
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of a log line.")

    @field_validator("webui_url", "civitai_url", "hf_endpoint", "bucket_public_url")
    @classmethod
    def _base_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        try:
            has_port = parts.port is None or parts.port > 0
        except ValueError:  # no number, or too large
            has_port = False
        if parts.scheme not in {"http", "https"} or not parts.hostname or not has_port:
            raise ValueError("must look like http://127.0.0.1:3000")
        return url.rstrip("/")

    @field_validator(*CREDENTIALS)
    @classmethod
    def _one_line(cls, secret: SecretStr | None) -> SecretStr | None:
        # In a header anything else would be an error that shows the secret.
        if secret and not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
            raise ValueError("must be one word of printable ASCII characters")
        return secret

    @field_validator("trusted_hosts", mode="before")
    @classmethod
    def _hosts(cls, text: str | tuple[str, ...]) -> Sequence[str]:
        hosts = re.split(r"[\s,]+", text.strip()) if isinstance(text, str) else text
        if any("/" in host for host in hosts):
            raise ValueError("must be names such as mirror.example:8080, without https://")
        return [host.lower() for host in hosts if host]

    @field_validator("webui_args", mode="before")
    @classmethod
    def _words(cls, text: str | tuple[str, ...]) -> Sequence[str]:
        words = shlex.split(text) if isinstance(text, str) else text
        if "--no-hashing" in words:
            raise ValueError("--no-hashing takes away the proof that a job's LoRAs were used")
        return words

    @field_validator(
        "webui_dir", "models_dir", "baked_models_dir", "output_dir", "run_dir", "templates_file"
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and PROJECT / path

    @model_validator(mode="after")
    def _whole_bucket(self) -> Settings:
        bucket_address.check_whole({name.upper() for name, value in self if value is not None})
        if self.bucket and not (self.bucket.signs_urls or self.bucket_public_url):
            raise ValueError("RunPod's S3 API signs no URLs: BUCKET_PUBLIC_URL must be set for it")
        return self

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check the variables; an empty one counts as not set.

        Raises:
            ConfigError: names every variable that is wrong, its value and what it must be.
        """
        given = {name: environ.get(name.upper(), "") for name in cls.model_fields}
        given |= credentials(environ)
        try:
            return cls.model_validate({name: value for name, value in given.items() if value})
        except ValidationError as error:
            # A default that depends on a wrong value is no problem of its own.
            wrong = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
            raise ConfigError("; ".join(map(_problem, wrong)) + ".") from None

    @property
    def bucket(self) -> BucketAddress | None:
        """Where pictures can be uploaded to; None if nowhere."""
        if self.bucket_endpoint_url is None:
            return None
        return bucket_address.read(self.bucket_endpoint_url, self.bucket_name, self.bucket_region)

    @property
    def mirrors(self) -> list[str]:
        """`host[:port]` of the hosts of models that the operator has chosen himself."""
        chosen = {"civitai_url", "hf_endpoint"} & self.model_fields_set
        return [urlsplit(str(getattr(self, name))).netloc for name in sorted(chosen)]

    @property
    def templates_path(self) -> Path | None:
        """The templates file; None if there is none where it is looked for."""
        found = (folder / "templates.json" for folder in (Path.cwd(), PROJECT))
        return self.templates_file or next(filter(Path.is_file, found), None)

    def to_bake(self) -> Settings:
        """The same for who writes the baked models.

        Raises:
            ConfigError: a volume would hide them.
        """
        folder = self.baked_models_dir.resolve()
        volumes = {self.models_dir.resolve(), VOLUME}
        if any(folder.is_relative_to(volume) for volume in volumes):
            raise ConfigError(
                f"BAKED_MODELS_DIR={str(folder)!r}: a volume mounted at {self.models_dir} or"
                f" {VOLUME} would hide what is baked there; name another folder."
            )
        return self.model_copy(update={"models_dir": folder, "models_budget_gb": None})

    @property
    def webui_interpreter(self) -> Path:
        """The Python that runs A1111."""
        return self.webui_dir / self.webui_python

    @property
    def engine_address(self) -> tuple[str, int]:
        """Host and port to which the engine is bound."""
        return _address(self.webui_url)


def _problem(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not detail["loc"]:
        return message  # of several variables
    name = str(detail["loc"][0])
    value = "***" if name in CREDENTIALS else repr(detail["input"])
    return f"{name.upper()}={value}: {message}"
