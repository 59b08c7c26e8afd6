"""The random numbers of one picture, drawn in A1111's order.

Each picture has a generator of its own, so a picture of a batch equals the one of its seed alone.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torchsde  # type: ignore[import-untyped]
from torchsde._brownian import brownian_interval  # type: ignore[import-untyped]

from engine.sampling.philox import Philox

Shape = tuple[int, ...]
CHANNELS = 4
FACTOR = 8  # pixels of the picture for one of the latent image
SEEDS = 2**64
LARGEST_RANDOM = 2**63 - 1
SOURCES = ("CPU", "GPU", "NV")
# noises that point in the same direction are mixed in a straight line
_PARALLEL = 0.9995


class Generator(Protocol):
    """A sequence of random numbers."""

    def randn(self, shape: Shape) -> torch.Tensor:
        """The next normal numbers."""


class _Torch:
    """torch's own generator; the one of a GPU gives other numbers than the CPU's."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def randn(self, shape: Shape) -> torch.Tensor:
        """The next normal numbers."""
        return torch.randn(shape, generator=self._generator, device=self._generator.device)


@dataclass(frozen=True)
class Seeds:
    """A picture's seed and what varies its first noise.

    `strength` is the share of `subseed`'s noise; `resize_from` the (width, height) of another
    picture whose noise is put into the middle; `delta` (ENSD) is added to the seed for all noise
    but the first; `source` is A1111's `randn_source`.
    """

    seed: int
    subseed: int = 0
    strength: float = 0.0
    resize_from: tuple[int, int] = (0, 0)
    delta: int = 0
    source: str = "CPU"


class Noise:
    """One picture's noise; calling it gives the noise of a step."""

    def __init__(self, seeds: Seeds, shape: Shape, device: torch.device | str = "cpu") -> None:
        """`shape` is (channels, height, width) of the latent image."""
        self.seeds, self.shape, self.device = seeds, shape, torch.device(device)
        self._generator = self._new(seeds.seed)

    def _new(self, seed: int) -> Generator:
        return new_generator(self.seeds.source, seed, self.device)

    def first(self) -> torch.Tensor:
        """The noise that the picture starts from, (1, channels, height, width)."""
        seeds, size = self.seeds, self._first_size()
        resized = size != self.shape
        noise = (self._new(seeds.seed) if resized else self._generator).randn(size)
        if seeds.strength:
            noise = _mix(seeds.strength, noise, self._new(seeds.subseed).randn(size))
        if resized:
            noise = _centered(noise, self._generator.randn(self.shape))
        if seeds.delta:
            self._generator = self._new(seeds.seed + seeds.delta)
        return noise[None].to(self.device)

    def _first_size(self) -> Shape:
        width, height = self.seeds.resize_from
        if min(width, height) <= 0:
            return self.shape
        return (self.shape[0], height // FACTOR, width // FACTOR)

    def __call__(self, _sigma: Any = None, _next: Any = None) -> torch.Tensor:  # noqa: ANN401
        """The next noise, the same for all sigmas."""
        return self._generator.randn(self.shape)[None].to(self.device)


def new_generator(source: str, seed: int, device: torch.device) -> Generator:
    """The generator for a seed. Only the source GPU depends on the device."""
    if source == "NV":
        return Philox(seed)
    return _Torch(seed % SEEDS, device if source == "GPU" else torch.device("cpu"))


def _mix(share: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation, as A1111 does it: column by column of the latent image."""
    one, other = (noise / torch.norm(noise, dim=1, keepdim=True) for noise in (low, high))
    cosine = (one * other).sum(1)
    if cosine.mean() > _PARALLEL:
        return low * share + high * (1 - share)
    angle = torch.acos(cosine)
    weights = (torch.sin((1.0 - share) * angle), torch.sin(share * angle))
    first, second = ((weight / torch.sin(angle)).unsqueeze(1) for weight in weights)
    return first * low + second * high


def _centered(noise: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
    """`noise` in the middle of `behind`; what does not fit is cut off."""
    targets, sources = [], []
    for inner, outer in zip(noise.shape[1:], behind.shape[1:], strict=True):
        start = (outer - inner) // 2
        length = inner if start >= 0 else inner + 2 * start
        targets.append(slice(max(start, 0), max(start, 0) + length))
        sources.append(slice(max(-start, 0), max(-start, 0) + length))
    behind[:, targets[0], targets[1]] = noise[:, sources[0], sources[1]]
    return behind


class BrownianNoise:
    """The noise of A1111's SDE samplers: the steps of one Brownian motion over the sigmas.

    Its numbers depend on the seed and the sigmas only, not on the number of steps in between.
    """

    def __init__(
        self, noise: Noise, sigmas: torch.Tensor, *, batch_determinism: bool = True
    ) -> None:
        """For all steps of `sigmas`, the last of which may be 0.

        Without `batch_determinism`, the seed is the first number of torch's generator for the
        picture's seed: A1111's option `no_dpmpp_sde_batch_determinism`.
        """
        self._noise = noise
        seeds, entropy = noise.seeds, noise.seeds.seed % SEEDS
        if not batch_determinism:
            generator = torch.Generator().manual_seed(entropy)
            entropy = int(torch.randint(0, LARGEST_RANDOM, [], generator=generator))
        on_gpu = seeds.source == "GPU"
        start = torch.zeros(noise.shape, device=noise.device if on_gpu else "cpu")
        with self._random():
            self._tree = torchsde.BrownianTree(
                sigmas[sigmas > 0].min(), start, sigmas.max(), entropy=entropy
            )

    def __call__(self, sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """The noise of the step from `sigma` down to `following`."""
        with self._random():
            step = self._tree(following, sigma)
        # A1111 counts from the smallest sigma up, and a step leads down
        noise: torch.Tensor = -step / (sigma - following).sqrt()
        return noise[None].to(self._noise.device)

    @contextmanager
    def _random(self) -> Iterator[None]:
        """Torchsde draws from torch; A1111 puts its own source in place of that."""
        module: Any = brownian_interval
        saved = module._randn  # noqa: SLF001 - it has no parameter for the generator

        def randn(size: Shape, _dtype: Any, _device: Any, seed: int) -> torch.Tensor:  # noqa: ANN401
            noise = self._noise
            return new_generator(noise.seeds.source, int(seed), noise.device).randn(size)

        module._randn = randn  # noqa: SLF001
        try:
            with warnings.catch_warnings():
                # it warns if a sigma is the end of the whole way, but for rounding
                warnings.simplefilter("ignore", UserWarning)
                yield
        finally:
            module._randn = saved  # noqa: SLF001
