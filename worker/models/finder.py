"""Finds model files without a network: by name, by hash, or by a reference used before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from worker.errors import (
    ModelFileInvalid,
    ModelHashMismatch,
    ModelNotFound,
    ModelNotSupported,
    ModelUnsafe,
)
from worker.extensions import scripts
from worker.files import is_file
from worker.formats.model_file import ModelFile
from worker.formats.names import Kind
from worker.job.model_fields import LoraReference
from worker.job.models import meant_lora, wanted_models
from worker.job.prompt import lora_tags
from worker.job.reference import HuggingFaceFile, Sha256, StoreName, Wanted
from worker.job.request import PictureRequest
from worker.models.store.references import References
from worker.models.store.store import Store


class Finder:
    """Finds what jobs name in one store. Thread-safe.

    Args:
        store: the folders.
        references: which file each reference meant.
    """

    def __init__(self, store: Store, references: References) -> None:
        self._store = store
        self._references = references

    def find(self, wanted: Wanted) -> ModelFile | None:
        """The file, if it can be found without a network.

        Raises:
            ModelNotFound: the job gives a file name that the store does not have.
            ModelHashMismatch: see `_cached`.
        """
        ref = wanted.ref
        if isinstance(ref, StoreName):
            return self.by_name(wanted.kind or "checkpoint", ref.name)
        if file := self._local(wanted) or self._cached(wanted):
            return file
        sha256 = self._expected_sha256(wanted)
        file = self._store.by_sha256(sha256) if sha256 else None
        return file or self._operators_file(wanted)

    def find_baked(self, wanted: Wanted) -> ModelFile | None:
        """The file, if it is in the image; does not count as a use."""
        ref = wanted.ref
        if isinstance(ref, StoreName):
            file = self._store.find(wanted.kind or "checkpoint", ref.name)
            return file if file and self._store.is_baked(file) else None
        if file := self._local(wanted):
            return file if self._store.is_baked(file) else None
        sha256 = self._expected_sha256(wanted)
        blob = self._store.baked.find(sha256) if sha256 else None
        return blob.as_file() if blob else None

    def by_name(self, kind: Kind, name: str) -> ModelFile:
        """By file name or stem; a LoRA also by the name from its training, as in A1111."""
        file = self._store.find(kind, name)
        if file is None and kind == "lora":
            file = self._trained(name)
        if file is None:
            raise self._store.not_found(kind, name)
        if self._store.hub.has(file):
            return self._store.hub.with_hash(file)
        if file.verified_sha256:
            self._store.fetched.mark_used(file.verified_sha256)
        return file

    def written_loras(
        self, request: PictureRequest, loras: Sequence[tuple[ModelFile, LoraReference]]
    ) -> dict[str, ModelFile]:
        """The files that tags in the job's prompts mean; the job's own LoRAs come first.

        A template's prompt with wildcards has its tags only when a job resolves it.

        Raises:
            ModelNotFound: a tag means no file.
            InvalidInput: a tag can mean two of the job's LoRAs, or cannot be read.
        """
        is_open = request.wildcards and request.resolved is None
        if request.disable_extra_networks or is_open:
            return {}
        texts = request.prompts
        tags = lora_tags(texts["prompt"]) + lora_tags(texts.get("hr_prompt", ""))
        return {
            tag.name: meant_lora(tag.name, loras) or self.by_name("lora", tag.name) for tag in tags
        }

    def _trained(self, name: str) -> ModelFile | None:
        """The only LoRA that was trained under the name; the operator's own come first."""
        named = [file for file in self._store.files("lora") if _trained_name(file) == name]
        own = [file for file in named if file.source is None]
        return next((files[0] for files in (own, named) if len(files) == 1), None)

    def _local(self, wanted: Wanted) -> ModelFile | None:
        """The file in the store, if the reference can also be read as its path there."""
        file = self._store.find(wanted.kind or "checkpoint", wanted.local) if wanted.local else None
        if file and self._store.hub.has(file):
            return None  # `_cached` finds it by the reference, and compares its hash
        if file and file.verified_sha256:
            self._store.fetched.mark_used(file.verified_sha256)
        return file

    def _cached(self, wanted: Wanted) -> ModelFile | None:
        """The file in the Hugging Face cache. The host is not asked whether a branch has moved.

        Raises:
            ModelHashMismatch: the job requires another hash of a file at a fixed commit; its host
                has no other file either.
        """
        ref = wanted.ref
        file = self._store.hub.find(ref, wanted.kind) if isinstance(ref, HuggingFaceFile) else None
        if file is None or wanted.sha256 in {None, file.verified_sha256}:
            return file
        if ref.is_moving:
            return None  # it may have moved to the file that the job requires
        raise ModelHashMismatch(
            f"{file.source} in the Hugging Face cache has the SHA-256 {file.verified_sha256},"
            f" but the job requires {wanted.sha256}.",
            hint="A commit never changes, so no download is tried. Correct `sha256`, or leave it"
            " out.",
            expected=wanted.sha256,
            actual=file.verified_sha256,
        )

    def _operators_file(self, wanted: Wanted) -> ModelFile | None:
        """A file that the operator added; it is hashed only if the job gives its file name."""
        if not isinstance(wanted.ref, Sha256) or not wanted.filename:
            return None
        file = self._store.find(wanted.kind or "checkpoint", wanted.filename)
        return file if file and file.sha256() == wanted.ref.digest else None

    def _expected_sha256(self, wanted: Wanted) -> str | None:
        """The hash in the job, or that of the file that the reference resolved to last time."""
        ref = wanted.ref
        of_ref = ref.digest if isinstance(ref, Sha256) else None
        return wanted.sha256 or of_ref or self._references.sha256(ref)


def all_wanted(request: PictureRequest) -> dict[tuple[str, int], Wanted]:
    """The models of the job and of its extensions, by kind of use and number.

    Raises:
        InvalidInput: a reference, or a unit of an extension, cannot be read.
    """
    return wanted_models(request) | scripts.read(request.alwayson_scripts).wanted()


def check_annotators(request: PictureRequest, folder: Path, *, pickles: bool) -> None:
    """Check that the operator has put the weights of the job's preprocessors into the folder.

    Raises:
        ModelNotFound: a file is missing, or pickles are not allowed; the extension would fetch it.
    """
    for unit in scripts.read(request.alwayson_scripts).controlnet.values():
        missing = [
            name for name in unit.preprocessor.weights if not (pickles and is_file(folder / name))
        ]
        if missing:
            raise ModelNotFound(
                f"the preprocessor {unit.module!r} needs weights that this worker does not have:"
                f" {', '.join(missing)}.",
                hint="Send the prepared picture with module 'none'; docs/extensions.md says how an"
                " operator adds them.",
                missing=missing,
            )


def _trained_name(file: ModelFile) -> str | None:
    try:
        return file.trained_name()
    except (ModelFileInvalid, ModelNotFound, ModelNotSupported, ModelUnsafe):
        return None
