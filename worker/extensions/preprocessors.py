"""The preprocessors of ControlNet that a job can use, and what each takes. Pure.

They are those of the extension's commit in the Dockerfile (v1.1.455) that run with the packages of
the image. The extension would download missing weights, unchecked, while a job waits: so a job can
use a preprocessor with weights only if the operator has put them into the store.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]
RESOLUTION: Range = (64, 2048)  # pixels
_FRACTION: Range = (0, 1)


@dataclass(frozen=True)
class Preprocessor:
    """What a preprocessor takes; the extension replaces other numbers with its defaults.

    Attributes:
        label: its other name, that of A1111's own page, which the API accepts too.
        threshold_a, threshold_b: smallest and largest value; None: it has no such number.
        resolution: whether it takes `processor_res`.
        has_model: whether it steers with a ControlNet model; the reference ones have none.
        mask: whether it reads the unit's `mask`.
        weights: its files below `annotators` of MODELS_DIR; most are pickles.
    """

    label: str = ""
    threshold_a: Range | None = None
    threshold_b: Range | None = None
    resolution: bool = True
    has_model: bool = True
    mask: bool = False
    weights: tuple[str, ...] = ()


ANNOTATORS = "annotators"  # the folder in MODELS_DIR

_LINES = "(from white bg & black line)"
_INPAINT = Preprocessor(resolution=False, mask=True)
_REFERENCE = Preprocessor(threshold_a=_FRACTION, has_model=False)
_HED, _PIDINET = ("hed/ControlNetHED.pth",), ("pidinet/table5_pidinet.pth",)
_MIDAS = ("midas/dpt_hybrid-midas-501f0c75.pt",)
_LAMA = ("lama/ControlNetLama.pth",)
_POSE = tuple(f"openpose/{name}.pth" for name in ("body_pose_model", "hand_pose_model", "facenet"))

PREPROCESSORS: dict[str, Preprocessor] = {
    "none": Preprocessor(),
    "blur_gaussian": Preprocessor(threshold_a=(0.01, 64)),
    "canny": Preprocessor(threshold_a=(1, 255), threshold_b=(1, 255)),
    "color": Preprocessor("t2ia_color_grid"),
    "inpaint": Preprocessor("inpaint_global_harmonious", resolution=False, mask=True),
    "inpaint_only": _INPAINT,
    "invert": Preprocessor(f"invert {_LINES}", resolution=False),
    "lineart_standard": Preprocessor(f"lineart_standard {_LINES}"),
    "recolor_intensity": Preprocessor(threshold_a=(0.1, 2)),
    "recolor_luminance": Preprocessor(threshold_a=(0.1, 2)),
    "reference_adain": _REFERENCE,
    "reference_adain+attn": _REFERENCE,
    "reference_only": _REFERENCE,
    "scribble_xdog": Preprocessor(threshold_a=(1, 64)),
    "shuffle": Preprocessor(resolution=False),
    "threshold": Preprocessor(threshold_a=(0, 255)),
    "tile_colorfix": Preprocessor(threshold_a=(3, 32)),
    "tile_colorfix+sharp": Preprocessor(threshold_a=(3, 32), threshold_b=(0, 2)),
    "tile_resample": Preprocessor(threshold_a=(1, 8)),
    # With weights.
    "depth": Preprocessor("depth_midas", weights=_MIDAS),
    "depth_zoe": Preprocessor(weights=("zoedepth/ZoeD_M12_N.pt",)),
    "hed": Preprocessor("softedge_hed", weights=_HED),
    "hed_safe": Preprocessor("softedge_hedsafe", weights=_HED),
    "inpaint_only+lama": Preprocessor(resolution=False, mask=True, weights=_LAMA),
    "lineart": Preprocessor("lineart_realistic", weights=("lineart/sk_model.pth",)),
    "lineart_anime": Preprocessor(weights=("lineart_anime/netG.pth",)),
    "lineart_anime_denoise": Preprocessor(weights=("manga_line/erika.pth",)),
    "lineart_coarse": Preprocessor(weights=("lineart/sk_model2.pth",)),
    "mlsd": Preprocessor(
        threshold_a=(0.01, 2), threshold_b=(0.01, 20), weights=("mlsd/mlsd_large_512_fp32.pth",)
    ),
    "normal_bae": Preprocessor(weights=("normal_bae/scannet.pt",)),
    "normal_map": Preprocessor("normal_midas", threshold_a=_FRACTION, weights=_MIDAS),
    "pidinet": Preprocessor("softedge_pidinet", weights=_PIDINET),
    "pidinet_safe": Preprocessor("softedge_pidisafe", weights=_PIDINET),
    "pidinet_scribble": Preprocessor("scribble_pidinet", weights=_PIDINET),
    "pidinet_sketch": Preprocessor("t2ia_sketch_pidi", weights=_PIDINET),
    "scribble_hed": Preprocessor(weights=_HED),
    **{
        f"openpose{part}": Preprocessor(weights=_POSE)
        for part in ("", "_face", "_faceonly", "_full", "_hand")
    },
}
BY_NAME = PREPROCESSORS | {one.label: one for one in PREPROCESSORS.values() if one.label}
