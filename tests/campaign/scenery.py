"""What the jobs of a campaign need: model files in a store and at hosts, and pictures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes import input_pictures, model_files
from fakes.hosts.model_hosts import ModelHosts

FILLING = 400_000  # bytes of a model file beside its tensors: several reads of a download


@dataclass(frozen=True)
class Model:
    """A model as a job names it, and the host that it is fetched from; empty: an own file."""

    ref: Any
    host: str = ""
    word: str = ""  # with which a prompt uses it, if it is an embedding


@dataclass
class Scenery:
    """All models and pictures.

    Attributes:
        own: files of the store, by their paths in it.
        variants: files that a neighbour replaces: path -> the two contents.
        answers: what an upscaler and a description need in the engine's folder.
    """

    engine: str
    own: dict[str, bytes] = field(default_factory=dict)
    variants: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    checkpoints: list[Model] = field(default_factory=list)
    loras: list[Model] = field(default_factory=list)
    vaes: list[Model] = field(default_factory=list)
    embeddings: list[Model] = field(default_factory=list)
    picture: bytes = b""
    mask: bytes = b""
    picture_url: str = ""

    def write_store(self, folder: Path) -> None:
        """Write the own files into a store."""
        for name in self.own:
            self.write_own(folder, name)
        for name, (content, _) in self.variants.items():
            replace_file(folder / name, content)

    def write_own(self, folder: Path, name: str) -> None:
        """Write one of them."""
        replace_file(folder / name, self.own[name])

    def write_engine(self, folder: Path) -> None:
        """Write what the fake engine needs to describe a picture."""
        path = folder / "models/BLIP/model_base_caption_capfilt_large.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file as a careful neighbour does: never half of it under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.replace(path)


Make = Callable[[str, int], bytes]


def _small(kind: str, number: int) -> bytes:
    """A file that the fake A1111 reads."""
    shapes = {
        "checkpoint": model_files.SD1,
        "lora": model_files.LORA,
        "vae": model_files.VAE,
        "embedding": model_files.EMBEDDING,
    }
    filling = 0 if kind in {"embedding", "vae"} else FILLING
    return model_files.safetensors(shapes[kind], number=number, size=filling)


def _drawable(kind: str, number: int) -> bytes:
    """A file that the embedded engine draws with."""
    import tempfile

    from fakes import tiny_models

    make = {"checkpoint": tiny_models.make_checkpoint, "lora": tiny_models.make_lora}[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        tiny_models.write(make(number), path)
        return path.read_bytes()


def build(engine: str, hosts: ModelHosts) -> Scenery:
    """Make the files and give the hosts theirs."""
    make = _small if engine == "fake" else _drawable
    scenery = Scenery(engine)
    scenery.own = {
        "Stable-diffusion/first.safetensors": make("checkpoint", 1),
        "Lora/detail.safetensors": make("lora", 2),
    }
    scenery.checkpoints = [Model("first"), *_hosted(hosts, make, "checkpoint", 100)]
    scenery.loras = [Model("detail"), Model("swap"), *_hosted(hosts, make, "lora", 200)]
    scenery.variants = {"Lora/swap.safetensors": (make("lora", 3), make("lora", 4))}
    if engine == "fake":
        _add_for_fake(scenery, hosts)
    scenery.picture = input_pictures.saved(input_pictures.scene(), "PNG")
    scenery.mask = input_pictures.saved(input_pictures.mask(), "PNG")
    scenery.picture_url = hosts.add_web("/pictures/scene.png", scenery.picture)
    return scenery


def _add_for_fake(scenery: Scenery, hosts: ModelHosts) -> None:
    scenery.own["Stable-diffusion/second.safetensors"] = _small("checkpoint", 5)
    scenery.own["VAE/soft.safetensors"] = _small("vae", 6)
    scenery.variants["Stable-diffusion/turn.safetensors"] = (
        _small("checkpoint", 7),
        _small("checkpoint", 8),
    )
    scenery.checkpoints += [Model("second"), Model("turn")]
    hosts.add_model(version_id=301, data=_small("vae", 301), name="clear.safetensors", kind="VAE")
    scenery.vaes = [Model("soft"), Model("301", "civitai")]
    data = _small("embedding", 401)
    hosts.add_model(version_id=401, data=data, name="easyneg.safetensors", kind="TextualInversion")
    scenery.embeddings = [Model("civitai:401@401", "civitai", "easyneg")]


def _hosted(hosts: ModelHosts, make: Make, kind: str, first: int) -> list[Model]:
    """One model of this kind at each host."""
    civitai = {"checkpoint": "Checkpoint", "lora": "LORA"}[kind]
    name, path = f"{kind}{first}.safetensors", f"{kind}s/{kind}{first + 1}.safetensors"
    hosts.add_model(
        version_id=first, model_id=first, data=make(kind, first), name=name, kind=civitai
    )
    hosts.add_hf("org/models", path, make(kind, first + 1))
    url = hosts.add_web(f"/models/{kind}{first + 2}.safetensors", make(kind, first + 2))
    hub = Model(f"org/models/{path}", "huggingface")
    return [Model(str(first), "civitai"), hub, Model(url, "web")]
