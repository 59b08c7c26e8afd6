"""The random numbers: of CUDA, of seeds and their variations, and of the Brownian motion."""

import pytest
import torch

from engine.sampling.noise import BrownianNoise, Noise, Seeds
from engine.sampling.philox import Philox

SHAPE = (4, 16, 16)
# torch.manual_seed(0); torch.randn(3, 4, device="cuda"), of any NVIDIA GPU
CUDA = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284]


def first(seed=1, shape=SHAPE, **fields):
    return Noise(Seeds(seed, **fields), shape).first()


def test_philox_gives_the_numbers_of_a_gpu():
    found = Philox(0).randn((3, 4)).flatten()[: len(CUDA)]
    assert torch.allclose(found, torch.tensor(CUDA), atol=1e-4)
    for seed in (1, -1, 2**63 + 5):
        one, other = Philox(seed), Philox(seed % 2**64)
        drawn = [one.randn(SHAPE) for _ in range(2)]
        assert [torch.equal(other.randn(SHAPE), noise) for noise in drawn] == [True, True]
        assert not torch.equal(*drawn)
        assert abs(drawn[0].std() - 1) < 0.1


def test_first_noise_is_that_of_torch_and_steps_follow():
    noise, generator = Noise(Seeds(7), SHAPE), torch.Generator().manual_seed(7)
    for drawn in (noise.first(), noise(), noise()):
        assert torch.equal(drawn[0], torch.randn(SHAPE, generator=generator))


def test_a_seed_delta_changes_only_the_noise_of_the_steps():
    noise = Noise(Seeds(7, delta=31337), SHAPE)
    assert torch.equal(noise.first(), first(7))
    assert torch.equal(noise(), first(7 + 31337))


@pytest.mark.parametrize("source", ["CPU", "NV"])
def test_a_variation_goes_from_one_noise_to_the_other(source):
    mixed = {share: first(1, subseed=2, strength=share, source=source) for share in (0, 0.5, 1)}
    assert torch.equal(mixed[0], first(1, source=source))
    assert torch.allclose(mixed[1], first(2, source=source), atol=1e-5)
    assert mixed[0.5].std() == pytest.approx(1, abs=0.1)
    same = first(1, subseed=1, strength=0.5, source=source)
    assert torch.allclose(same, first(1, source=source), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "inside", "of_other"),
    [
        ((64, 96), (slice(2, 14), slice(4, 12)), (slice(None), slice(None))),
        ((256, 128), (slice(None), slice(None)), (slice(None), slice(8, 24))),
    ],
)
def test_the_middle_is_the_noise_of_another_size(size, inside, of_other):
    found, plain = first(resize_from=size)[0], first()[0]
    other = first(shape=(4, size[1] // 8, size[0] // 8))[0]
    assert torch.equal(found[:, inside[0], inside[1]], other[:, of_other[0], of_other[1]])
    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[:, inside[0], inside[1]] = False
    assert torch.equal(found[outside], plain[outside])
    assert torch.equal(first(resize_from=(64, -1)), first())


@pytest.mark.parametrize("size", [(1, 1), (7, 64), (4096, 7)])
@pytest.mark.parametrize("source", ["CPU", "NV"])
def test_a_size_without_a_whole_latent_pixel_has_no_noise_to_put_in(size, source):
    found = first(resize_from=size, subseed=7, strength=0.5, source=source)
    assert torch.equal(found, first(source=source))


def brownian(seed=1, source="CPU", shape=SHAPE):
    noise = Noise(Seeds(seed, source=source), shape)
    return BrownianNoise(noise, torch.tensor([14.0, 6.0, 1.0, 0.1, 0.0]))


@pytest.mark.parametrize("source", ["CPU", "NV"])
def test_steps_of_a_brownian_motion_add_up_and_are_independent(source):
    walk, sigmas = brownian(source=source), torch.tensor([14.0, 6.0, 1.0])
    high, low = walk(sigmas[0], sigmas[1]), walk(sigmas[1], sigmas[2])
    whole = walk(sigmas[0], sigmas[2])
    assert torch.allclose(whole * 13**0.5, high * 8**0.5 + low * 5**0.5, atol=1e-4)
    for noise in (high, low, whole):
        assert noise.std() == pytest.approx(1, abs=0.1)
    assert abs((high * low).mean()) < 0.1
    assert torch.equal(brownian(source=source)(sigmas[1], sigmas[2]), low)
    assert not torch.equal(brownian(2, source)(sigmas[1], sigmas[2]), low)


def test_the_other_seed_of_the_brownian_motion_is_drawn_from_the_picture_s_seed():
    sigmas = torch.tensor([14.0, 6.0, 0.0])
    seed = torch.randint(0, 2**63 - 1, [], generator=torch.Generator().manual_seed(1)).item()
    found = BrownianNoise(Noise(Seeds(1), SHAPE), sigmas, batch_determinism=False)
    expected = BrownianNoise(Noise(Seeds(seed), SHAPE), sigmas)
    assert torch.equal(found(sigmas[0], sigmas[1]), expected(sigmas[0], sigmas[1]))
