"""Converting a file to a diffusers folder: its content, its pictures, its errors."""

import fcntl
import hashlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from fakes import tiny_models
from safetensors.torch import load_file, save_file

from engine.models import ldm, loading
from engine.models.convert import NotConverted, convert, main

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "demo/Stable-diffusion/demo-shapes.safetensors"
HEADS = {"unet": {"attention_head_dim": 4}, "text_encoder": {"num_attention_heads": 2}}
METADATA = {"prediction_type": "v_prediction", "engine.config": json.dumps(HEADS)}
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
VAE = "vae/diffusion_pytorch_model.fp16.safetensors"
SD1_WEIGHTS = {"text_encoder/model.fp16.safetensors", UNET, VAE}
XL_WEIGHTS = SD1_WEIGHTS | {"text_encoder_2/model.fp16.safetensors"}
NAMES = ["sd1", "odd", "xl", DEMO.stem]


@pytest.fixture(scope="module")
def states():
    """The tensors of a tiny SD1 and a tiny SDXL checkpoint."""
    xl = tiny_models.make_checkpoint(xl=True) | {"v_pred": torch.zeros(1)}
    return {"sd1": tiny_models.make_checkpoint(), "xl": xl}


@pytest.fixture(scope="module")
def models(states, tmp_path_factory):
    """Checkpoint files, and their converted folders."""
    models = tmp_path_factory.mktemp("models")
    for name, state in states.items():
        save_file(state, models / f"{name}.safetensors")
    save_file(states["sd1"], models / "odd.safetensors", METADATA)
    (models / DEMO.name).symlink_to(DEMO)
    for name in NAMES:
        convert(models / f"{name}.safetensors", models / name)
    return models


@pytest.fixture
def source(states, tmp_path):
    path = tmp_path / "source.safetensors"
    save_file(states["sd1"], path)
    return path


@pytest.fixture
def no_conversion(models, monkeypatch):
    """In place of a conversion, copy a converted folder."""

    class Copy:
        components: ClassVar = {}

        def save_pretrained(self, folder, variant):
            assert variant == "fp16"
            shutil.copytree(models / "sd1", folder)

    monkeypatch.setattr(loading, "read_file", lambda *_: Copy())


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_folder_and_file_have_the_same_configuration_and_pictures(models, name):
    file = tiny_models.load(models / f"{name}.safetensors")
    folder = tiny_models.load(models / name)
    for part in ("unet", "vae", "scheduler"):
        configs = (getattr(model.pipe, part).config.items() for model in (folder, file))
        # without the entries about the folder that it was read from
        ours, theirs = ({k: v for k, v in config if k[0] != "_"} for config in configs)
        assert ours == theirs
    assert folder.pipe.components.keys() == file.pipe.components.keys()
    for part in folder.pipe.components.keys() & {"text_encoder", "text_encoder_2"}:
        ours, theirs = (getattr(m.pipe, part).config.to_diff_dict() for m in (folder, file))
        assert ours == theirs | {"dtype": "float32"}
    difference = tiny_models.draw(folder) - tiny_models.draw(file)
    # the alignment of the weights in memory selects the CPU's kernels: the last bit may differ
    assert abs(difference).max() <= 1
    assert np.count_nonzero(difference) < 0.001 * difference.size


def test_options_in_the_folder(models):
    for file, option, expected in (
        ("odd/scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
        ("odd/unet/config.json", "attention_head_dim", 4),
        ("odd/text_encoder/config.json", "num_attention_heads", 2),
        ("sd1/vae/config.json", "force_upcast", False),
        ("xl/vae/config.json", "force_upcast", True),  # computed in single precision
    ):
        assert json.loads((models / file).read_text())[option] == expected, file


@pytest.mark.parametrize(
    ("name", "dtype", "weights"),
    [("sd1", torch.float32, SD1_WEIGHTS), ("xl", torch.bfloat16, XL_WEIGHTS)],
)
def test_every_tensor_is_in_half_precision(states, models, tmp_path, name, dtype, weights):
    source = tmp_path / "source.safetensors"
    save_file({key: value.to(dtype) for key, value in states[name].items()}, source)
    for folder in (Path(convert(source, tmp_path / "folder").folder), models / name):
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")}
        assert found == weights
        for file in found:
            assert {value.dtype for value in load_file(folder / file).values()} == {torch.float16}
        files = [path for path in folder.rglob("*.*") if path.is_file()]
        assert len({stat.S_IMODE(path.stat().st_mode) for path in files}) == 1


def test_complete_target_is_not_changed(models, tmp_path):
    def times():
        return {path: path.stat().st_mtime_ns for path in (models / "xl").rglob("*")}

    before, again = times(), convert(tmp_path / "missing", models / "xl")
    assert times() == before
    assert again.size == sum(file.size for file in again.files) > 20_000_000


def single_precision(target):
    state = load_file(target / VAE)
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"].float()
    save_file(state, target / VAE)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda t: os.truncate(t / UNET, (t / UNET).stat().st_size - 1), f"{UNET} is damaged"),
        (lambda t: (t / "tokenizer_2/tokenizer.json").unlink(), "tokenizer.json is missing"),
        (single_precision, f"{VAE} is not in half precision"),
        (lambda t: (t / "model_index.json").write_text("<html>"), "missing or damaged"),
    ],
)
def test_incomplete_target_is_reported_and_not_changed(models, tmp_path, damage, problem):
    target = tmp_path / "folder"
    shutil.copytree(models / "xl", target)
    damage(target)
    before = contents(target)
    with pytest.raises(NotConverted, match=rf"not a complete .* \(.*{problem}\): remove it"):
        convert(models / "xl.safetensors", target)
    assert contents(target) == before


