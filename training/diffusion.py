"""Train the text encoder and the UNet together: captions to latents, by v-prediction.

In stages: first small pictures, which cost a quarter, then the full size. Each stage has its own
scenes, encoded once, with a new caption at every use.
"""

import copy
import logging
import math
import random
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from engine.prompt import tokenizer
from training import autoencoder, networks, parallel, scenes

log = logging.getLogger(__name__)

TRAINING_STEPS = 1000  # of the noise schedule, as in SD1
EMPTY = 0.1  # share of samples without a caption, for guidance
NOISE_OFFSET = 0.1
EMA = 0.9985
WARM_UP = 200
# words from usual negative prompts; the model is trained to ignore them
_NEGATIVES = (
    "blurry", "low quality", "worst quality", "bad anatomy", "deformed", "text", "watermark",
    "ugly", "noise", "jpeg artifacts", "lowres", "cropped",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A part of the training; the numbers are for each process."""

    steps: int
    sides: dict[int, tuple[int, int, int]]  # of pictures: (scenes, batch, weight)
    rate: float
    final_rate: float  # reached along a cosine

    def scaled(self, scale: float) -> "Stage":
        """The same with fewer steps and scenes."""
        sides = {
            side: (max(batch, round(scenes * scale)), batch, weight)
            for side, (scenes, batch, weight) in self.sides.items()
        }
        return replace(self, steps=max(1, round(self.steps * scale)), sides=sides)


@dataclass
class State:
    """The state between two stages; it can be saved."""

    text_encoder: Any
    unet: Any
    average_text_encoder: Any
    average_unet: Any
    optimizer: Any
    steps: int = 0

    @classmethod
    def start(cls, seed: int) -> "State":
        """Random networks; words that are in no caption begin at zero and stay there."""
        torch.manual_seed(seed)
        text_encoder, unet = networks.text_encoder(), networks.unet()
        embeddings = getattr(text_encoder, "text_model", text_encoder).embeddings
        with torch.no_grad():
            known = torch.zeros(tokenizer.SIZE, 1)
            known[sorted(_vocabulary())] = 1
            embeddings.token_embedding.weight.normal_(0, 0.3).mul_(known)
            embeddings.position_embedding.weight.normal_(0, 0.1)
        return cls.of(text_encoder, unet.to(memory_format=torch.channels_last))

    @classmethod
    def of(cls, text_encoder: Any, unet: Any) -> "State":
        """The state at the start of training these networks."""
        text_average, unet_average = (
            copy.deepcopy(net).eval().requires_grad_(False) for net in (text_encoder, unet)
        )
        optimizer = torch.optim.AdamW(
            [*text_encoder.parameters(), *unet.parameters()], weight_decay=0, betas=(0.9, 0.99)
        )
        return cls(text_encoder, unet, text_average, unet_average, optimizer)

    def _parts(self) -> dict[str, Any]:
        names = ("text_encoder", "unet", "average_text_encoder", "average_unet", "optimizer")
        return {name: getattr(self, name) for name in names}

    def save(self) -> dict[str, Any]:
        """The whole state, for `torch.save`."""
        return {n: part.state_dict() for n, part in self._parts().items()} | {"steps": self.steps}

    def load(self, saved: dict[str, Any]) -> None:
        """Continue from the result of `save`."""
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.steps = saved["steps"]

    @torch.no_grad()
    def average(self) -> None:
        """Move the averages, which are published, towards the networks."""
        keep = min(EMA, (1 + self.steps) / (10 + self.steps))
        for average, network in (
            (self.average_text_encoder, self.text_encoder),
            (self.average_unet, self.unet),
        ):
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)


@cache
def _vocabulary() -> frozenset[int]:
    rng = random.Random(0)
    read = tokenizer.build()
    captions = [scenes.caption(scenes.random_scene(rng), rng) for _ in range(6000)]
    texts = [*captions, ", ".join(_NEGATIVES)]
    return frozenset(token for text in texts for token in read(text).input_ids)


def train(state: State, stage: Stage, number: int, vae: Any) -> None:
    """Run one stage in this process; `vae` is standardized."""
    seed = 1000 * number + parallel.rank()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    pools = {side: Pool(vae, side, count, rng) for side, (count, _, _) in stage.sides.items()}
    read = tokenizer.build()
    parameters = [*state.text_encoder.parameters(), *state.unet.parameters()]
    # the same order of sizes in every process, otherwise they wait for each other
    order = random.Random(number)
    sides, weights = list(stage.sides), [weight for _, _, weight in stage.sides.values()]
    mean, started = 0.0, time.monotonic()
    for step in range(stage.steps):
        _set_rate(state, stage, step)
        side = order.choices(sides, weights)[0]
        latents, captions = pools[side].batch(stage.sides[side][1], rng)
        loss = v_loss(state.text_encoder, state.unet, read, latents, captions)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parallel.share_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        state.optimizer.step()
        state.steps += 1
        state.average()
        mean += max(0.01, 1 / (step + 1)) * (loss.item() - mean)
        if (step + 1) % 100 == 0:
            pace = (time.monotonic() - started) / (step + 1)
            log.info(
                "stage %d, %d/%d: loss %.4f, %.2f s a step",
                number,
                step + 1,
                stage.steps,
                mean,
                pace,
            )


def _set_rate(state: State, stage: Stage, step: int) -> None:
    cosine = 0.5 + 0.5 * math.cos(step / stage.steps * math.pi)
    rate = stage.final_rate + (stage.rate - stage.final_rate) * cosine
    for group in state.optimizer.param_groups:
        group["lr"] = rate * min(1, (state.steps + 1) / WARM_UP)


@torch.no_grad()
def encode(vae: Any, pictures: list[Image.Image]) -> torch.Tensor:
    """The unscaled latents of the pictures: (count, 4, side / 8, side / 8)."""
    parts = []
    for start in range(0, len(pictures), 20):
        group = torch.stack(list(map(autoencoder.to_tensor, pictures[start : start + 20])))
        group = group.contiguous(memory_format=torch.channels_last)
        parts.append(vae.encode(group).latent_dist.mean)
    return torch.cat(parts)


def raw_latents(vae: Any, count: int) -> torch.Tensor:
    """Unscaled latents of `count` scenes, to measure their mean and standard deviation."""
    rng = random.Random(0)
    pictures = [scenes.draw(scenes.training_scene(rng), 256, rng) for _ in range(count)]
    return encode(vae, pictures)


class Pool:
    """Scenes and their latents, encoded once."""

    def __init__(
        self, vae: Any, side: int, count: int, rng: random.Random, striped: bool = False
    ) -> None:
        """`count` pictures of `side` x `side` pixels."""
        self.scenes = [scenes.training_scene(rng) for _ in range(count)]
        self.latents = torch.cat(
            [
                encode(vae, [scenes.draw(s, side, rng, striped) for s in self.scenes[i : i + 100]])
                for i in range(0, count, 100)
            ]
        )
        self.latents *= networks.SCALING

    def batch(self, size: int, rng: random.Random) -> tuple[torch.Tensor, list[str]]:
        """Random latents (size, 4, side / 8, side / 8) and a caption for each."""
        chosen = rng.sample(range(len(self.scenes)), size)
        captions = [self._caption(index, rng) for index in chosen]
        latents = self.latents[chosen].contiguous(memory_format=torch.channels_last)
        return latents, captions

    def _caption(self, index: int, rng: random.Random) -> str:
        if rng.random() > EMPTY:
            return scenes.caption(self.scenes[index], rng)
        return ", ".join(rng.sample(_NEGATIVES, rng.choice((0, 0, 1, 2, 4))))


def alphas() -> torch.Tensor:
    """The share of signal power after each of the 1000 steps, as in SD1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS) ** 2
    return torch.cumprod(1 - betas, 0)


def v_loss(
    text_encoder: Any,
    unet: Any,
    read: Any,
    latents: torch.Tensor,
    captions: list[str],
) -> torch.Tensor:
    """The mean square error of v = signal x noise - noise share x latent."""
    count = len(captions)
    ids = read(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    # spread evenly over the schedule: less variance than independent draws
    times = ((torch.arange(count) + torch.rand(count)) * TRAINING_STEPS / count).long()
    share = alphas()[times][:, None, None, None]
    signal, noise_share = share.sqrt(), (1 - share).sqrt()
    # an offset for the whole picture: otherwise even the strongest noise shows the mean colour, and
    # the model would learn it from there, not from the text; when sampling, it is not there
    noise = torch.randn_like(latents) + NOISE_OFFSET * torch.randn(count, latents.shape[1], 1, 1)
    predicted = unet(
        signal * latents + noise_share * noise, times, text_encoder(ids).last_hidden_state
    ).sample
    return functional.mse_loss(predicted, signal * noise - noise_share * latents)
