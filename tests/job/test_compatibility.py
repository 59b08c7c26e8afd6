"""Files of one job together: real layers of each family, and what each engine does with them."""

import pytest
from fakes.model_files import safetensors

from worker.errors import ModelMismatch, ModelNotSupported
from worker.formats import stable_diffusion
from worker.formats.lora_layers import family_layers
from worker.formats.lora_use import check_fit, shapes_of
from worker.formats.model_file import ModelFile
from worker.formats.safetensors_header import parse_header
from worker.job.compatibility import check_files, check_together
from worker.job.model_fields import LoraReference
from worker.job.models import Models

PREFIX = "model.diffusion_model."
RANK = 2
TEXT = {"SD1": "lora_te_", "SD2": "lora_te_", "SDXL": "lora_te1_"}
A1111, EMBEDDED = "a1111", "embedded"


def whole(family, divide=32):
    """A checkpoint with all of a family's tensors, smaller in every axis by the same factor."""
    shapes = stable_diffusion.checkpoint(family)
    return {name: tuple(smaller(axis, divide) for axis in shape) for name, shape in shapes.items()}


def smaller(axis, divide):
    return axis // divide if axis > 9 else axis


def lora(family, part="", divide=32, rank=RANK):
    """A LoRA for the matrices of the UNet, in the naming that A1111 reads for every family."""
    shapes = {}
    for name, layer in family_layers(family).items():
        if name.startswith("diffusion_model_") and len(layer.shape) == 2 and part in name:
            own = name.replace("diffusion_model_", "lora_unet_")
            out, given = (smaller(axis, divide) for axis in layer.shape)
            shapes[f"{own}.lora_down.weight"] = (rank, given)
            shapes[f"{own}.lora_up.weight"] = (out, rank)
    return shapes


@pytest.fixture
def job(tmp_path):
    """Files from shapes: the checkpoint, and the others by their field."""

    def make(checkpoint, kind, shapes, **more):
        def file(kind, stem, shapes):
            path = tmp_path / f"{stem}.safetensors"
            path.write_bytes(safetensors(shapes))
            return ModelFile(kind, path, stem, path.stat().st_size)

        added = file(kind, "added", shapes)
        fields = {
            "lora": {"loras": ((added, LoraReference(name="added")),)},
            "embedding": {"embeddings": (added,)},
            "vae": {"vae": added},
        }
        base = file("checkpoint", "base", checkpoint) if checkpoint else None
        return Models(checkpoint=base, **fields[kind], **more)

    return make


X = {"lora_unet_x.lora_down.weight": (2, 8), "lora_unet_x.lora_up.weight": (8, 2)}
DIFF = {"lora_unet_out_0.diff": (10,)}
NAMED = {"unet.down_blocks.1.attentions.0.proj_in.lora_A.weight": (2, 20)}
NOT_IN = "LoRA 'added': 1 of {} layers are not in the checkpoint and have no effect."

