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
from engine.models.checkpoints import Checkpoints
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
    xl = tiny_models.make_xl_checkpoint() | {"v_pred": torch.zeros(1)}
    return {"sd1": tiny_models.make_checkpoint(), "xl": xl}


@pytest.fixture(scope="module")
def models(states, tmp_path_factory):
    """Checkpoint files, and links to their converted folders elsewhere."""
    models, converted = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("converted")
    for name, state in states.items():
        save_file(state, models / f"{name}.safetensors")
    save_file(states["sd1"], models / "odd.safetensors", METADATA)
    (models / DEMO.name).symlink_to(DEMO)
    for name in NAMES:
        convert(models / f"{name}.safetensors", converted / name)
        (models / f"linked {name}").symlink_to(converted / name)
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
            shutil.copytree(models / "linked sd1", folder)

    monkeypatch.setattr(loading, "read_file", lambda *_: Copy())


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def options(config):
    """A diffusers configuration without the entries about the folder it was read from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_folder_and_file_have_the_same_configuration_and_pictures(models, name):
    file = tiny_models.load(models / f"{name}.safetensors")
    folder = tiny_models.load(models / f"linked {name}")
    for part in ("unet", "vae", "scheduler"):
        ours, theirs = (getattr(model.pipe, part).config for model in (folder, file))
        assert options(ours) == options(theirs)
    assert folder.pipe.components.keys() == file.pipe.components.keys()
    for part in folder.pipe.components.keys() & {"text_encoder", "text_encoder_2"}:
        ours, theirs = (getattr(m.pipe, part).config.to_diff_dict() for m in (folder, file))
        assert ours == theirs | {"dtype": "float32"}
    difference = tiny_models.draw(folder) - tiny_models.draw(file)
    # the alignment of the weights in memory selects the CPU's kernels: the last bit may differ
    assert abs(difference).max() <= 1
    assert np.count_nonzero(difference) < 0.001 * difference.size


@pytest.mark.parametrize(
    ("file", "option", "expected"),
    [
        ("odd/scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
        ("odd/unet/config.json", "attention_head_dim", 4),
        ("odd/text_encoder/config.json", "num_attention_heads", 2),
        ("sd1/vae/config.json", "force_upcast", False),
        ("xl/vae/config.json", "force_upcast", True),  # computed in single precision
    ],
)
def test_options_in_the_folder(models, file, option, expected):
    assert json.loads((models / f"linked {file}").read_text())[option] == expected


@pytest.mark.parametrize(
    ("name", "dtype", "weights"),
    [("sd1", torch.float32, SD1_WEIGHTS), ("xl", torch.bfloat16, XL_WEIGHTS)],
)
def test_every_tensor_is_in_half_precision(states, models, tmp_path, name, dtype, weights):
    source = tmp_path / "source.safetensors"
    save_file({key: value.to(dtype) for key, value in states[name].items()}, source)
    for folder in (Path(convert(source, tmp_path / "folder").folder), models / f"linked {name}"):
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")}
        assert found == weights
        for file in found:
            assert {value.dtype for value in load_file(folder / file).values()} == {torch.float16}
        files = [path for path in folder.rglob("*.*") if path.is_file()]
        assert len({stat.S_IMODE(path.stat().st_mode) for path in files}) == 1


def test_link_to_a_folder_is_a_checkpoint_with_the_name_of_the_link(models, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/circle").symlink_to(tmp_path)
    (tmp_path / "sub/gone").symlink_to("nowhere")
    (tmp_path / "sub/my model").symlink_to((models / "linked sd1").resolve())
    checkpoints = Checkpoints(tmp_path)
    (checkpoint,) = checkpoints.all
    assert (checkpoint.name, checkpoint.stem) == ("sub/my model", "my model")
    assert checkpoint.is_folder
    for alias in ("sub_my model", "my model", checkpoints.sha256(checkpoint)):
        assert checkpoints.find(alias) == checkpoint


def test_complete_target_is_not_changed(models, tmp_path):
    target = models / "linked xl"
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    again = convert(tmp_path / "missing", target)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    assert again.size == sum(file.size for file in again.files) > 20_000_000


def truncate(target):
    (target / UNET).write_bytes((target / UNET).read_bytes()[:-1])


def single_precision(target):
    state = load_file(target / VAE)
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"].float()
    save_file(state, target / VAE)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (truncate, f"{UNET} is damaged"),
        (lambda t: (t / "tokenizer_2/tokenizer.json").unlink(), "tokenizer.json is missing"),
        (single_precision, f"{VAE} is not in half precision"),
        (lambda t: (t / "model_index.json").write_text("<html>"), "missing or damaged"),
    ],
)
def test_incomplete_target_is_reported_and_not_changed(models, tmp_path, damage, problem):
    target = tmp_path / "folder"
    shutil.copytree(models / "linked xl", target)
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
    target, synced, sync = tmp_path / "folder", [], os.fsync

    def record(handle):
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), target.exists()))
        sync(handle)

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
    (tmp_path / "folder").symlink_to((models / "linked xl").resolve())
    os.close(first)
    second.join()
    assert (tmp_path / "folder").is_symlink()


CLIP = ldm.CLIP + "text_model."
NO_TENSORS = "is missing tensors of its architecture, or their shapes are wrong"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({CLIP + "final_layer_norm.weight": None}, r"is missing a tensor \(text_encoder: final_"),
        ({ldm.UNET + "middle_block.1.norm.weight": None}, NO_TENSORS),
        ({ldm.UNET + "middle_block.1.norm.weight": torch.zeros(3)}, NO_TENSORS),
        ({ldm.VAE + "decoder.conv_in.bias": torch.full((32,), 1e5)}, r"cannot hold \(vae: decoder"),
        ({ldm.VAE: None}, "is not a complete SD1.x or SDXL checkpoint"),
        ({ldm.UNET + "input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, "does not support"),
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


def test_damaged_and_missing_files_are_refused_in_one_sentence(run, source, tmp_path):
    whole = source.read_bytes()
    for length in (0, 4, 1000, -1):
        source.write_bytes(whole[:length])
        status, out, err = run(source, tmp_path / "folder")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "is damaged, or not a safetensors file" in err
    source.unlink()
    expected = f"{source} does not exist, or is not a file\n"
    assert run(source, tmp_path / "folder") == (1, "", expected)


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


@pytest.mark.usefixtures("no_conversion")
def test_command_prints_one_line_of_json(run, source, tmp_path, monkeypatch):
    """And nothing else on stdout, even if a library prints."""
    target, read = tmp_path / "folder", loading.read_file
    monkeypatch.setattr(
        loading, "read_file", lambda *given: sys.stdout.write("noise\n") and read(*given)
    )
    status, out, err = run(source, target)
    assert (status, err, out.count("\n")) == (0, "noise\n", 1)
    answer = json.loads(out)
    assert answer["folder"] == str(target)
    sha256 = {str(k): hashlib.sha256(v).hexdigest() for k, v in contents(target).items()}
    assert {file["path"]: file["sha256"] for file in answer["files"]} == sha256
    assert answer["size"] == sum(map(len, contents(target).values()))
    assert sha256.keys() >= SD1_WEIGHTS | {"model_index.json"}


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_missing_packages_are_one_sentence_with_the_fix(
    run, source, tmp_path, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "engine.models.loading")
    status, out, err = run(source, tmp_path / "folder")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"{package} is missing: pip install -r requirements-engine.txt")


def test_full_disk_is_one_sentence_and_leaves_nothing(run, source, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, before[1]))
    try:
        status, out, err = run(source, tmp_path / "folder")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"cannot write {tmp_path}/folder: ")
    assert list(tmp_path.iterdir()) == [source]


def test_wrong_arguments_in_a_process_of_its_own(run):
    command = [sys.executable, "-m", "engine.models.convert"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    answers = [run("one"), run("a", "b", "c"), run("a", "b", "--half")]
    for status, out, err in [*answers, (done.returncode, done.stdout, done.stderr)]:
        assert (status, out) == (2, "")
        assert "usage: python -m engine.models.convert" in err
