"""Checks that every image must pass."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

WORKER = "1000"  # the user of everything that the entry point starts


def picture(output):
    """The only picture of a job's output."""
    (encoded,) = output["images"]
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def check_processes(container, engine):
    """One tini, start.sh below it, the engine and the handler below that; none of them is root."""
    tree = container.worker()
    print(
        *(f"{pid:>8} {parent:>8} {user:>5} {command[:120]}" for pid, parent, user, command in tree),
        sep="\n",
    )
    assert {user for _, _, user, _ in tree} == {WORKER}
    children = {}
    for pid, parent, _, command in tree:
        children.setdefault(parent, []).append((pid, command))
    (tini,) = [pid for pid, _, _, command in tree if command.startswith("tini ")]
    ((supervisor, command),) = children[tini]
    assert "start.sh" in command
    commands = [command for _, command in children[supervisor]]
    assert any("handler.py" in command for command in commands)
    assert any(engine in command for command in commands)


def check_health(container, **environ):
    """Run the image's own health check."""
    test = container.image["config"]["Healthcheck"]["Test"]
    assert test[0] == "CMD"
    return container.run(*test[1:], **environ)


def check_history(image_inspection, *secrets):
    """The image's configuration has no secret, and no variable that could hold one."""
    text = json.dumps(image_inspection)
    for secret in secrets:
        assert secret not in text
    names = {entry.split("=")[0] for entry in image_inspection["config"]["Env"]}
    assert not {name for name in names if "KEY" in name or "TOKEN" in name}


def check_is_loopback_only(port):
    """This port is open at 127.0.0.1 only."""
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        listening += [row[1] for row in rows if row[3] == "0A"]
    wanted = f":{port:04X}"
    assert [address for address in listening if address.endswith(wanted)] == [f"0100007F{wanted}"]
