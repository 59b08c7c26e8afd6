"""What the tests of client.py share: the program as a process, and an endpoint on loopback."""

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.runpod_endpoint import KEY, RunPodEndpoint, completed, progress, queued
from PIL import Image

from worker.generation.picture import from_engine
from worker.images.metadata import as_png

CLIENT = Path(__file__).parents[2] / "client.py"
INFOTEXT = (
    "a red fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 4.0, Seed: 42"
)
# The pauses between requests without their seconds; everything else as it is.
QUICK = """
import sys
sys.path.insert(0, {folder!r})
import client
client.PAUSES = (0.0,) * len(client.PAUSES)
client.POLL_FIRST = 0.01
exec({more!r})
sys.argv[0] = "client.py"
sys.exit(client.main())
"""


def picture(kind="png", infotext=INFOTEXT, color="red"):
    """A picture's file, as the worker sends it."""
    png = base64.b64encode(as_png(Image.new("RGB", (8, 8), color), {"parameters": infotext}))
    return from_engine(png.decode(), kind).data


def drawn(*pictures, **more):
    """The answer of a job that drew these files."""
    info = {"prompt": "a red fox", "seed": 42, "all_seeds": [42 + n for n in range(len(pictures))]}
    info |= {"width": 256, "height": 256, "steps": 20, "sampler_name": "Euler a"}
    images = [base64.b64encode(data).decode() for data in pictures]
    about = {"models": [{"name": "demo-shapes"}], "timings": {"generate": 1.4, "total": 1.5}}
    return completed(**{"images": images, "info": json.dumps(info), **about, **more})


def draws(_job_input):
    """The states of a job that draws one picture."""
    report = progress(phase="generate", percent=48.0, message="step 12 of 25", eta_seconds=8.2)
    return [queued(), report, drawn(picture())]


@dataclass
class Client:
    """client.py as a process in a folder of its own."""

    folder: Path
    environ: dict[str, str]
    program: str = str(CLIENT)
    isolated: bool = False  # Python without installed packages

    def start(self, *arguments, quick="", warnings="error", **more):
        """`quick` is further code before it starts; None starts the file itself."""
        program = [self.program]
        if quick is not None and not self.isolated:
            program = ["-c", QUICK.format(folder=str(Path(self.program).parent), more=quick)]
        program = ["-IS", *program] if self.isolated else program
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options |= {"stdin": subprocess.DEVNULL}
        command = [sys.executable, "-W", warnings, *program, *map(str, arguments)]
        return subprocess.Popen(command, cwd=self.folder, env=self.environ, **(options | more))

    def end(self, process, stdin=None):
        """Exit status, standard output, standard error; never a traceback, never the key."""
        out, err = (
            text.decode() if text else "" for text in process.communicate(stdin, timeout=60)
        )
        assert "Traceback" not in err
        assert KEY not in out + err
        return process.returncode, out, err

    def __call__(self, *arguments, stdin=None, **more):
        more |= {} if stdin is None else {"stdin": subprocess.PIPE}
        return self.end(self.start(*arguments, **more), stdin)

    def files(self):
        return sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*.*"))


@pytest.fixture
def endpoint():
    with RunPodEndpoint(draws) as running:
        yield running


@pytest.fixture
def client(endpoint, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUTF8": "1"}
    return Client(folder, environ | endpoint.environ())
