"""Faults of files: damage, neighbours on the volume, and folders that disappear."""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from campaign.catalogue import LOST, RETIRED, VANISHED, Fault, Heal
from campaign.world import World

Work = Callable[[Path, random.Random], None]


def _flip(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        at = rng.randrange(path.stat().st_size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def _truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _garbage(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice([b"", b"{", rng.randbytes(300), b'{"kind": 5}', b"[" * 2000]))


def _fifo(path: Path, _rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path, _rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _spoil(pattern: str, work: Work) -> Callable[[World, random.Random], None]:
    """Do this to some of the files in the folder of downloaded models."""

    def inject(world: World, rng: random.Random) -> None:
        found = sorted(path for path in world.fetched.glob(pattern) if path.is_file())
        for path in rng.sample(found, min(len(found), rng.randint(1, 4))):
            with suppress(OSError):
                work(path, rng)

    return inject


def _neighbours_odd_files(world: World, rng: random.Random) -> Heal:
    """A FIFO, a link to itself, a folder, garbage and an empty file in the operator's folders."""
    folder = world.volume / rng.choice(["Lora", "Stable-diffusion", "VAE", "embeddings"])
    folder.mkdir(exist_ok=True)
    made = [folder / f"odd{number}.safetensors" for number in range(5)]
    with suppress(OSError):
        os.mkfifo(made[0])
        made[1].symlink_to(made[1])
        made[2].mkdir()
        made[3].write_bytes(rng.randbytes(300))
        made[4].touch()

    def heal() -> None:
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return heal


def _replace_variant(world: World, rng: random.Random) -> None:
    path = rng.choice(sorted(world.variants))
    world.set_variant(path, 1 - world.variants[path])


def _remove_own(world: World, rng: random.Random) -> Heal:
    """An operator's file is away for a moment."""
    name = rng.choice(sorted(world.scenery.own))
    (world.volume / name).unlink(missing_ok=True)
    return lambda: world.scenery.write_own(world.volume, name)


def _leases(world: World, rng: random.Random) -> None:
    """A neighbour deletes the leases, or writes garbage into them."""
    for path in (world.fetched / "leases").glob("*"):
        with suppress(OSError):
            path.unlink() if rng.random() < 0.5 else path.write_bytes(rng.randbytes(20))


def _forget(world: World, _rng: random.Random) -> None:
    world.forget_models()


def _remove_store(world: World, _rng: random.Random) -> None:
    shutil.rmtree(world.fetched, ignore_errors=True)


def _remove_links(world: World, rng: random.Random) -> None:
    folder = rng.choice(["models/Stable-diffusion", "models/Lora", "models/VAE", "embeddings"])
    shutil.rmtree(world.main.webui / folder, ignore_errors=True)


def _remove_run_dir(world: World, _rng: random.Random) -> None:
    shutil.rmtree(world.main.run_dir, ignore_errors=True)


def _remove_tmp(world: World, _rng: random.Random) -> Heal:
    folder = world.main.webui.parent / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    return lambda: folder.mkdir(exist_ok=True)


STORE = frozenset({"STORE_NOT_WRITABLE", "MODEL_HOST_FAILED"})

FAULTS = [
    Fault(
        "files: bit flipped in a downloaded model", _spoil("blobs/*.safetensors", _flip), early=True
    ),
    Fault("files: downloaded model cut off", _spoil("blobs/*.safetensors", _truncate), early=True),
    Fault("files: garbage in a model's metadata", _spoil("blobs/*.json", _garbage), early=True),
    Fault("files: garbage in the references", _spoil("references/*", _garbage), early=True),
    Fault("files: FIFO in place of metadata", _spoil("blobs/*.json", _fifo), VANISHED, early=True),
    Fault("files: folder in place of a reference", _spoil("references/*", _folder), early=True),
    Fault("files: odd files of a neighbour", _neighbours_odd_files),
    Fault("files: model replaced under its name", _replace_variant, weight=2),
    Fault("files: own model away for a moment", _remove_own, VANISHED | LOST, RETIRED),
    Fault("files: leases deleted or damaged", _leases, fetches=True),
    Fault("files: models evicted by a neighbour", _forget, VANISHED, RETIRED),
    Fault("files: store's folder deleted", _remove_store, VANISHED | STORE, RETIRED, fetches=True),
    Fault("files: engine's links deleted", _remove_links, VANISHED, RETIRED),
    Fault("files: RUN_DIR deleted", _remove_run_dir),
    Fault("files: TMPDIR deleted", _remove_tmp, frozenset({"INVALID_INPUT"})),
]