# Checkpoint, LoRA, and for A1111 and the embedded engine: a warning, an error, or nothing. What
# A1111 does, by its own Lora module: it applies the layers that it knows, and no others. The
# embedded engine knows more names, and refuses a LoRA itself if it cannot apply all of it.
OTHER_SIZE = {
    "lora_unet_out_2.lora_down.weight": (2, 11, 3, 3),
    "lora_unet_out_2.lora_up.weight": (4, 2, 1, 1),
}
OF_SDXL = lora("SDXL")
ABSENT = lora("SDXL", "middle_block_1_transformer_blocks_5")  # SD1 has one transformer there
ROWS = {
    "its own LoRA": ("SDXL", OF_SDXL, None, None),
    "a layer that it lacks": ("SDXL", OF_SDXL | X, NOT_IN.format(1 + len(OF_SDXL) // 2), None),
    "a layer of another size": (
        "SD1",
        lora("SD1") | OTHER_SIZE,
        "LoRA 'added': 1 of 185 layers do not fit the checkpoint and have no effect.",
        None,
    ),
    "no layer that the checkpoint has": ("SD1", ABSENT, "is a LoRA for SDXL", "is a LoRA for SDXL"),
    "layers of other sizes alone": ("SD1", lora("SD1", divide=16), "none of the", None),
    "differences of norms": ("SD1", DIFF, None, None),
    "diffusers' names": ("SDXL", NAMED, "names of another tool", None),
    "only an embedding": ("SD1", {"bundle_emb.a.emb_params": (1, 24)}, None, None),
}


def outcome(models, engine):
    """None, the warning, or the message of the error."""
    try:
        check_files(models, engine)
        notes = check_together(models, engine)
    except (ModelMismatch, ModelNotSupported) as error:
        return error.message
    return "; ".join(notes) or None


@pytest.mark.parametrize("engine", [A1111, EMBEDDED])
@pytest.mark.parametrize("row", ROWS)
def test_a_lora_is_matched_with_the_checkpoints_own_layers(job, row, engine):
    family, shapes, *expected = ROWS[row]
    found = outcome(job(whole(family), "lora", shapes), engine)
    wanted = expected[engine == EMBEDDED]
    assert found is None if wanted is None else wanted in found


FULL = {family: lora(family, divide=1, rank=1) for family in ("SD1", "SD2", "SDXL")}


@pytest.mark.parametrize("own", FULL)
@pytest.mark.parametrize("other", FULL)
def test_a_lora_of_full_size_fits_only_its_own_family(own, other):
    """An SD1 LoRA fits some layers of SDXL by accident; the family that it fits best decides."""
    header = parse_header(safetensors(FULL[own]))
    layers = family_layers(other)
    if own == other:
        found = check_fit("l", header, "c", layers, other)
        assert found.used == found.layers == len(shapes_of(header)) // 2
    else:
        with pytest.raises(ModelMismatch, match=f"is a LoRA for {own} .*the checkpoint 'c'"):
            check_fit("l", header, "c", layers, other)


def test_a_lora_of_layers_that_two_families_share_fits_both():
    header = parse_header(safetensors(lora("SD1", "attn1", divide=1, rank=1)))
    for family in ("SD1", "SD2"):
        found = check_fit("l", header, "c", family_layers(family), family)
        assert found.used == found.layers > 0
    with pytest.raises(ModelMismatch, match=r"is a LoRA for SD1 or SD2 .*but only 20 layers fit"):
        check_fit("l", header, "c", family_layers("SDXL"), "SDXL")


def test_without_a_known_checkpoint_only_the_family_decides(job):
    models = job(None, "lora", FULL["SD1"] | X)
    assert "are not in the checkpoint" in outcome(models, A1111)
    assert outcome(job(None, "lora", FULL["SD1"]), A1111) is None
    assert outcome(job(None, "lora", lora("SD1")), A1111) is None  # a model of another size


EMBEDDING = {"clip_l": (2, 24), "clip_g": (2, 40)}


def test_an_embedding_needs_the_widths_of_the_checkpoints_text_encoders(job):
    assert outcome(job(whole("SDXL"), "embedding", EMBEDDING), A1111) is None
    narrow = EMBEDDING | {"clip_l": (2, 20)}
    message = "vectors of 20 and 40 numbers, but the checkpoint 'base' needs 24 and 40"
    assert message in outcome(job(whole("SDXL"), "embedding", narrow), A1111)
    assert "for SDXL" in outcome(job(whole("SD1"), "embedding", EMBEDDING), A1111)


def test_a_vae_needs_the_shapes_of_the_checkpoints_and_can_replace_it(job):
    prefix = stable_diffusion.VAE
    base = whole("SD1")
    own = {n.removeprefix(prefix): s for n, s in base.items() if n.startswith(prefix)}
    without = {n: s for n, s in base.items() if not n.startswith(prefix)}
    assert outcome(job(base, "vae", own), A1111) is None
    assert outcome(job(without, "vae", own), A1111) is None
    assert "has no VAE" in outcome(job(without, "vae", own), EMBEDDED)
    other = own | {"decoder.conv_in.bias": (7,)}
    assert "another shape than the VAE in the checkpoint" in outcome(job(base, "vae", other), A1111)


@pytest.mark.parametrize(
    "shapes",
    [
        whole("SDXL refiner"),
        whole("SD1") | {f"{PREFIX}input_blocks.0.0.weight": (10, 9, 3, 3)},
        whole("SD2"),
        {n: s for n, s in whole("SDXL").items() if "middle_block.1" not in n},
    ],
)
def test_the_embedded_engine_gets_checkpoints_of_every_family_that_a1111_has(job, shapes):
    assert outcome(job(shapes, "lora", DIFF), EMBEDDED) is None
