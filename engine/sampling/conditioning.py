"""The conditioning of a picture: its encoded prompts, and at which step they change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Embeds:
    """One encoded prompt: `text` of shape (1, tokens, width), and SDXL's pooled vector and sizes,
    each of shape (1, ...).
    """

    text: torch.Tensor
    pooled: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def extended(self, tokens: int) -> "Embeds":
        """The last vector is repeated: what A1111 does with the parts of an AND."""
        missing = tokens - self.text.shape[1]
        return replace(
            self, text=torch.cat([self.text, self.text[:, -1:].repeat(1, missing, 1)], 1)
        )

    def padded(self, tokens: int, empty: torch.Tensor) -> "Embeds":
        """The empty prompt is added until there are enough: the option `pad_cond_uncond`."""
        times = max(0, tokens - self.text.shape[1]) // empty.shape[1]
        return replace(self, text=torch.cat([self.text, empty.repeat(1, times, 1)], 1))


def stacked(parts: Sequence[Embeds]) -> Embeds:
    """Prompts of the same length as one batch."""

    def joined(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
        found = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(found) if found else None

    return Embeds(
        torch.cat([part.text for part in parts]),
        joined([part.pooled for part in parts]),
        joined([part.sizes for part in parts]),
    )


@dataclass(frozen=True)
class Schedule:
    """A prompt that changes while a picture is made: (last call, encoded text)."""

    stretches: Sequence[tuple[int, Embeds]]

    def at(self, call: int) -> Embeds:
        """The text for call number `call`, counted from 0.

        A1111 compares this number with the schedule, which counts from 1: a change happens one call
        later than written. After the last stretch, A1111 begins again. The engine does the same, so
        that its pictures match A1111's.
        """
        found = (embeds for last, embeds in self.stretches if call <= last)
        return next(found, self.stretches[0][1])


@dataclass(frozen=True)
class Conditioning:
    """The prompt as weighted parts (one, or several joined by AND), and the negative prompt.

    `empty` is the encoded empty prompt if the shorter of both is to be padded with it.
    """

    parts: Sequence[tuple[Schedule, float]]
    negative: Schedule
    empty: torch.Tensor | None = None

    @property
    def pads(self) -> bool:
        """Whether one of both prompts is padded at the end of the picture."""
        lengths = [one.stretches[-1][1].text.shape[1] for one, _ in self.parts]
        last = self.negative.stretches[-1][1].text.shape[1]
        return self.empty is not None and max(lengths) != last

    @property
    def weights(self) -> list[float]:
        """The weights of the parts."""
        return [weight for _, weight in self.parts]

    def at(self, call: int) -> tuple[Embeds, Embeds]:
        """The parts as one batch, and the negative prompt, for call number `call`."""
        found = [schedule.at(call) for schedule, _ in self.parts]
        longest = max(one.text.shape[1] for one in found)
        positive = stacked([one.extended(longest) for one in found])
        negative = self.negative.at(call)
        if self.empty is None:
            return positive, negative
        count = len(found)
        padding = self.empty.repeat(count, 1, 1)
        lengths = (negative.text.shape[1], positive.text.shape[1])
        return positive.padded(lengths[0], padding), negative.padded(lengths[1], self.empty)