@pytest.mark.usefixtures("no_conversion")
def test_only_leftovers_of_killed_runs_are_removed(source, tmp_path):
    own = f".model [v1].{'0a' * 16}.new"
    others = [f".model.{'0a' * 16}.new", ".model [v1].mine.new"]
    for name in (own, *others):
        (tmp_path / name / "unet").mkdir(parents=True)
    convert(source, tmp_path / "model [v1]")
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "model [v1]", *others}


@pytest.mark.usefixtures("no_conversion")
def test_every_file_is_synced_before_the_folder_appears(source, tmp_path, monkeypatch):
    target, synced, fsync = tmp_path / "folder", [], os.fsync

    def record(handle):
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), target.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    convert(source, target)
    early = {path.name for path, was_there in synced if not was_there}
    assert early >= {path.name for path in target.rglob("*")}
    assert synced[-1] == (tmp_path, True)


@pytest.mark.usefixtures("no_conversion")
def test_one_conversion_at_a_time_in_a_folder(models, source, tmp_path, monkeypatch):
    """The second conversion finds the folder that the first one made."""
    first, waiting, lock = os.open(tmp_path, os.O_RDONLY), threading.Event(), fcntl.flock
    lock(first, fcntl.LOCK_EX)
    monkeypatch.setattr(fcntl, "flock", lambda *given: waiting.set() or lock(*given))
    second = threading.Thread(target=convert, args=(source, tmp_path / "folder"))
    second.start()
    assert waiting.wait(timeout=60)
    assert list(tmp_path.iterdir()) == [source]
    (tmp_path / "folder").symlink_to((models / "xl").resolve())
    os.close(first)
    second.join()
    assert (tmp_path / "folder").is_symlink()


FINAL_NORM = ldm.CLIP + "text_model.final_layer_norm.weight"
NORM = ldm.UNET + "middle_block.1.norm.weight"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({FINAL_NORM: None}, r"lacks tensors of its architecture: 1 \(the first: '.*layer_norm.w"),
        ({NORM: None}, "lacks tensors"),
        ({NORM: torch.zeros(3)}, r"has the shape \[3\]"),
        ({ldm.VAE + "decoder.conv_in.bias": torch.full((32,), 1e5)}, r"cannot hold \(vae: decoder"),
        ({ldm.VAE: None}, "is not a complete SD1.x or SDXL checkpoint"),
        ({ldm.UNET + "input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, "does not support"),
    ],
)
def test_incomplete_checkpoint_is_refused(states, tmp_path, change, cause):
    ((key, tensor),) = change.items()
    state = {k: v for k, v in states["sd1"].items() if not k.startswith(key)}
    source = tmp_path / "source.safetensors"
    save_file(state | ({} if tensor is None else change), source)
    with pytest.raises(NotConverted, match=f"^{source}.*{cause}") as caught:
        convert(source, tmp_path / "folder")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


@pytest.fixture
def run(monkeypatch, capsys):
    """The command in this process: its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        status, message = 0, ""
        try:
            main()
        except SystemExit as end:
            status, message = (1, f"{end}\n") if isinstance(end.code, str) else (end.code, "")
        out, err = capsys.readouterr()
        return status, out, err + message

    return run


@pytest.fixture
def fails(run, source, tmp_path):
    """Assert that the command fails with one sentence, which contains this, and leaves nothing."""

    def fails(sentence):
        before = [*tmp_path.iterdir()]
        status, out, err = run(source, tmp_path / "folder")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert sentence in err
        assert [*tmp_path.iterdir()] == before

    return fails


def test_damaged_and_missing_files_are_one_sentence(fails, source):
    whole = source.read_bytes()
    for length in (0, 4, 1000, -1):
        source.write_bytes(whole[:length])
        fails("is damaged, or not a safetensors file")
    source.unlink()
    fails(f"{source} does not exist, or is not a file\n")


@pytest.mark.usefixtures("no_conversion")
def test_command_prints_one_line_of_json(run, source, tmp_path, monkeypatch):
    """And nothing else on stdout, even if a library prints."""
    target, read = tmp_path / "folder", loading.read_file
    monkeypatch.setattr(
        loading, "read_file", lambda *given: sys.stdout.write("noise\n") and read(*given)
    )
    status, out, err = run(source, target)
    assert (status, err, out.count("\n")) == (0, "noise\n", 1)
    answer, made = json.loads(out), contents(target)
    sha256 = {str(path): hashlib.sha256(content).hexdigest() for path, content in made.items()}
    assert {file["path"]: file["sha256"] for file in answer["files"]} == sha256
    assert (answer["folder"], answer["size"]) == (str(target), sum(map(len, made.values())))
    assert sha256.keys() >= SD1_WEIGHTS | {"model_index.json"}


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_missing_packages_are_one_sentence_with_the_fix(fails, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "engine.models.loading")
    fails(f"{package} is missing: pip install -r requirements-engine.txt")


def test_full_disk_is_one_sentence_and_leaves_nothing(fails, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, before[1]))
    try:
        fails(f"cannot write {tmp_path}/folder: ")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_wrong_arguments_in_a_process_of_its_own(run):
    command = [sys.executable, "-m", "engine.models.convert"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    answers = [run("one"), run("a", "b", "c"), run("a", "b", "--half")]
    for status, out, err in [*answers, (done.returncode, done.stdout, done.stderr)]:
        assert (status, out) == (2, "")
        assert "usage: python -m engine.models.convert" in err
