"""The settings of a worker that serves HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, SecretStr, field_validator

from worker.config.as_written import as_host_names, as_origins, check_login
from worker.config.platform_settings import PlatformSettings


class HttpSettings(PlatformSettings):
    """A part of `worker.config.settings.Settings`."""

    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on which jobs are taken over HTTP, on every address of the machine, if"
        " start.sh gets no argument and RunPod gives the worker no queue. The images set 7860.",
    )
    port_health: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Another port, which answers only `/ping`: see"
        " [load-balancing.md](load-balancing.md).",
    )
    gateway_hosts: tuple[str, ...] = Field(
        (),
        description="Further host names under which clients reach the worker's HTTP server,"
        " separated by commas. Addresses, `localhost` and names without a dot need no entry.",
    )
    gateway_origins: tuple[str, ...] = Field(
        (),
        description="Origins whose web pages may use that server, such as"
        " `http://localhost:5173` or a browser extension's, separated by commas.",
    )
    gateway_login: SecretStr | None = Field(
        None, description="`user:password` that clients of that server must send as Basic."
    )
    gateway_token: SecretStr | None = Field(
        None,
        description="Token that they must send as Bearer, or as the password of Basic. With"
        " `GATEWAY_LOGIN` either is right.",
    )

    @field_validator("gateway_hosts", mode="before")
    @classmethod
    def _host_names(cls, text: str | tuple[str, ...]) -> Sequence[str]:
        return as_host_names(text) if isinstance(text, str) else text

    @field_validator("gateway_origins", mode="before")
    @classmethod
    def _origins(cls, text: str | tuple[str, ...]) -> Sequence[str]:
        return as_origins(text) if isinstance(text, str) else text

    @field_validator("gateway_login")
    @classmethod
    def _login(cls, login: SecretStr | None) -> SecretStr | None:
        if login:
            check_login(login.get_secret_value())
        return login

    @property
    def served_port(self) -> int | None:
        """The port on which a worker without arguments serves HTTP; None: it does not."""
        return None if self.runpod_webhook_get_job else self.port

    @property
    def is_load_balanced(self) -> bool:
        """Whether this is a worker of RunPod's load-balancing type, if it serves HTTP."""
        return self.is_serverless
