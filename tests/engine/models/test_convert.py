"""A single file made into a diffusers folder: what is in it, what it draws, what may go wrong."""

import fcntl
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from fakes import tiny_models
from safetensors.torch import load_file, save_file

from engine.api.generation import Engine
from engine.api.options import Options
from engine.api.request import Txt2Img
from engine.models.checkpoints import Checkpoints
from engine.models.convert import NotConverted, convert
from engine.models.loading import read_pipeline

# diffusers' schedulers; the engine's own process shows no such warnings
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "demo/Stable-diffusion/demo-shapes.safetensors"
HEADS = {"unet": {"attention_head_dim": 4}, "text_encoder": {"num_attention_heads": 2}}
METADATA = {"prediction_type": "v_prediction", "engine.config": json.dumps(HEADS)}
SD1_WEIGHTS = {
    "text_encoder/model.fp16.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}
WEIGHTS = {"sd1": SD1_WEIGHTS, "xl": SD1_WEIGHTS | {"text_encoder_2/model.fp16.safetensors"}}


@pytest.fixture(scope="module")
def states():
    """The tensors of a tiny SD1 and a tiny SDXL checkpoint."""
    return {"sd1": tiny_models.make_checkpoint(), "xl": tiny_models.make_xl_checkpoint()}


@pytest.fixture(scope="module")
def engine(states, tmp_path_factory):
    """Checkpoints as files, their converted folders elsewhere, and links to these."""
    data, converted = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("converted")
    models = data / "models/Stable-diffusion"
    models.mkdir(parents=True)
    for name, state in states.items():
        save_file(state, models / f"{name}.safetensors")
    save_file(states["sd1"], models / "odd.safetensors", METADATA)
    save_file(states["xl"] | {"v_pred": torch.zeros(1)}, models / "xl-v.safetensors")
    (models / DEMO.name).symlink_to(DEMO)
    for file in list(models.iterdir()):
        convert(file, converted / file.stem)
        (models / f"linked {file.stem}").symlink_to(converted / file.stem)
    engine = Engine(data, Options(data / "config.json"), threads=1)
    yield engine
    engine.close()


NAMES = ["sd1", "xl", "odd", "xl-v", DEMO.stem]


def draw(engine, alias):
    """The picture's text (a PNG in base64) and the answer's `info`."""
    settings = {"sd_model_checkpoint": alias}
    request = Txt2Img(prompt="a (red:1.2) cat", seed=1, steps=2, width=64, height=64)
    answer = engine.txt2img(request.model_copy(update={"override_settings": settings}))
    return answer["images"][0], json.loads(answer["info"])


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------- the result


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_draws_exactly_what_the_file_draws(engine, decode, name):
    picture, info = draw(engine, f"linked {name}")
    assert info["sd_model_name"] == f"linked {name}"
    # Which kernels a CPU takes depends on where the weights lie: the last bit may differ.
    difference = decode(picture).astype(int) - decode(draw(engine, f"{name}.safetensors")[0])
    assert abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


def options(config):
    """Of a diffusers configuration; what is left out is about the folder it was read from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_has_the_files_configuration(engine, name):
    models = engine.checkpoints.folder
    file, folder = map(read_pipeline, (models / f"{name}.safetensors", models / f"linked {name}"))
    for part in ("unet", "vae", "scheduler"):
        assert options(getattr(folder, part).config) == options(getattr(file, part).config)
    assert folder.components.keys() == file.components.keys()
    for part in folder.components.keys() & {"text_encoder", "text_encoder_2"}:
        ours, theirs = (getattr(pipe, part).config.to_diff_dict() for pipe in (folder, file))
        assert ours == theirs | {"dtype": "float32"}


def test_unusual_facts_of_a_file_reach_the_folder(engine):
    folder = engine.checkpoints.folder / "linked odd"
    read = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/*config.json")}
    assert read["scheduler"]["prediction_type"] == "v_prediction"
    assert read["unet"]["attention_head_dim"] == 4
    assert read["text_encoder"]["num_attention_heads"] == 2


def test_the_vae_of_sdxl_stays_one_to_be_computed_in_single_precision(engine):
    for name, exact in (("sd1", False), ("xl", True)):
        config = engine.checkpoints.folder / f"linked {name}/vae/config.json"
        assert json.loads(config.read_text())["force_upcast"] is exact


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_every_tensor_is_in_half_precision(states, tmp_path, name, dtype):
    source = tmp_path / "source.safetensors"
    save_file({key: value.to(dtype) for key, value in states[name].items()}, source)
    folder = Path(convert(source, tmp_path / "folder").folder)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")}
    assert found == WEIGHTS[name]
    for file in found:
        assert {value.dtype for value in load_file(folder / file).values()} == {torch.float16}


def test_two_conversions_give_the_same_bytes(engine, tmp_path):
    source = engine.checkpoints.folder / "xl.safetensors"
    convert(source, tmp_path / "deeper/again")
    assert contents(tmp_path / "deeper/again") == contents(source.with_name("linked xl"))


def test_others_may_read_the_weights(engine):
    folder = engine.checkpoints.folder / "linked sd1"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.*") if path.is_file()}
    assert len(modes) == 1


# ------------------------------------------------------------------------------- all or nothing


@pytest.fixture
def source(states, tmp_path):
    path = tmp_path / "source.safetensors"
    save_file(states["sd1"], path)
    return path


def test_a_target_that_is_whole_is_left_alone(engine, source):
    target = engine.checkpoints.folder / "linked xl"
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    again = convert(source.with_name("not even there"), target)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    assert again.size == sum(file.size for file in again.files) > 20_000_000


def a_truncated_file(target):
    path = target / "unet/diffusion_pytorch_model.fp16.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def a_file_too_few(target):
    (target / "tokenizer_2/tokenizer.json").unlink()


def single_precision(target):
    path = target / "vae/diffusion_pytorch_model.fp16.safetensors"
    state = load_file(path)
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"].float()
    save_file(state, path)


def a_broken_index(target):
    (target / "model_index.json").write_text("<html>")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (a_truncated_file, "unet/diffusion_pytorch_model.fp16.safetensors is damaged"),
        (a_file_too_few, "tokenizer_2/tokenizer.json is missing"),
        (single_precision, "vae/diffusion_pytorch_model.fp16.safetensors is not in half precision"),
        (a_broken_index, "model_index.json is missing or damaged"),
    ],
)
def test_a_target_that_is_not_whole_is_named_and_left_alone(engine, tmp_path, damage, problem):
    target = tmp_path / "folder"
    convert(engine.checkpoints.folder / "xl.safetensors", target)
    damage(target)
    before = contents(target)
    with pytest.raises(NotConverted, match=f"no converted checkpoint .{problem}.: remove it"):
        convert(engine.checkpoints.folder / "xl.safetensors", target)
    assert contents(target) == before


def test_what_killed_runs_left_is_removed_and_nothing_else(source, tmp_path):
    own, others = (
        f".model [v1].{'0a' * 16}.new",
        [f".model.{'0a' * 16}.new", ".model [v1].mine.new"],
    )
    for name in (own, *others):
        (tmp_path / name / "unet").mkdir(parents=True)
    convert(source, tmp_path / "model [v1]")
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "model [v1]", *others}


def test_the_folder_appears_after_all_of_it_is_on_the_disk(source, tmp_path, monkeypatch):
    target, synced, sync = tmp_path / "folder", [], os.fsync

    def note(handle):
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), target.exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    convert(source, target)
    early = {path.name for path, was_there in synced if not was_there}
    assert early >= {path.name for path in target.rglob("*")}
    assert synced[-1] == (tmp_path, True)


def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(_self, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(source, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [source]


def test_one_conversion_at_a_time_in_a_folder(engine, source, tmp_path):
    """The second finds what the first made."""
    first = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    second = threading.Thread(target=convert, args=(source, tmp_path / "folder"))
    second.start()
    second.join(timeout=2)
    assert list(tmp_path.iterdir()) == [source]
    (tmp_path / "folder").symlink_to((engine.checkpoints.folder / "linked xl").resolve())
    os.close(first)
    second.join()
    assert (tmp_path / "folder").is_symlink()


# ------------------------------------------------------------------------------- what is refused


def broken(states, name):
    """A file's tensors that are not a whole checkpoint, by what is wrong with them."""
    state = dict(states["sd1"])
    unet, vae = "model.diffusion_model.", "first_stage_model."
    match name:
        case "no final norm":
            del state["cond_stage_model.transformer.text_model.final_layer_norm.weight"]
        case "no middle":
            del state[f"{unet}middle_block.1.norm.weight"]
        case "another shape":
            state[f"{unet}middle_block.1.norm.weight"] = torch.zeros(3)
        case "too large":
            state[f"{vae}decoder.conv_in.bias"] = torch.full((32,), 1e5)
        case "no VAE":
            state = {key: value for key, value in state.items() if not key.startswith(vae)}
        case "inpainting":
            state[f"{unet}input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
        case "LoRA":
            state = tiny_models.make_lora()
    return state


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("no final norm", r"lacks a tensor \(text_encoder: final_layer_norm.weight\)"),
        ("no middle", "lacks tensors of its architecture, or they have other shapes"),
        ("another shape", "lacks tensors of its architecture, or they have other shapes"),
        ("too large", r"is no number in half precision \(vae: decoder.conv_in.bias\)"),
        ("no VAE", "is no whole checkpoint of SD1.x or SDXL"),
        ("LoRA", "is no whole checkpoint of SD1.x or SDXL"),
        ("inpainting", "the embedded engine does not support .* .inpainting."),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused(states, tmp_path, name, cause):
    source = tmp_path / "source.safetensors"
    save_file(broken(states, name), source)
    with pytest.raises(NotConverted, match=f"^{source}.*{cause}") as caught:
        convert(source, tmp_path / "folder")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_a_damaged_file_is_refused(source, tmp_path, length):
    source.write_bytes(source.read_bytes()[:length])
    with pytest.raises(NotConverted, match="damaged or no safetensors file"):
        convert(source, tmp_path / "folder")


# ------------------------------------------------------------------------------- the command line


def run(*arguments, before="pass"):
    """The command in a process of its own, after a statement there."""
    code = f"{before}; import runpy; runpy.run_module('engine.models.convert', run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_answers_with_one_line_of_json(source, tmp_path):
    """And with nothing else on stdout, whatever the libraries print."""
    target = tmp_path / "folder"
    noise = (
        "from engine import loading as l; read = l.read_file; "
        "l.read_file = lambda *given: print('noise') or read(*given)"
    )
    done = run(source, target, before=noise)
    assert (done.returncode, done.stderr) == (0, "noise\n")
    assert done.stdout.count("\n") == 1
    answer = json.loads(done.stdout)
    assert answer["folder"] == str(target)
    sha256 = {
        str(k): hashlib.sha256(content).hexdigest() for k, content in contents(target).items()
    }
    assert {file["path"]: file["sha256"] for file in answer["files"]} == sha256
    assert answer["size"] == sum(map(len, contents(target).values()))
    assert {file["path"] for file in answer["files"]} >= SD1_WEIGHTS | {"model_index.json"}


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_missing_packages_are_one_sentence_that_says_what_to_do(source, tmp_path, package):
    done = run(source, tmp_path / "folder", before=f"import sys; sys.modules['{package}'] = None")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{package} is missing: pip install -r requirements-engine.txt")
    assert done.stderr.count("\n") == 1


def test_what_cannot_be_converted_is_one_sentence(tmp_path):
    done = run(tmp_path / "none.safetensors", tmp_path / "folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"there is no file {tmp_path}/none.safetensors\n"


def test_a_full_disk_is_one_sentence(source, tmp_path):
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (5_000_000, 5_000_000))"
    done = run(source, tmp_path / "folder", before=limit)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"cannot write {tmp_path}/folder: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("arguments", [(), ("one",), ("one", "two", "three"), ("a", "b", "--half")])
def test_wrong_arguments(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python -m engine.models.convert" in done.stderr


# ------------------------------------------------------------------------------- links to folders


def test_a_link_to_a_folder_is_one_checkpoint_of_the_links_name(engine):
    listed = [checkpoint.name for checkpoint in engine.checkpoints.all]
    assert sorted(listed) == sorted(
        [f"{n}.safetensors" for n in NAMES] + [f"linked {n}" for n in NAMES]
    )
    checkpoint = engine.checkpoints.find("linked sd1")
    assert (checkpoint.is_folder, checkpoint.stem) == (True, "linked sd1")
    assert engine.checkpoints.find(engine.checkpoints.sha256(checkpoint)) == checkpoint


def test_links_in_subfolders_and_in_a_circle(engine, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/circle").symlink_to(tmp_path)
    (tmp_path / "sub/gone").symlink_to("nowhere")
    (tmp_path / "sub/model").symlink_to((engine.checkpoints.folder / "linked sd1").resolve())
    checkpoints = Checkpoints(tmp_path)
    assert [checkpoint.name for checkpoint in checkpoints.all] == ["sub/model"]
    assert checkpoints.find("sub_model") == checkpoints.find("model")
