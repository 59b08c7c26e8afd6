"""The job that means the same as a plain workflow of ComfyUI. Pure.

Plain is a graph of one KSampler with texts for its prompts, a checkpoint with or without LoRAs, and
an empty picture or a loaded one. ComfyUI draws its noise on the CPU and weights prompts in another
way, so even the same job makes another picture: the job is offered, and not run in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_NODES = 200
_MOST_LINKS = 40  # of a chain, such as of LoRAs
_LONGEST_TEXT, _LONGEST_NAME = 32_768, 512  # characters that a job can have

Node = Mapping[str, Any]
Inputs = Mapping[str, Any]
Job = dict[str, Any]

# ComfyUI's names in KSampler -> A1111's.
SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    **dict.fromkeys(("dpmpp_sde", "dpmpp_sde_gpu"), "DPM++ SDE"),
    "dpmpp_2m": "DPM++ 2M",
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_2m_sde_gpu"), "DPM++ 2M SDE"),
    **dict.fromkeys(("dpmpp_3m_sde", "dpmpp_3m_sde_gpu"), "DPM++ 3M SDE"),
    "ddim": "Euler",  # ComfyUI runs Euler's method for it, with any scheduler
    **dict.fromkeys(("uni_pc", "uni_pc_bh2"), "UniPC"),
    "lcm": "LCM",
}
SCHEDULERS = {
    "normal": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
}
# A1111 draws these with their own schedule, whatever `scheduler` says.
_WITHOUT_SCHEDULE = {"UniPC"}
_LOADERS = {"CheckpointLoaderSimple", "CheckpointLoader"}
_LORAS = {"LoraLoader", "LoraLoaderModelOnly"}
PLAIN = {
    *_LOADERS,
    *_LORAS,
    *("KSampler", "CLIPTextEncode", "CLIPSetLastLayer", "EmptyLatentImage", "VAELoader"),
    *("LoadImage", "VAEEncode", "VAEDecode", "SaveImage", "PreviewImage"),
}


class _NotPlainError(Exception):
    """The graph has a part that a job cannot have."""


def kinds(workflow: object) -> list[str]:
    """The kinds of its nodes that a plain workflow does not have; empty for what is no graph."""
    found = [node["class_type"] for node in _nodes(workflow).values()]
    return sorted({kind for kind in found if kind not in PLAIN})


def job_of(workflow: object) -> Job | None:
    """The job that means the same; None if the graph is not plain."""
    nodes = _nodes(workflow)
    if not nodes or not isinstance(workflow, Mapping) or len(nodes) < len(workflow):
        return None
    try:
        return _Graph(nodes).job()
    except _NotPlainError:
        return None


def _nodes(workflow: object) -> dict[str, Node]:
    """The nodes by their ids; none for more than `MOST_NODES`."""
    if not isinstance(workflow, Mapping) or len(workflow) > MOST_NODES:
        return {}
    return {
        name: node
        for name, node in workflow.items()
        if isinstance(node, Mapping)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), Mapping)
    }


class _Graph:
    """Follows the links of a workflow, from the picture back to its models."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes

    def job(self) -> Job:
        given = self._only("KSampler")
        if any(node["class_type"] not in PLAIN for node in self._nodes.values()):
            raise _NotPlainError
        texts, clip = self._texts(given)
        sampler = _one_of(SAMPLERS, given.get("sampler_name"))
        scheduler = _one_of(SCHEDULERS, given.get("scheduler"))
        if sampler in _WITHOUT_SCHEDULE and given.get("scheduler") != "normal":
            raise _NotPlainError
        return {
            **self._latent(given),
            **texts,
            "seed": _number(given.get("seed")),
            "steps": _number(given.get("steps")),
            "cfg_scale": _number(given.get("cfg")),
            "sampler_name": sampler,
            "scheduler": scheduler,
            **self._models(given.get("model"), clip),
            **self._vae(),
            **_clip_skip(clip),
        }

    def _only(self, kind: str) -> Inputs:
        found = [node["inputs"] for node in self._nodes.values() if node["class_type"] == kind]
        if len(found) != 1:
            raise _NotPlainError
        inputs: Inputs = found[0]
        return inputs

    def _at(self, link: object, *kinds: str) -> Node:
        """The node that a link `["4", 0]` names, if it is of one of these kinds."""
        name = link[0] if isinstance(link, list) and link else None
        node = self._nodes.get(name) if isinstance(name, str) else None
        if node is None or node["class_type"] not in kinds:
            raise _NotPlainError
        return node

    def _chain(self, link: object, name: str, *kinds: str) -> list[Node]:
        """The nodes of these kinds that a link leads through, up to a loader of a checkpoint."""
        found = []
        for _ in range(_MOST_LINKS):
            node = self._at(link, *kinds, *_LOADERS)
            found.append(node)
            if node["class_type"] in _LOADERS:
                return found
            link = node["inputs"].get(name)
        raise _NotPlainError

    def _texts(self, given: Inputs) -> tuple[Job, list[Node]]:
        """Both prompts, and the chain of the text encoder, which they must share."""
        nodes = [self._at(given.get(name), "CLIPTextEncode") for name in ("positive", "negative")]
        chains = [
            self._chain(node["inputs"].get("clip"), "clip", *_LORAS, "CLIPSetLastLayer")
            for node in nodes
        ]
        texts = [node["inputs"].get("text") for node in nodes]
        is_text = all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts)
        if not is_text or chains[0] != chains[1]:
            raise _NotPlainError
        return dict(zip(("prompt", "negative_prompt"), texts, strict=True)), chains[0]

    def _models(self, link: object, clip: list[Node]) -> Job:
        *loras, loader = self._chain(link, "model", *_LORAS)
        beside = [node for node in clip if node["class_type"] in _LORAS and node not in loras]
        if beside or clip[-1] != loader:
            raise _NotPlainError
        checkpoint = {"checkpoint": _name(loader, "ckpt_name")}
        named = [_lora(node, in_clip=node in clip) for node in reversed(loras)]
        return checkpoint | ({"loras": named} if named else {})

    def _latent(self, given: Inputs) -> Job:
        node = self._at(given.get("latent_image"), "EmptyLatentImage", "VAEEncode")
        if node["class_type"] == "EmptyLatentImage":
            if given.get("denoise", 1) != 1:
                raise _NotPlainError
            size = node["inputs"]
            job: Job = {name: _number(size.get(name)) for name in ("width", "height")}
            return job | {"batch_size": _number(size.get("batch_size", 1))}
        self._at(node["inputs"].get("pixels"), "LoadImage")
        strength = _number(given.get("denoise", 1))
        picture = "<the picture in base64, or its https URL>"
        job = {"task": "img2img", "init_images": [picture], "denoising_strength": strength}
        # ComfyUI draws all `steps`; A1111 would leave out those before the strength begins.
        return job | {"override_settings": {"img2img_fix_steps": True}}

    def _vae(self) -> Job:
        node = self._at(self._only("VAEDecode").get("vae"), "VAELoader", *_LOADERS)
        return {"vae": _name(node, "vae_name")} if node["class_type"] == "VAELoader" else {}


def _lora(node: Node, *, in_clip: bool) -> Job:
    unet = _number(node["inputs"].get("strength_model"))
    has_te = in_clip and node["class_type"] == "LoraLoader"
    te = _number(node["inputs"].get("strength_clip")) if has_te else 0
    lora: Job = {"name": _name(node, "lora_name"), "scale": unet}
    return lora if te == unet else lora | {"te": te}


def _clip_skip(clip: list[Node]) -> Job:
    """ComfyUI counts the layers of the text encoder from -1, and A1111 from 1."""
    layers = [
        _number(node["inputs"].get("stop_at_clip_layer"))
        for node in clip
        if node["class_type"] == "CLIPSetLastLayer"
    ]
    if not layers:
        return {}
    if len(layers) > 1 or layers[0] not in range(-12, 0):
        raise _NotPlainError
    return {"clip_skip": -int(layers[0])}


def _one_of(names: Mapping[str, str], value: object) -> str:
    if not isinstance(value, str) or value not in names:
        raise _NotPlainError
    return names[value]


def _name(node: Node, field: str) -> str:
    name = node["inputs"].get(field)
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
        raise _NotPlainError
    return name.replace("\\", "/")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NotPlainError
    return value
