"""A1111's options, remembered for each client: what one client chooses, others do not get."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.a1111 import checkpoints
from gateway.a1111.client import Client
from gateway.catalog.catalog import Lists
from gateway.catalog.kept_file import KeptFile
from gateway.jobs import GatewayError
from worker.config.webui_config import OVERRIDABLE
from worker.errors import InvalidInput
from worker.job.img2img import Img2ImgOptions
from worker.job.request import check
from worker.shown import shown, shown_name, without_secrets
from worker.translation.a1111_options import PICTURE_OPTIONS, is_default

logger = logging.getLogger(__name__)

CHECKPOINT = "sd_model_checkpoint"
_MOST_CLIENTS = 100

Options = Mapping[str, Any]


class UnknownCheckpoint(GatewayError):
    """A client has chosen a checkpoint that the back does not have; A1111 answers 500, too."""

    status = 500


class NotChanged(GatewayError):
    """An option that changes pictures, which a job cannot set."""

    status = 422


class Remembered:
    """The options that clients have changed, for the last 100 clients.

    Args:
        file: where they are kept for the next start, as A1111 keeps its own: a client that has
            chosen a checkpoint does not choose it again; None: only in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = KeptFile(file) if file else None
        self._of: OrderedDict[Client, dict[str, Any]] = OrderedDict(self._kept())

    def _kept(self) -> Iterator[tuple[Client, dict[str, Any]]]:
        content = self._file.read() if self._file else None
        for row in content[-_MOST_CLIENTS:] if isinstance(content, list) else ():
            match row:
                case [str() as address, str() as program, dict() as options]:
                    try:
                        _check_kept(options)
                    except InvalidInput as error:
                        logger.warning("options of %s are forgotten: %s", program, error)
                    else:
                        yield Client(address, program), options

    def of(self, client: Client) -> dict[str, Any]:
        """What this client has changed."""
        return dict(self._of.get(client, {}))

    def change(self, client: Client, options: Options, lists: Lists) -> list[str]:
        """Take what a client sends to POST /sdapi/v1/options; often that is all that it has read.

        Returns:
            Names of options that concern no picture, and are ignored.

        Raises:
            UnknownCheckpoint: nothing is changed.
            InvalidInput: a value is wrong; nothing is changed.
            NotChanged: an option cannot be changed; all others are.
        """
        known = {name: options[name] for name in options if name in OVERRIDABLE}
        check({name: one for name, one in known.items() if one is not None}, Img2ImgOptions)
        changes: dict[str, Any] = dict(known)
        if CHECKPOINT in options:
            changes[CHECKPOINT] = _checkpoint(options[CHECKPOINT], lists)
        now = self.of(client) | changes
        kept = {
            name: one
            for name, one in now.items()
            if one is not None and (name == CHECKPOINT or one != OVERRIDABLE[name])
        }
        self._of[client] = kept
        self._of.move_to_end(client)
        while len(self._of) > _MOST_CLIENTS:
            self._of.popitem(last=False)
        if self._file:
            self._file.write([[*one, _kept(changed)] for one, changed in self._of.items()])
        _refuse([name for name in options if _is_missed(name, options[name])], options)
        return sorted(options.keys() - known.keys() - {CHECKPOINT} - PICTURE_OPTIONS.keys())


def _check_kept(options: Options) -> None:
    """Raise InvalidInput for what `change` would not have kept."""
    check(_without_checkpoint(options), Img2ImgOptions)
    if not isinstance(options.get(CHECKPOINT, ""), str):
        raise InvalidInput(f"{CHECKPOINT} = {shown(options[CHECKPOINT])} is no name.")


def _without_checkpoint(options: Options) -> dict[str, Any]:
    return {name: one for name, one in options.items() if name != CHECKPOINT}


def _kept(options: Options) -> Options:
    """What may stand in a file: a checkpoint's URL may have a token."""
    named = options.get(CHECKPOINT)
    return options if without_secrets(named) == named else _without_checkpoint(options)


def as_a1111(changed: Options, lists: Lists) -> dict[str, Any]:
    """The answer of GET /sdapi/v1/options."""
    now = PICTURE_OPTIONS | OVERRIDABLE | {CHECKPOINT: checkpoints.current(lists)} | dict(changed)
    models = {one["title"]: one["sha256"] for one in checkpoints.as_a1111(lists)}
    return {
        "samples_format": "png",
        **now,
        "sd_checkpoint_hash": models.get(now[CHECKPOINT]) or "",
        "live_previews_enable": True,
    }


def _checkpoint(value: object, lists: Lists) -> str | None:
    if value is None or value == "":
        return None
    title = None
    if isinstance(value, str) and len(value) <= checkpoints.LONGEST:
        title = checkpoints.chosen(lists, value)
    if title is None:
        raise UnknownCheckpoint(f"model {shown(value)} not found")  # A1111's own words
    return title


def _is_missed(name: str, value: object) -> bool:
    return name in PICTURE_OPTIONS and name not in OVERRIDABLE and not is_default(name, value)


def _refuse(names: list[str], options: Options) -> None:
    if names:
        values = ", ".join(f"{shown_name(name)} = {shown(options[name])}" for name in names[:10])
        raise NotChanged(
            f"{values}: not changed, because a job cannot set it, and the picture would be another"
            " one than you expect. All other options were changed."
        )
