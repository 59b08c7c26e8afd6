"""A latent picture made from another one, on a UNet whose output is known."""

import pytest
import torch

from engine.sampling import draw, samplers
from engine.sampling.conditioning import Conditioning, Embeds, Schedule
from engine.sampling.denoiser import Denoiser, Guidance, Mask, Model, Stopped
from engine.sampling.draw import Sampling, Start, Watch
from engine.sampling.noise import Noise, Seeds
from engine.sampling.noise_schedules import training_levels
from engine.sampling.step_options import StepOptions

SHAPE = (4, 8, 8)


class Unet:
    """Gives the text's value everywhere, and keeps what it was called with."""

    dtype = torch.float32

    def __init__(self):
        self.calls = []

    def __call__(self, batch, times, encoder_hidden_states, **_):
        self.calls.append((batch, times, encoder_hidden_states))
        value = encoder_hidden_states.mean((1, 2))[:, None, None, None]
        return (value * torch.ones_like(batch[:, :4]),)


def schedule(*values, tokens=77):
    """Text of these values, each for one call."""
    text = (Embeds(torch.full((1, tokens, 2), float(value))) for value in values)
    return Schedule(list(enumerate(text)))


def model(parts=(), negative=None, **fields):
    parts, negative = parts or [(schedule(1), 1.0)], negative or schedule(0)
    return Model(Unet(), "epsilon", Conditioning(parts, negative, **fields))


def sampling(name, steps=10, **fields):
    sampler = samplers.find_sampler(name)
    options = StepOptions(eta=sampler.default_eta)
    return Sampling(
        sampler, samplers.find_scheduler(sampler, None), steps, Guidance(1), options, **fields
    )


def output(asked, cfg_scale=7.0, call=0, **guidance):
    """What the model with guidance gives at call number `call`: a number."""
    denoiser = Denoiser(asked, Guidance(cfg_scale, **guidance), training_levels())
    for _ in range(call + 1):
        found = denoiser._guided(torch.zeros(1, *SHAPE), torch.tensor(500), 3.0)
    return found.mean().item()


@pytest.mark.parametrize(
    ("cfg_scale", "expected"), [(7, 1 + 6 * 1), (1, 1), (0, 0), (-2, -2), (0.5, 0.5)]
)
def test_guidance_goes_from_the_negative_prompt_towards_the_prompt(cfg_scale, expected):
    assert output(model(), cfg_scale) == pytest.approx(expected)


def test_parts_of_a_prompt_add_up_by_their_weights():
    parts = [(schedule(1), 0.5), (schedule(3), -0.25)]
    assert output(model(parts, schedule(2)), 4) == pytest.approx(2 + 4 * (-1 * 0.5 + 1 * -0.25))
    other = model([(schedule(1), 1.0), (schedule(3, tokens=154), 1.0)])
    assert output(other, 1) == pytest.approx(4)
    assert [len(text) for _, _, text in other.unet.calls] == [2, 1]  # lengths differ: two calls


def test_text_changes_one_call_later_than_written_and_begins_again_at_the_end():
    changing = model([(Schedule([(2, schedule(1).at(0)), (4, schedule(5).at(0))]), 1.0)])
    assert [output(changing, 1, call) for call in range(6)] == [1, 1, 1, 5, 5, 1]


def test_every_second_call_is_without_negative_prompt_from_a_sigma_on():
    asked = [output(model(), 7, call, s_min_uncond=4.0) for call in range(3)]
    assert asked == [7, 1, 7]
    assert [output(model(), 7, call, s_min_uncond=2.0) for call in range(2)] == [7, 7]


@pytest.mark.parametrize("longer", [0, 1])
def test_the_shorter_prompt_is_padded_with_the_empty_one(longer):
    tokens = [77, 77]
    tokens[longer] = 231
    both = schedule(1, tokens=tokens[0]), schedule(1, tokens=tokens[1])
    padded = model([(both[0], 1.0)], both[1], empty=torch.full((1, 77, 2), 4.0))
    assert padded.conditioning.pads
    output(padded)
    ((_, _, text),) = padded.unet.calls
    assert [row.mean().item() for row in text] == ([1, 3] if longer == 0 else [3, 1])


@pytest.mark.parametrize("name", [one.name for one in samplers.SAMPLERS])
def test_where_the_mask_keeps_the_picture_it_is_unchanged(name):
    original = torch.rand(1, *SHAPE) * 4 - 2
    kept = torch.zeros(1, *SHAPE)
    kept[..., :4] = 1
    noise, start = Noise(Seeds(1), SHAPE), Start(original, 0.7)
    mask = Mask(kept, original)
    found = draw.from_picture(model(), sampling(name), noise, start, mask=mask)
    assert torch.equal(found[..., :4], original[..., :4])
    assert not torch.allclose(found[..., 4:], original[..., 4:], atol=0.1)


@pytest.mark.parametrize(
    ("denoising", "fixed", "steps"),
    [
        *((0.0, False, (10, 0)), (0.5, False, (10, 5)), (1.0, False, (10, 9))),
        *((0.0, True, (0, 9)), (0.5, True, (20, 9)), (1.0, True, (10, 9))),
    ],
)
def test_steps_of_a_second_picture(denoising, fixed, steps):
    start = Start(torch.zeros(1, *SHAPE), denoising, fixed)
    assert start.steps(10) == steps
    asked = model()
    draw.from_picture(asked, sampling("Euler"), Noise(Seeds(1), SHAPE), start)
    assert len(asked.unet.calls) == (0 if steps[0] == 0 else steps[1] + 1)


@pytest.mark.parametrize("name", ["Euler", "DDIM", "DPM fast", "DPM adaptive", "UniPC"])
def test_without_a_step_the_picture_stays(name):
    original = torch.rand(1, *SHAPE)
    start = Start(original, 0.0, noise_multiplier=0.0)
    noise = Noise(Seeds(1), SHAPE)
    found = draw.from_picture(model(), sampling(name), noise, start)
    assert torch.allclose(found, original, atol=0.1)


def test_more_inputs_of_an_inpainting_model_follow_the_picture():
    asked = model()
    asked.extra = torch.full((1, 5, 8, 8), 9.0)
    draw.from_noise(asked, sampling("Euler", 1), Noise(Seeds(1), SHAPE))
    ((batch, _, _),) = asked.unet.calls
    assert batch.shape == (1, 9, 8, 8)
    assert (batch[:, 4:] == 9).all()


def test_a_stopped_picture_is_the_last_one_without_noise_and_steps_are_counted():
    seen = []

    def stop(done, steps):
        seen.append((done, steps))
        return done == 3

    asked = model()
    found = draw.from_noise(asked, sampling("Heun"), Noise(Seeds(1), SHAPE), Watch(stop))
    assert len(asked.unet.calls) == 6
    assert seen == [(0, 10), (1, 10), (1, 10), (2, 10), (2, 10), (3, 10)]
    assert found.isfinite().all()
    assert not issubclass(Stopped, (ValueError, RuntimeError))


def test_a_refiner_is_asked_for_with_the_share_that_is_done():
    shares, other = [], model([(schedule(2), 1.0)])

    def switch(current, share):
        shares.append(share)
        return other if share > 0.5 else current

    asked = model()
    watch = Watch(switch=switch)
    draw.from_noise(asked, sampling("Euler"), Noise(Seeds(1), SHAPE), watch)
    assert shares == sorted(shares)
    assert (shares[0], round(shares[-1], 3)) == (0, 0.999)
    assert (len(asked.unet.calls), len(other.unet.calls)) == (5, 5)
