"""CivitAI, its object stores, Hugging Face and a plain web host on loopback.

    with ModelHosts() as hosts:
        model = hosts.add_model(version_id=128713, data=data)
        ...download model.file_url with hosts.civitai_key...
        assert hosts.count("storage") == 2

Each host has its own port, and answers as the real one does or as documented. Other processes can
use them, too. `hosts.fault(...)` switches on a fault of `fakes.hosts.faults`.
"""

import asyncio
import itertools
import secrets
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fakes.hosts.content import DATA_ROLES, ROLES, HfFile, HfRepo, ModelFile, ModelVersion, World
from fakes.hosts.faults import Fault, Faults
from fakes.hosts.http import Answer, Blob, Connection, Request, Throttle, data_answer, redirect
from fakes.hosts.sites import Sites
from fakes.hosts.tls import make_certificates, server_context

FAULT_FIELDS = {"times", "skip", "role", "path", "when"}


def _bound(port: int = 0) -> socket.socket:
    """A socket that holds a port; until it listens, connecting to it is refused."""
    # asyncio switches Nagle off only where the protocol is named
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


class ModelHosts:
    """The hosts; they run in a thread of their own while the `with` block lasts."""

    def __init__(self, *, tls: bool = False) -> None:
        self.tls = tls
        self.ca_file: Path | None = None
        self._world = world = World()
        self.civitai_key = world.civitai_key
        self.hf_token = world.hf_token  # of a user with access to every repository
        self.hf_token_without_grant = world.hf_token_without_grant  # to none that is restricted
        self._faults = Faults()
        self._sites = Sites(self._world, self._faults)
        self.requests: list[Request] = []  # all so far, in order
        self._throttles: dict[str, Throttle] = {}
        self._sockets: dict[str, socket.socket] = {}  # of the roles that refuse connections
        self._servers: dict[str, asyncio.Server] = {}
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._failures: list[BaseException] = []  # of the fake itself
        self._numbers = itertools.count(1)
        self._file_ids = itertools.count(900_001)
        self._accepted = dict.fromkeys(ROLES, 0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "ModelHosts":
        self._folder = tempfile.TemporaryDirectory(prefix="model-hosts-")
        self._context = None
        if self.tls:
            self.ca_file, server_file = make_certificates(Path(self._folder.name))
            self._context = server_context(server_file)
        for role in ROLES:
            self._sockets[role] = _bound()
            port = self._sockets[role].getsockname()[1]
            url = f"{'https' if self.tls else 'http'}://127.0.0.1:{port}"
            self._world.urls[role] = url
            setattr(self, role, url)  # `hosts.civitai`, `hosts.storage`, …
        self._thread.start()
        for role in ROLES:
            self.accept(role)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._in_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()
        if self._failures and kind is None:
            raise self._failures[0]

    @property
    def netlocs(self) -> list[str]:
        """`host:port` of every role."""
        return [url.partition("//")[2] for url in self._world.urls.values()]

    # Their content.

    @property
    def planted_secrets(self) -> set[str]:
        """Every key and every signature ever issued: no log may contain them."""
        keys = {self.civitai_key, self.hf_token, self.hf_token_without_grant}
        return keys | {grant.secret for grant in self._world.grants.values()}

    def add_model(
        self,
        *,
        version_id: int,
        data: bytes | Path,
        model_id: int | None = None,
        name: str = "file.safetensors",
        file_id: int | None = None,
        require_auth: bool = True,
        hashes: dict[str, str] | None = None,
        **version: Any,
    ) -> ModelFile:
        """Add a file to a version, which the first one makes of `version`."""
        model_id = model_id or version_id + 1_000_000
        new = ModelVersion(version_id, model_id, self.civitai, **version)
        made, blob = self._world.versions.setdefault(version_id, new), Blob(data)
        if hashes is None:  # not in the loop, where a big file would block all others
            hashes = {"SHA256": blob.sha256.upper(), "AutoV2": blob.sha256[:10].upper()}
        id_ = file_id or next(self._file_ids)
        made.files.append(ModelFile(id_, name, blob, made, require_auth, hashes))
        return made.files[-1]

    def add_hf(
        self, repo: str, path: str, data: bytes, *, revision="main", commit="", lfs=True, **access
    ) -> HfFile:
        """Add a file to a repository, which the first one makes; `gated`, `private`."""
        known = self._world.repos.setdefault(repo, HfRepo(**access))
        commit = known.commits.setdefault(revision, commit or secrets.token_hex(20))
        file = HfFile(repo, path, Blob(data), self.huggingface, revision, commit, lfs)
        _ = file.etag  # here, because in the loop a big file would block all others
        known.files |= {(revision, path): file, (commit, path): file}
        return file

    def add_web(
        self,
        path: str,
        data: bytes | Path,
        *,
        etag: str = '"fake-etag"',
        modified: str | None = None,
        ranges: bool = True,
        content_disposition: str | None = None,
    ) -> str:
        """Put a file on the plain host; returns its URL."""
        more = {"Last-Modified": modified, "Content-Disposition": content_disposition}
        headers = {name: value for name, value in more.items() if value is not None}
        blob = Blob(data)
        self._world.web[path] = lambda one: data_answer(one, blob, etag, headers, ranges=ranges)
        return self.web + path

    def add_redirect(self, path: str, target: str, status: int = 302) -> str:
        """Let the plain host redirect a path anywhere; returns its URL."""
        self._world.web[path] = lambda _: redirect(status, target)
        return self.web + path

    # Faults.

    def fault(self, name: str, **given: Any) -> Fault:
        """Switch a fault on, after `skip` and for `times` of the requests it concerns."""
        places = {key: given.pop(key) for key in FAULT_FIELDS & given.keys()}
        fault = Fault(name, **places, params=given)
        self._faults.switched_on.append(fault)
        return fault

    def no_faults(self) -> None:
        self._faults.switched_on.clear()

    def expire_urls(self) -> None:
        """End every signed URL that was issued so far."""
        for grant in list(self._world.grants.values()):
            grant.uses = 0

    def throttle(self, rate: float | None, ttfb: float = 0.08, roles: Any = DATA_ROLES) -> None:
        """Bytes per second of each connection, and the seconds before an answer begins."""
        self._throttles |= {role: Throttle(rate, ttfb) for role in roles}

    def no_throttle(self) -> None:
        self._throttles.clear()

    def refuse(self, role: str) -> None:
        """Refuse connections to a role, and close those it has."""
        self._in_loop(self._close_role(role))

    def accept(self, role: str) -> None:
        """Accept connections again, on the same port."""
        self._in_loop(self._open_role(role))

    # Requests.

    def asked(self, role: str | None = None, path_prefix: str | None = None) -> list[Request]:
        """The requests to a role, or below a path."""
        return [
            request
            for request in list(self.requests)
            if role in (None, request.role) and request.path.startswith(path_prefix or "")
        ]

    def count(self, role: str | None = None, path_prefix: str | None = None) -> int:
        return len(self.asked(role, path_prefix))

    def bytes_sent(self, role: str | None = None, path_prefix: str | None = None) -> int:
        """Bytes of bodies; call `settle` first where the last block counts."""
        return sum(request.sent for request in self.asked(role, path_prefix))

    def connections(self, role: str) -> int:
        """How many connections a role has accepted."""
        return self._accepted[role]

    @property
    def open_connections(self) -> int:
        """How many connections are open now, at all roles."""
        return len(self._open)

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until no answer is under way."""
        deadline = time.monotonic() + timeout
        while any(request.ended is None for request in list(self.requests)):
            if time.monotonic() > deadline:
                raise TimeoutError("an answer is still under way")
            time.sleep(0.005)

    def forget_requests(self) -> None:
        self.requests = []

    def reset(self) -> None:
        """No faults, no throttle and no requests; what the hosts hold stays."""
        self.no_faults()
        self.no_throttle()
        for role in ROLES:
            self.accept(role)
        self.forget_requests()

    # The server; all of it runs in the loop.

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _open_role(self, role: str) -> None:
        if role not in self._sockets:
            return

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._accepted[role] += 1
            connection = Connection(role, next(self._numbers), reader, writer)
            task = self._loop.create_task(self._serve(connection))
            self._open[task] = connection
            task.add_done_callback(self._forget)

        sock = self._sockets.pop(role)
        options = {"sock": sock, "ssl": self._context, "backlog": 256}
        self._servers[role] = await asyncio.start_server(accept, **options)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._open.pop(task)
        if not task.cancelled() and (failure := task.exception()):
            self._failures.append(failure)

    async def _close_role(self, role: str) -> None:
        if role in self._sockets:
            return
        port = self._servers[role].sockets[0].getsockname()[1]
        await self._close(self._servers.pop(role))
        await self._end([one for one, its in self._open.items() if its.role == role])
        self._sockets[role] = _bound(port)

    async def _close(self, server: asyncio.Server) -> None:
        # What it has just accepted becomes a connection only in the loop's next rounds; of a
        # server that is closed by then, asyncio would leave it open for ever.
        for sock in server.sockets:
            self._loop.remove_reader(sock.fileno())
        await asyncio.sleep(0.01)
        server.close()

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            self._open[task].abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop(self) -> None:
        for server in self._servers.values():
            await self._close(server)
        for sock in self._sockets.values():
            sock.close()
        # An aborted transport closes in the loop's next rounds.
        for _ in range(500):
            await self._end(list(self._open))
            await asyncio.sleep(0.01)
            if asyncio.all_tasks() == {asyncio.current_task()}:
                return

    async def _serve(self, connection: Connection) -> None:
        try:
            with suppress(OSError, EOFError, asyncio.LimitOverrunError):
                await connection.serve(self._respond)
        finally:
            await connection.close()

    async def _respond(self, connection: Connection, request: Request) -> Answer:
        self.requests.append(request)
        connection.throttle = self._throttles.get(request.role, Throttle())
        if late := self._faults.choice("slow", request):
            await asyncio.sleep(late["seconds"])
        answer = self._faults.answer(request) or self._sites.answer(request)
        return self._faults.spoil(request, answer)
