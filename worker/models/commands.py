"""The command line of `model_manager.py`: for operators, scripts and start.sh.

Prints a table, or JSON with `--json`; messages go to standard error. Exit statuses: 0 success, 1 a
failure (each is printed), 2 wrong arguments, 78 wrong configuration, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from worker import log as worker_log
from worker.config import preflight, webui_config
from worker.config.credentials import secret_values
from worker.config.settings import EXIT_BAD_CONFIGURATION, Settings
from worker.errors import ConfigError, InvalidInput, ModelFileInvalid, WorkerError
from worker.formats.model_file import FOLDERS, ModelFile, file_sha256
from worker.hosts.ref import is_path
from worker.http.client import NO_CANCEL
from worker.job.reference import Sha256, StoreName, Wanted, parse_reference
from worker.job.request import PictureRequest
from worker.job.template_file import Templates
from worker.models import bake
from worker.models.finder import Finder
from worker.models.store.blobs import Blob, size_on_disk
from worker.models.store.fetcher import Fetcher
from worker.models.store.space import EvictionPlan

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells

Row = dict[str, Any]

log = logging.getLogger(__name__)


class Manager(bake.Manager, Protocol):
    """What the commands need of `model_manager.ModelManager`."""

    fetcher: Fetcher
    finder: Finder

    def get_cache_stats(self) -> dict[str, dict[str, int]]:
        """Number and total bytes of the models."""

    def link_everything(self) -> int:
        """Link every good file into the engine's folders."""

    def first_checkpoint(self, request: PictureRequest) -> str | None:
        """The checkpoint that the engine should load at start."""


