"""Which worker is diagnosed: its environment, its settings and its folders, as far as known."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from worker.config.as_written import as_meant
from worker.diagnosis.processes import Process
from worker.diagnosis.sections import Section, gather
from worker.files import read_small

PROJECT = Path(__file__).resolve().parents[2]

# Variables with a secret that are no settings: only whether they are set is shown.
MORE_SECRETS = (
    *("RUNPOD_API_KEY", "RUNPOD_AI_API_KEY", "RUNPOD_S3_ACCESS_KEY", "RUNPOD_S3_SECRET_KEY"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
)
_FOLDERS = (
    *("models_dir", "read_only_models_dir", "baked_models_dir", "hub_cache_dir", "webui_dir"),
    *("output_dir", "run_dir"),
)
_WRONG = re.compile(r"(?:\A|; |: )([A-Z][A-Z0-9_]{1,60})=")
_MOST_WRONG = 40
_SECONDS = 8.0


@dataclass(frozen=True)
class Place:
    """The worker that is diagnosed.

    Attributes:
        environ: its environment.
        source: whose environment that is.
        problems: what is wrong with its settings.
        settings: name of the variable -> the value that counts, as text.
        chosen: the settings that the environment sets.
        secrets: the secret settings, and whether each is set.
        folders: name of the setting -> folder.
        needles: values that must not be shown.
    """

    environ: Mapping[str, str]
    source: str
    problems: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()
    secrets: Mapping[str, bool] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    needles: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        """The folder of its state."""
        return Path(self.folders["RUN_DIR"])

    @property
    def engine_url(self) -> str:
        """Where its engine listens."""
        return self.settings.get("WEBUI_URL") or _text(self.environ, "WEBUI_URL", _ENGINE_URL)

    @property
    def engine(self) -> str:
        """The kind of its engine."""
        return self.settings.get("ENGINE") or _text(self.environ, "ENGINE", "embedded")


_ENGINE_URL = "http://127.0.0.1:3000"


def _text(environ: Mapping[str, str], name: str, default: str) -> str:
    return environ.get(name, "").strip() or default


def find(environ: Mapping[str, str], processes: Iterable[Process]) -> Place:
    """Read the settings of the worker that runs here; else those of this environment.

    Nothing on a volume is touched in this process: the volume may hang.
    """
    own = _read(Place(environ, "this process"))
    # Its children have its name and its environment, but start.sh is the parent of none.
    running = [one for one in processes if str(one.parent) == _supervisor(one)]
    same = [one for one in running if one.environ.get("RUN_DIR") == str(own.run_dir)]
    if not same and not {"RUN_DIR", "WEBUI_URL"} & environ.keys():
        same = running
    if len(same) != 1:
        return own
    (handler,) = same
    return _read(Place(handler.environ, f"the running handler, process {handler.pid}"))


def _supervisor(process: Process) -> str | None:
    return process.environ.get("SUPERVISOR_PID") if process.is_handler else None


def _read(place: Place) -> Place:
    """The place with its settings, from a child process."""
    (secrets, settings) = gather(
        [
            Section("secrets", lambda: _secrets(place.environ), _SECONDS),
            Section("settings", lambda: _settings(place.environ), _SECONDS),
        ]
    )
    needles: tuple[str, ...] = ()
    with suppress(ValueError):
        needles = tuple(json.loads(secrets.text))
    folders = {"RUN_DIR": str(_run_dir(place.environ))} | {
        name.upper(): place.environ[name.upper()]
        for name in _FOLDERS
        if place.environ.get(name.upper())
    }
    place = replace(place, needles=needles, folders=folders)
    try:
        found = json.loads(settings.text)
    except ValueError:
        problem = f"the settings could not be read: {settings.problem or 'no answer'}"
        return replace(place, problems=(problem,))
    return replace(
        place,
        problems=tuple(found["problems"]),
        settings=found["settings"],
        chosen=tuple(found["chosen"]),
        secrets=found["secrets"],
        folders=folders | found["folders"],
    )


def _run_dir(environ: Mapping[str, str]) -> Path:
    """As `worker.config.settings`, in case that cannot be used."""
    port = re.search(r":(\d{1,5})\Z", _text(environ, "WEBUI_URL", _ENGINE_URL))
    default = Path(tempfile.gettempdir()) / f"a1111-worker-{port[1] if port else 80}"
    return Path(environ.get("RUN_DIR") or default)


# In a child process -------------------------------------------------------------------------------


def _secrets(environ: Mapping[str, str]) -> Iterator[str]:
    """The values to hide, as one line of JSON; of files too, as Docker's secrets are."""
    from worker.diagnosis.masking import secrets_of  # noqa: PLC0415 - with the names beside it

    shown: set[str] = set()
    with suppress(ImportError):
        from worker.config.settings import Settings  # noqa: PLC0415 - its packages may be missing

        shown = {name.upper() for name in Settings.model_fields} - _secret_names()
        shown.add("COMMANDLINE_ARGS")  # shown as a part of WEBUI_ARGS
    found = secrets_of(environ, shown)
    for name, path in environ.items():
        if name.endswith("_FILE") and name not in shown:
            with suppress(OSError, ValueError):
                found += read_small(Path(path.strip())).decode(errors="replace").split()
    for name in ("WEBUI_ARGS", "COMMANDLINE_ARGS"):
        found += _secret_words(environ.get(name, ""))
    yield json.dumps(found)


