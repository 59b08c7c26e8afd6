"""A model store in a temporary folder that fetches from the fake hosts."""

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from fakes.model_files import sha256
from model_manager import ModelManager
from worker.config.settings import Settings
from worker.http.client import NO_CANCEL, HttpLimits
from worker.job.reference import Wanted, parse_reference
from worker.models.download.limits import DownloadLimits
from worker.models.store.about import About
from worker.models.store.blobs import Blob, Blobs

PROJECT = Path(__file__).resolve().parents[2]
AT_ONCE = {"first_pause": 0.0, "longest_wait": 0.0}


def about(stem="detail", kind="lora", size=0, suffix=".safetensors", **fields) -> About:
    return About(kind, stem, suffix, size, 0, "https://example.org/x", **fields)


def add(blobs: Blobs, data: bytes, stem="detail", kind="lora", taken=lambda _: False, **fields):
    """Publish these bytes as a finished download does."""
    partial = blobs.partial(sha256(data))
    partial.write_bytes(data)
    return blobs.add(partial, sha256(data), about(stem, kind, len(data), **fields), taken)


def environment_for(hosts, folder: Path, **more: str) -> dict[str, str]:
    """The settings of a worker whose folders are below `folder`, as environment variables."""
    roles = (hosts.storage, hosts.storage_b, hosts.hf_cdn, hosts.web)
    return {
        "MODELS_DIR": str(folder / "models"),
        "WEBUI_DIR": str(folder / "webui"),
        "BAKED_MODELS_DIR": str(folder / "baked"),
        "CIVITAI_URL": hosts.civitai,
        "HF_ENDPOINT": hosts.huggingface,
        "CIVITAI_API_KEY": hosts.civitai_key,
        "HF_TOKEN": hosts.hf_token,
        "TRUSTED_HOSTS": ",".join(urlsplit(url).netloc for url in roles),
        **more,
    }


def full_environment(hosts, folder: Path, **more: str) -> dict[str, str]:
    """The same for a process of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | environment_for(hosts, folder, PYTHONPATH=str(PROJECT), **more)


def manager_for(hosts, folder: Path, clock=time.time, **more: str) -> ModelManager:
    """A model manager whose failed requests are repeated at once."""
    settings = Settings.from_environ(environment_for(hosts, folder, **more))
    limits = HttpLimits(**AT_ONCE), DownloadLimits(**AT_ONCE)
    return ModelManager(settings, *limits, clock=clock)


def fetch(manager: ModelManager, text: str, kind=None, stop=NO_CANCEL, **wanted) -> Blob:
    return manager.fetcher.fetch(Wanted(parse_reference(text), kind, **wanted), stop)


def files_below(folder: Path) -> list[str]:
    """What is there, without folders."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
