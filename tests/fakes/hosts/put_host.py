"""A host on loopback that stores what is PUT to it, or answers with a fault."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fakes.hosts.http import Request
from fakes.hosts.model_hosts import ModelHosts


@dataclass(frozen=True)
class PutHost:
    """The host."""

    hosts: ModelHosts

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.hosts.web.removeprefix("http://")

    @property
    def received(self) -> list[Request]:
        """Every PUT, in order of arrival."""
        return self.hosts.asked("web")

    def url(self, path: str) -> str:
        """A presigned URL on it."""
        return f"{self.hosts.web}/{path}?X-Amz-Signature=5ecret"

    def files(self) -> dict[str, bytes]:
        """Path -> body of the last PUT."""
        return {one.path: one.body for one in self.received}

    def fault(self, name: str, **how: Any) -> None:
        """Answer as `ModelHosts.fault` does."""
        self.hosts.fault(name, role="web", **how)


@contextmanager
def put_host() -> Iterator[PutHost]:
    """Run it."""
    with ModelHosts() as hosts:
        yield PutHost(hosts)
