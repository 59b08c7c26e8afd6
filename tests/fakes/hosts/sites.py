"""How each fake model host answers when nothing is wrong."""

from math import inf
from urllib.parse import unquote

from fakes.hosts.content import HfFile, HfRepo, ModelVersion, World
from fakes.hosts.faults import ANSWERS, Faults
from fakes.hosts.http import (
    Answer,
    Blob,
    Request,
    data_answer,
    html_answer,
    json_answer,
    redirect,
    text_answer,
    xml_error,
)


class Sites:
    """The hosts by role; a request in, an answer out."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults

    def answer(self, request: Request) -> Answer:
        if request.role.startswith("civitai"):
            return self._civitai(request)
        if request.role == "huggingface":
            return self._huggingface(request)
        return self._web(request) if request.role == "web" else self._storage(request)

    def _signed(self, request: Request, role: str, blob: Blob, name: str, etag: str) -> str:
        limits = self.faults.choice("url_limits", request) or {"uses": inf}
        return self.world.sign(role, blob, name, etag, **limits)

    # CivitAI.

    def _civitai(self, request: Request) -> Answer:
        route, _, last = request.path.rpartition("/")
        routes = {
            "/api/download/models": self._download,
            "/api/v1/model-versions": self._version,
            "/api/v1/model-versions/by-hash": self._by_hash,
            "/api/v1/models": self._model,
        }
        if route not in routes:
            return html_answer(404 if request.path.startswith("/api/") else 200, "Civitai")
        if request.method != "GET":
            return text_answer(405, "Method Not Allowed", "text/plain", Allow="GET")
        return routes[route](request, last)

    def _visible(self, request: Request, version_id: str) -> ModelVersion | None:
        version = self.world.versions.get(int(version_id)) if version_id.isdigit() else None
        hidden = version and version.red_only and request.role != "civitai_red"
        return None if hidden else version

    def _origin(self, request: Request) -> str:
        return self.world.urls[request.role]

    def _version(self, request: Request, last: str) -> Answer:
        if not (version := self._visible(request, last)):
            return json_answer(404, {"error": "Model not found"})
        return json_answer(200, version.public(self._origin(request)))

    def _by_hash(self, request: Request, last: str) -> Answer:
        for version in sorted(self.world.versions.values(), key=lambda version: version.id):
            hashes = {value for file in version.files for value in file.hashes.values()}
            if last.upper() in hashes:
                return self._version(request, str(version.id))
        return json_answer(404, {"error": "Model not found"})

    def _model(self, request: Request, last: str) -> Answer:
        ids = [one.id for one in self.world.versions.values() if str(one.model_id) == last]
        found = [one for one in (self._visible(request, str(id_)) for id_ in ids) if one]
        if not found:
            return json_answer(404, {"error": f"No model with id {last}"})
        shown = [version.public(self._origin(request)) for version in found]
        model = shown[0]["model"] | {"id": int(last), "modelVersions": shown}
        return json_answer(200, model)

    def _download(self, request: Request, last: str) -> Answer:
        version, wanted = self._visible(request, last), request.query.get("fileId")
        files = version.files if version else []
        file = next((one for one in files if wanted in (None, str(one.id))), None)
        if file is None:
            return ANSWERS["not_found"](request)
        known = request.headers.get("authorization") == f"Bearer {self.world.civitai_key}"
        if file.require_auth and not known:
            return ANSWERS["login_required"](request)
        role = "storage" if self.faults.choice("tiering", request) is None else "storage_b"
        etag = self.world.storage_etag(role, file.blob)
        return redirect(307, self._signed(request, role, file.blob, file.name, etag))

    # The storage hosts of CivitAI and Hugging Face.

    def _storage(self, request: Request) -> Answer:
        if request.authorized:
            return xml_error(400, "InvalidRequest", "Missing x-amz-content-sha256")
        grant = self.world.grants.get(self._origin(request) + request.target)
        if grant is None or request.method == "HEAD":
            text = "The request signature we calculated does not match"
            return xml_error(403, "SignatureDoesNotMatch", text)
        if grant.use():
            return data_answer(request, grant.blob, grant.etag, grant.headers)
        if request.role == "storage_b":
            body = {"message": "Authorization token has expired", "status": 401}
            return json_answer(401, body | {"code": "expired_auth_token"})
        code = {"storage": (400, "ExpiredRequest"), "hf_cdn": (403, "AccessDenied")}
        return xml_error(*code[request.role], "Request has expired")

    # Hugging Face.

    def _huggingface(self, request: Request) -> Answer:
        repo_name, slash, rest = request.raw_path.strip("/").partition("/resolve/")
        revision, path = (unquote(part) for part in rest.partition("/")[::2])
        if not slash:
            return html_answer(200, "Hugging Face")
        repo = self.world.repos.get(repo_name)
        if refusal := self._hf_refusal(request, repo):
            return refusal
        if revision not in {one for one, _ in repo.files}:
            return self._hf_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file := repo.files.get((revision, path)):
            return self._hf_file(request, file)
        return self._hf_error(404, "EntryNotFound", "Entry not found")

    def _hf_refusal(self, request: Request, repo: HfRepo | None) -> Answer | None:
        world = self.world
        token = request.headers.get("authorization", "").rpartition(" ")[2]
        if token and token not in (world.hf_token, world.hf_token_without_grant):
            return text_answer(401, "Invalid credentials in Authorization header", "text/plain")
        if repo is None or (repo.private and token != world.hf_token):
            return self._hf_error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and token != world.hf_token:
            text = "Access to this model is restricted and you are not in the authorized list."
            return self._hf_error(403 if token else 401, "GatedRepo", text)
        return None

    def _hf_error(self, status: int, code: str, text: str) -> Answer:
        named = {"X_Error_Code": code, "X_Error_Message": text}
        return text_answer(status, text, "text/plain", **named)

    def _hf_file(self, request: Request, file: HfFile) -> Answer:
        headers = {"X-Repo-Commit": file.commit}
        if not file.lfs:
            headers["Content-Type"] = "text/plain; charset=utf-8"
            return data_answer(request, file.blob, file.etag, headers)
        name = file.path.rpartition("/")[2]
        url = self._signed(request, "hf_cdn", file.blob, name, file.etag)
        headers |= {"X-Linked-Etag": file.etag, "X-Linked-Size": str(file.blob.size)}
        return redirect(302, url, ETag=file.etag, **headers)

    # The plain host.

    def _web(self, request: Request) -> Answer:
        if request.method == "PUT":
            return text_answer(200, "", "text/plain")
        answer = self.world.web.get(request.path)
        return answer(request) if answer else text_answer(404, "Not Found", "text/plain")
