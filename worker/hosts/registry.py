"""All hosts: adding one is a line in `HOSTS`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from worker.hosts.civitai import CivitAI
from worker.hosts.host import Host
from worker.hosts.huggingface import HuggingFace
from worker.hosts.ref import ModelRef
from worker.hosts.web import AnyHost

if TYPE_CHECKING:
    from worker.config.settings import Settings

HOSTS: tuple[type[Host], ...] = (
    CivitAI,
    HuggingFace,
    AnyHost,  # the last: it takes every URL that the others do not know
)


class Hosts:
    """The hosts of this worker, by the references that they resolve.

    Attributes:
        tokens: of all hosts: URL -> bearer token for the URL's origin.

    Raises:
        TypeError: a class of references has no host, or two.
    """

    def __init__(self, hosts: Iterable[Host]) -> None:
        self.tokens: dict[str, str] = {}
        self._by_reference: dict[type[ModelRef], Host] = {}
        for host in hosts:
            self.tokens |= host.tokens
            for kind in host.references:
                if kind in self._by_reference:
                    raise TypeError(f"two hosts resolve {kind.__name__}: a mistake in HOSTS")
                self._by_reference[kind] = host
        for kind in _all_references(ModelRef):
            if kind.needs_host and kind not in self._by_reference:
                raise TypeError(f"no host resolves {kind.__name__}: list one in HOSTS")

    @classmethod
    def from_settings(cls, settings: Settings) -> Hosts:
        """Every host of `HOSTS`, as the operator has configured it."""
        return cls(host.from_settings(settings) for host in HOSTS)

    def of(self, ref: ModelRef) -> Host:
        """The host that resolves the reference."""
        return self._by_reference[type(ref)]


def _all_references(base: type[ModelRef]) -> Iterable[type[ModelRef]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _all_references(kind)
