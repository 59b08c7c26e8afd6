"""The layers of a UNet under their two names: the original one, and that of diffusers. Pure.

    down_blocks_1_attentions_0_proj_in      as diffusers names it, and kohya for SD1 and SD2
    input_blocks_4_1_proj_in                as the checkpoint names it, and kohya for SDXL

diffusers numbers the levels, and the blocks on each level; the original names number all blocks in
one sequence.
"""

from __future__ import annotations

import re

# Layers of a resnet: the name of diffusers -> the original one.
RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "norm1": "in_layers_0",
    "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_SINGLE = {
    "conv_in": "input_blocks_0_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}
_BLOCK = re.compile(
    r"((?:down|up)_blocks_\d_(?:resnets|attentions)_\d|mid_block_(?:resnets|attentions)_\d"
    r"|(?:input|output)_blocks_\d{1,2}_\d|middle_block_\d)_"
)


def kohya_path(path: str, *, is_xl: bool) -> str | None:
    """The path of a layer as kohya's LoRAs name it; None if the UNet has no such block.

    Args:
        path: in either naming, with underscores.
        is_xl: whether the UNet is that of SDXL; otherwise that of SD1 or SD2.
    """
    names = _LAYOUTS[is_xl]
    if path in names:
        return names[path]
    block = _BLOCK.match(path)
    if block is None or block[1] not in names:
        return None
    inner = path[block.end() :]
    of_resnet = RESNET if is_xl else {new: old for old, new in RESNET.items()}
    return f"{names[block[1]]}_{of_resnet.get(inner, inner)}"


def _layout(is_xl: bool) -> dict[str, str]:
    """{name of a block in either naming: its name in the naming that kohya uses}.

    The blocks of SD1, SD2 and SDXL: two resnets on each level down, three up.
    """
    names = dict(_SINGLE)
    for n, kind, place in ((0, "resnets", 0), (0, "attentions", 1), (1, "resnets", 2)):
        names[f"mid_block_{kind}_{n}"] = f"middle_block_{place}"
    for level in range(3 if is_xl else 4):
        for side, other, count in (("down", "input", 2), ("up", "output", 3)):
            for n in range(count):
                number = 3 * level + n + (side == "down")
                names[f"{side}_blocks_{level}_resnets_{n}"] = f"{other}_blocks_{number}_0"
                names[f"{side}_blocks_{level}_attentions_{n}"] = f"{other}_blocks_{number}_1"
        down, up = f"input_blocks_{3 * level + 3}_0_op", f"output_blocks_{3 * level + 2}"
        names[f"down_blocks_{level}_downsamplers_0_conv"] = down
        names[f"up_blocks_{level}_upsamplers_0_conv"] = f"{up}_{1 + (is_xl or level > 0)}_conv"
    if is_xl:
        return names | {original: original for original in names.values()}
    added = "add_embedding"  # only SDXL has this layer
    names = {old: new for new, old in names.items() if not new.startswith(added)}
    # OneTrainer gives SD1's first upsampler SDXL's name.
    names["output_blocks_2_2_conv"] = names["output_blocks_2_1_conv"]
    return names | {diffusers: diffusers for diffusers in names.values()}


_LAYOUTS = {is_xl: _layout(is_xl) for is_xl in (False, True)}