def run(arguments: Sequence[str] | None, make: Callable[[Settings], Manager]) -> int:
    """Run the command that the arguments name; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    is_fetch = options.command == "fetch"
    if is_fetch and len(options.refs) > 1 and (options.sha256 or options.filename):
        parser.error("--sha256 and --filename can be used with one REF only")
    try:
        settings = Settings.from_environ(os.environ)
        worker_log.configure(settings.log_level, settings.log_format, secret_values(os.environ))
        if options.command == "prepare-start" and (status := preflight.report(settings)):
            return status
        if options.command == "bake":  # it writes only to BAKED_MODELS_DIR
            settings = settings.to_bake()
        rows: list[Row] = options.run(make(settings), options, settings)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIGURATION
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return _report(rows, as_json=options.json)


def _report(rows: list[Row], *, as_json: bool) -> int:
    """Print what a command found; returns the exit status."""
    failed = [row for row in rows if "error" in row]
    for row in failed:
        sys.stderr.write(f"{row['error']}\n")
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _show([row for row in rows if "error" not in row])
    return EXIT_FAILED if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="model_manager.py", description="The worker's model store (MODELS_DIR)."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[..., list[Row]], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--json", action="store_true", help="print JSON")
        one.set_defaults(run=run)
        return one

    fetch = command("fetch", _fetch, "fetch models into the store")
    fetch.add_argument("refs", nargs="+", metavar="REF", help=_REF)
    fetch.add_argument("--kind", choices=list(FOLDERS), help="the kind that they must have")
    fetch.add_argument(
        "--sha256", metavar="HEX", type=_sha256, help="the hash that the file must have"
    )
    fetch.add_argument("--filename", metavar="NAME", help="the name in the store")
    resolve = command("resolve", _resolve, "show which file a reference means, without a download")
    resolve.add_argument("refs", nargs="+", metavar="REF", help=_REF)
    command("ls", _ls, "list the models")
    verify = command("verify", _verify, "hash the fetched models again; remove damaged ones")
    verify.add_argument("names", nargs="*", metavar="NAME", help="stems; default: all")
    prune = command("prune", _prune, "evict down to the budget, remove abandoned downloads")
    prune.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    prune.add_argument("--budget", type=float, metavar="GB", help="instead of MODELS_BUDGET_GB")
    baking = command("bake", _bake, "put all models of the templates into BAKED_MODELS_DIR")
    baking.add_argument(
        "--template", action="append", metavar="NAME", help="only this template; can be repeated"
    )
    baking.add_argument("--merge", action="store_true", help="also merge LoRAs into checkpoints")
    baking.add_argument(
        "--diffusers", action="store_true", help="also convert checkpoints for the embedded engine"
    )
    _add_push(command("push", _push, "send models to a RunPod network volume, without a Pod"))
    command("stats", _stats, "number and size of the models")
    command("prepare-engine", _prepare_engine, "folders, links and config.json for the engine")
    command("prepare-start", _prepare_start, "for start.sh: check the machine, then prepare-engine")
    return parser


def _add_push(push: argparse.ArgumentParser) -> None:
    text = f"{_REF}, or a model file of your own; default: the models of all templates"
    push.add_argument("refs", nargs="*", metavar="REF", help=text)
    push.add_argument(
        "--template", action="append", metavar="NAME", help="its models; can be repeated"
    )
    push.add_argument("--kind", choices=list(FOLDERS), help="the kind of each REF")
    push.add_argument("--volume", required=True, metavar="ID", help="id of the network volume")
    push.add_argument("--data-center", metavar="DC", help="where the volume is, such as EU-RO-1")
    push.add_argument(
        "--endpoint-url", metavar="URL", help="of another S3 API; default: that of --data-center"
    )
    push.add_argument(
        "--prefix",
        type=_folder,
        default="models",
        help="the folder on the volume that is the workers' MODELS_DIR; default: models",
    )
    push.add_argument("--dry-run", action="store_true", help="only show what would be sent")


_REF = "CivitAI version id or URL, AIR, hf org/repo/file, https URL, or sha256"


def _sha256(text: str) -> str:
    try:
        return Sha256(text.lower().removeprefix("sha256:")).digest
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _folder(text: str) -> str:
    path = text.strip("/")
    if not is_path(path):
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder such as models")
    return path


def _each(refs: Iterable[str], do: Callable[[str], Row]) -> list[Row]:
    rows = []
    for text in refs:
        try:
            rows.append(do(text))
        except WorkerError as error:
            rows.append({"ref": text, "code": error.code, "error": str(error)})
    return rows


def _fetch(manager: Manager, options: argparse.Namespace, _settings: Settings) -> list[Row]:
    def one(text: str) -> Row:
        wanted = Wanted(parse_reference(text), options.kind, options.sha256, options.filename)
        (file,) = manager.ensure([wanted])
        file.check()
        return _row(file) | {"path": str(file.path)}

    return _each(options.refs, one)


def _resolve(manager: Manager, options: argparse.Namespace, _settings: Settings) -> list[Row]:
    def one(text: str) -> Row:
        ref = parse_reference(text)
        if isinstance(ref, StoreName):
            raise ModelFileInvalid(
                f"{text!r} is a file name, not a reference; there is nothing to resolve.", hint=_REF
            )
        remote = asdict(manager.fetcher.resolve(ref, NO_CANCEL))
        # The URL can contain a signature, and whether it does is the store's business.
        del remote["url"], remote["is_signed"]
        return {"ref": ref.shown, **remote}

    return _each(options.refs, one)


def _ls(manager: Manager, _options: argparse.Namespace, _settings: Settings) -> list[Row]:
    return [_row(file) for kind in FOLDERS for file in manager.store.files(kind)]


def _row(file: ModelFile) -> Row:
    return {
        "kind": file.kind,
        "name": file.stem,
        "size": file.size,
        "sha256": file.verified_sha256,
        "source": file.source,
    }


def _verify(manager: Manager, options: argparse.Namespace, _settings: Settings) -> list[Row]:
    blobs = [
        blob
        for blob in manager.store.fetched.all()
        if not options.names or blob.about.stem in options.names
    ]
    unknown = set(options.names) - {blob.about.stem for blob in blobs}
    rows: list[Row] = [
        {"name": name, "error": f"there is no fetched model {name!r}."} for name in unknown
    ]
    return rows + [_verified(manager, blob) for blob in blobs]


def _verified(manager: Manager, blob: Blob) -> Row:
    try:
        is_whole = file_sha256(blob.path) == blob.sha256
    except (WorkerError, OSError):
        is_whole = False
    if is_whole:
        return {"name": blob.about.stem, "sha256": blob.sha256, "state": "whole"}
    try:
        freed = manager.store.fetched.remove(blob)
    except WorkerError as error:
        return {"name": blob.about.stem, "error": f"{blob.about.stem} is damaged. {error}"}
    return {
        "name": blob.about.stem,
        "sha256": blob.sha256,
        "error": f"{blob.about.stem} was damaged and was removed ({freed} bytes). Fetch it again.",
    }


def _prune(manager: Manager, options: argparse.Namespace, _settings: Settings) -> list[Row]:
    budget = None if options.budget is None else round(options.budget * 1e9)
    plan: EvictionPlan = manager.space.plan(budget=budget)
    rows: list[Row] = [
        {"do": "evict", "name": one.name, "size": one.size, "last_used": round(one.last_used)}
        for one in plan.evict
    ]
    rows += [
        {"do": "discard", "name": path.name, "size": size_on_disk(path)}
        for path in manager.space.abandoned()
    ]
    if plan.lacking:
        lacking = (
            f"Models in use exceed the budget by {plan.lacking / 1e9:.2f} GB; nothing is evicted."
        )
        rows.append({"error": lacking})
    if not options.dry_run:
        manager.space.carry_out(plan)
        manager.space.discard_abandoned()
    return rows


def _bake(manager: Manager, options: argparse.Namespace, settings: Settings) -> list[Row]:
    templates = _templates(settings)
    known = templates.get_templates()
    before = [name for name in bake.baked_before(settings.baked_models_dir) if name in known]
    names = [*options.template, *before] if options.template else known
    baking = bake.Baking(manager, settings.baked_models_dir, options.merge, options.diffusers)
    try:
        return baking.run({name: templates.get_template(name) for name in names})
    except WorkerError as error:
        return [{"name": "bake", "code": error.code, "error": str(error)}]


def _push(manager: Manager, options: argparse.Namespace, settings: Settings) -> list[Row]:
    # boto3 takes 0.3 s, and no other command needs it.
    from worker.models.push import Push  # noqa: PLC0415
    from worker.models.volume.connect import connect  # noqa: PLC0415
    from worker.models.volume.files import VolumeFiles  # noqa: PLC0415

    volume = connect(os.environ, options.volume, options.data_center, options.endpoint_url)
    push = Push(
        manager,
        VolumeFiles(volume, options.prefix),
        settings.models_dir,
        settings.engine,
        settings.allow_pickles,
        options.dry_run,
    )
    templates = _templates(settings)
    known = () if options.refs else templates.get_templates()
    try:
        named = {name: templates.get_template(name) for name in options.template or known}
        return push.run(options.refs, options.kind, named)
    except WorkerError as error:
        return [{"name": "push", "code": error.code, "error": str(error)}]


def _stats(manager: Manager, _options: argparse.Namespace, _settings: Settings) -> list[Row]:
    return [{"kind": kind, **numbers} for kind, numbers in manager.get_cache_stats().items()]


def _prepare_engine(manager: Manager, _options: object, settings: Settings) -> list[Row]:
    log.info("the engine sees %d models", manager.link_everything())
    templates = _templates(settings)
    default = templates.get_default_template()
    # Loaded at the start, so that the first job does not wait for it.
    first = manager.first_checkpoint(templates.get_template().request()) if default else None
    pickles = settings.operators_folder if settings.allow_pickles else None
    webui_config.write(settings.webui_dir, first, pickles)
    return []


def _prepare_start(manager: Manager, options: object, settings: Settings) -> list[Row]:
    """After the check of the machine: one program for both, because each costs its imports."""
    return [] if settings.engine == "external" else _prepare_engine(manager, options, settings)


def _templates(settings: Settings) -> Templates:
    return Templates(settings.templates_path, settings.default_template)


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table with the columns of the first row."""
    if not rows:
        return
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(len(lines[0]))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        sys.stdout.write(text.rstrip() + "\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