def _secret_words(flags: str) -> list[str]:
    """The values of flags such as `--api-auth user:password`."""
    try:
        words = shlex.split(as_meant(flags))
    except ValueError:  # a quote that is not closed
        words = [word.strip("'\"") for word in flags.split()]
    parts = [part for word in words for part in (word.split("=", 1) if word[:1] == "-" else [word])]
    values = [
        value
        for flag, value in itertools.pairwise(parts)
        if flag.startswith("-") and re.search("auth|pass|token|key|secret|ngrok", flag)
    ]
    # `--gradio-auth` takes several, as `user:password,user:password`
    return [part for value in values for part in (value, *re.split("[:,]", value))]


def _secret_names() -> set[str]:
    from worker.config.credentials import CREDENTIALS, VOLUME_KEYS  # noqa: PLC0415 - as above

    names = {name for names in (*CREDENTIALS.values(), *VOLUME_KEYS.values()) for name in names}
    return names | set(MORE_SECRETS)


def _settings(environ: Mapping[str, str]) -> Iterator[str]:
    """The settings as one line of JSON, with the defaults in the place of wrong ones."""
    from worker.config.settings import Settings  # noqa: PLC0415 - its packages may be missing
    from worker.errors import ConfigError  # noqa: PLC0415

    problems: list[str] = []
    given = dict(environ)
    for _ in range(_MOST_WRONG):
        try:
            # With a supervisor it writes nothing on the volume as a trial.
            settings = Settings.from_environ(given | {"SUPERVISOR_PID": "1"})
            break
        except ConfigError as error:
            problems.append(error.message)
            given = _without_wrong(given, error.message)
    is_secret = {name for name, one in Settings.model_fields.items() if "Secret" in str(one)}
    values = {name: value for name, value in settings if name not in is_secret}
    if not environ.get("SUPERVISOR_PID"):
        values["supervisor_pid"] = None
    flags = _shown_flags(values["webui_args"])
    shown = {name.upper(): _shown(value) for name, value in values.items()} | {"WEBUI_ARGS": flags}
    folders = {name.upper(): str(values[name]) for name in _FOLDERS if values[name]}
    chosen = [name.upper() for name in values if environ.get(name.upper(), "").strip()]
    chosen += ["WEBUI_ARGS"] * bool(environ.get("COMMANDLINE_ARGS", "").strip())
    secrets = {
        name: bool(environ.get(name) or environ.get(f"{name}_FILE"))
        for name in sorted(_secret_names())
    }
    found = {"problems": problems, "settings": shown, "folders": folders}
    yield json.dumps(found | {"chosen": chosen, "secrets": secrets})


def _without_wrong(environ: Mapping[str, str], message: str) -> dict[str, str]:
    """The variables without those that the message names; without a name, none is left."""
    wrong = set(_WRONG.findall(message[:10_000])) & environ.keys()
    if not wrong and "BUCKET_" in message:  # about several of them
        wrong = {name for name in environ if name.startswith("BUCKET_")}
    return {name: value for name, value in environ.items() if name not in wrong} if wrong else {}


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _shown_flags(flags: Iterable[str]) -> str:
    """A1111's flags with their numbers; other values may be secret."""
    words = []
    for word in flags:
        flag, equals, value = word.partition("=")
        is_flag = flag.startswith("-")  # else the whole word is a value, also with a `=` in it
        words.append(f"{_flag(flag)}{equals}{value and _flag(value)}" if is_flag else _flag(word))
    return " ".join(words)


def _flag(word: str) -> str:
    return word if re.fullmatch(r"--?[a-z][a-z0-9-]{0,40}|[\d.]{1,5}", word) else "***"
