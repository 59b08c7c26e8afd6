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
    "ddim": "DDIM",
    **dict.fromkeys(("uni_pc", "uni_pc_bh2"), "UniPC"),
    "lcm": "LCM",
}
SCHEDULERS = {
    "normal": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
}
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
        samplers = self._of_kind("KSampler")
        if len(samplers) != 1 or any(
            one["class_type"] not in PLAIN for one in self._nodes.values()
        ):
            raise _NotPlainError
        given = samplers[0]["inputs"]
        sampler, scheduler = given.get("sampler_name"), given.get("scheduler")
        if not isinstance(sampler, str) or not isinstance(scheduler, str):
            raise _NotPlainError
        if sampler not in SAMPLERS or scheduler not in SCHEDULERS:
            raise _NotPlainError
        return {
            **self._latent(given),
            "prompt": self._text(given.get("positive")),
            "negative_prompt": self._text(given.get("negative")),
            "seed": _number(given.get("seed")),
            "steps": _number(given.get("steps")),
            "cfg_scale": _number(given.get("cfg")),
            "sampler_name": SAMPLERS[sampler],
            "scheduler": SCHEDULERS[scheduler],
            **self._models(given.get("model")),
            **self._vae(),
            **self._clip_skip(),
        }

    def _of_kind(self, kind: str) -> list[Node]:
        return [node for node in self._nodes.values() if node["class_type"] == kind]

    def _at(self, link: object, *kinds: str) -> Node:
        """The node that a link `["4", 0]` names, if it is of one of these kinds."""
        name = link[0] if isinstance(link, list) and link else None
        node = self._nodes.get(name) if isinstance(name, str) else None
        if node is None or node["class_type"] not in kinds:
            raise _NotPlainError
        return node

    def _text(self, link: object) -> str:
        text = self._at(link, "CLIPTextEncode")["inputs"].get("text")
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
            raise _NotPlainError
        return text

    def _models(self, link: object) -> Job:
        loras: list[Job] = []
        for _ in range(_MOST_LINKS):
            node = self._at(link, *_LOADERS, *_LORAS)
            if node["class_type"] in _LOADERS:
                checkpoint = {"checkpoint": _name(node, "ckpt_name")}
                return checkpoint | ({"loras": loras[::-1]} if loras else {})
            loras.append(_lora(node))
            link = node["inputs"].get("model")
        raise _NotPlainError

    def _latent(self, given: Mapping[str, Any]) -> Job:
        node = self._at(given.get("latent_image"), "EmptyLatentImage", "VAEEncode")
        if node["class_type"] == "EmptyLatentImage":
            if given.get("denoise", 1) != 1:
                raise _NotPlainError
            size = node["inputs"]
            job = {name: _number(size.get(name)) for name in ("width", "height")}
            return job | {"batch_size": _number(size.get("batch_size", 1))}
        self._at(node["inputs"].get("pixels"), "LoadImage")
        strength = _number(given.get("denoise", 1))
        picture = "<the picture in base64, or its https URL>"
        return {"task": "img2img", "init_images": [picture], "denoising_strength": strength}

    def _vae(self) -> Job:
        loaders = self._of_kind("VAELoader")
        if len(loaders) > 1:
            raise _NotPlainError
        return {"vae": _name(loaders[0], "vae_name")} if loaders else {}

    def _clip_skip(self) -> Job:
        layers = {
            str(n["inputs"].get("stop_at_clip_layer")) for n in self._of_kind("CLIPSetLastLayer")
        }
        if len(layers) > 1:
            raise _NotPlainError
        layer = layers.pop() if layers else "-1"
        if not layer.startswith("-") or not layer[1:3].isdecimal() or len(layer) > len("-24"):
            raise _NotPlainError
        return {"clip_skip": int(layer[1:])} if layer != "-1" else {}


def _lora(node: Node) -> Job:
    unet = _number(node["inputs"].get("strength_model"))
    te = 0 if node["class_type"] == "LoraLoaderModelOnly" else node["inputs"].get("strength_clip")
    lora: Job = {"name": _name(node, "lora_name"), "scale": unet}
    return lora if te == unet else lora | {"te": _number(te)}


def _name(node: Node, field: str) -> str:
    name = node["inputs"].get(field)
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
        raise _NotPlainError
    return name.replace("\\", "/")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NotPlainError
    return value
