import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brainuad.errors import InputError
from brainuad.models import DiffusionModel, simplex_noise
from brainuad.models.base import GPU_BATCH_PIXELS, gpu_batch
from brainuad.models.diffusion import DiffusionSettings, cosine_betas


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Spy(nn.Module):
    """Stands in for the network: returns its input, or a constant slice, and remembers what it was shown."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer
        self.calls = []

    def forward(self, x, t):
        self.calls.append((x.clone(), t.clone()))
        return x if self.answer is None else self.answer.expand_as(x)


def loss_of(model, images, generator, **draws):
    """The loss of a training step, with given numbers in place of drawn ones."""
    drawn = draws or model.draw(len(images), tuple(images.shape[2:]), generator)
    return model.loss(images, torch.ones_like(images, dtype=torch.bool), drawn)


@pytest.fixture
def model(tiny, randomise):
    """Return a maker of small models whose weights are not those of a new network."""

    def make(**changes):
        return randomise(DiffusionModel(tiny(**changes)))

    return make


@pytest.fixture
def spied(tiny):
    """Return a maker of models whose network is a Spy."""

    def make(answer=None, **changes):
        made = DiffusionModel(tiny(**changes))
        made.unet = Spy(answer)
        return made

    return make


def test_schedule_of_the_release(reference):
    arrays = reference("schedule_cosine1000")
    betas = cosine_betas(1000)
    np.testing.assert_allclose(betas, arrays["betas"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(torch.cumprod(1 - betas, 0), arrays["alphas_cumprod"], rtol=0, atol=1e-12)


def test_published_noise_level_of_reconstruction(spied):
    assert spied().signal_scale[499] ** 2 == pytest.approx(0.4938, abs=5e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 2000))
def test_schedule_falls_from_signal_to_noise(timesteps):
    alpha_bars = torch.cumprod(1 - cosine_betas(timesteps), 0)
    assert (alpha_bars.diff() < 0).all()
    assert 0 < alpha_bars[-1] < alpha_bars[0] < 1


def test_noising_keeps_unit_variance(spied):
    model = spied()
    torch.testing.assert_close(model.signal_scale**2 + model.noise_scale**2, torch.ones(1000))
    x, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 499, 999])
    noisy = model.q_sample(x, t, noise)
    for i, step in enumerate(t):
        a = math.cos((step + 1 + 8) / 1008 * math.pi / 2) ** 2 / math.cos(8 / 1008 * math.pi / 2) ** 2
        torch.testing.assert_close(noisy[i], a**0.5 * x[i] + (1 - a) ** 0.5 * noise[i], rtol=1e-4, atol=3e-4)


def test_schedule_is_not_part_of_the_weights(tiny):
    model = DiffusionModel(tiny())
    assert all(key.startswith("unet.") for key in model.state_dict())


# --- loss


@pytest.mark.parametrize(("loss", "expected"), [("l1", 0.6), ("l2", 0.36)])
def test_loss_compares_with_the_clean_slice_on_the_inner_scale(spied, loss, expected):
    model = spied(answer=torch.tensor(0.1), loss=loss)
    images = torch.full((2, 1, 8, 8), 0.25)  # -0.5 on the inner scale
    assert loss_of(model, images, generator()).item() == pytest.approx(expected, rel=1e-5)


def test_loss_uses_given_timesteps_and_noise(spied):
    model = spied()
    images, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    t = torch.tensor([10, 700])
    loss_of(model, images, None, timesteps=t, noise=noise)
    seen, seen_t = model.unet.calls[0]
    assert torch.equal(seen_t, t)
    torch.testing.assert_close(seen, model.q_sample(2 * images - 1, t, noise))


def test_timesteps_are_uniform_over_their_range(spied):
    model = spied(train_timesteps=(200, 210), noisetype="gaussian")
    loss_of(model, torch.rand(2000, 1, 1, 1), generator())
    counts = torch.bincount(model.unet.calls[0][1], minlength=210)
    assert counts[:200].sum() == 0
    assert counts[200:].sum() == 2000
    assert counts[200:].min() > 140  # 200 expected, standard deviation 13


def test_simplex_noise_is_drawn_as_tables_and_laid_out_with_the_slices(spied):
    model, images = spied(), torch.rand(3, 1, 8, 12)
    drawn = model.draw(3, (8, 12), generator(2))
    assert drawn["noise"].shape == (3, 256)
    loss_of(model, images, None, **drawn)
    source = generator(2)
    t = torch.randint(0, 1000, (3,), generator=source)
    noise = simplex_noise((3, 1, 8, 12), generator=source)
    assert torch.equal(drawn["timesteps"], t)
    torch.testing.assert_close(model.unet.calls[0][0], model.q_sample(2 * images - 1, t, noise))


def test_shared_noise_is_one_field(spied):
    drawn = spied(shared_noise=True).draw(4, (8, 8), generator())
    assert all(torch.equal(table, drawn["noise"][0]) for table in drawn["noise"])


@pytest.mark.parametrize(("progress", "low", "high"), [(0.0, 100, 900), (0.5, 250, 750), (1.0, 400, 600)])
def test_training_by_the_clock_narrows_to_the_levels_of_reconstruction(spied, progress, low, high):
    model = spied(train_timesteps=(100, 900), test_timesteps=500, noisetype="gaussian")
    drawn = model.draw(20000, (1, 1), generator(), progress=progress)["timesteps"]
    assert (drawn.min(), drawn.max()) == (low, high - 1)


def test_loss_is_a_function_of_the_seed(model):
    made, images = model(), torch.rand(3, 1, 16, 16)
    first = loss_of(made, images, generator(3))
    assert torch.equal(first, loss_of(made, images, generator(3)))
    assert not torch.equal(first, loss_of(made, images, generator(4)))


def test_training_lowers_the_loss(tiny):
    torch.manual_seed(0)
    made = DiffusionModel(tiny(unet_dim=8, noisetype="gaussian"))
    optimiser = torch.optim.Adam(made.parameters(), lr=2e-3)
    images = torch.zeros(8, 1, 16, 16)
    images[:, :, 4:12, 4:12] = 0.8
    losses = []
    for step in range(40):
        optimiser.zero_grad()
        loss = loss_of(made, images, generator(step))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# --- reconstruction


def test_reconstruction_maps_scales_there_and_back(spied):
    images = torch.rand(2, 1, 8, 8)
    model = spied(answer=torch.tensor(-1.5))
    torch.testing.assert_close(model.reconstruct(images, generator()), torch.full_like(images, -0.25))
    seen, t = model.unet.calls[0]
    assert t.tolist() == [499, 499]
    noise = simplex_noise((2, 1, 8, 8), generator=generator())
    torch.testing.assert_close(seen, 0.4938**0.5 * (2 * images - 1) + 0.5062**0.5 * noise, rtol=0, atol=2e-4)


@pytest.mark.parametrize("ensemble", [False, True])
def test_noised_is_what_the_network_is_shown_first(spied, ensemble):
    model, images = spied(noise_ensemble=ensemble), torch.rand(2, 1, 8, 8)
    model.reconstruct(images, generator(5))
    torch.testing.assert_close(2 * model.noised(images, generator(5)) - 1, model.unet.calls[0][0])


def test_a_new_model_reconstructs_the_middle_of_the_scale(tiny):
    reconstruction = DiffusionModel(tiny()).reconstruct(torch.rand(2, 1, 16, 16), generator())
    assert torch.equal(reconstruction, torch.full((2, 1, 16, 16), 0.5))


def test_equal_seeds_give_equal_bytes(model):
    made, images = model(), torch.rand(3, 1, 16, 20)
    before = images.clone()
    first = made.reconstruct(images, generator(1))
    assert torch.equal(first, made.reconstruct(images, generator(1)))
    assert not torch.equal(first, made.reconstruct(images, generator(2)))
    assert torch.equal(images, before)
    assert not first.requires_grad


@pytest.mark.parametrize("noisetype", ["simplex", "gaussian"])
@pytest.mark.parametrize("shared_noise", [False, True])
def test_batch_size_does_not_change_the_reconstruction(model, noisetype, shared_noise):
    made = model(noisetype=noisetype, shared_noise=shared_noise, noise_draws=2)
    images = torch.rand(7, 1, 16, 20)
    whole = made.reconstruct(images, generator(), batch_size=7)
    for batch_size in (1, 3, 100):
        again = made.reconstruct(images, generator(), batch_size=batch_size)
        torch.testing.assert_close(again, whole, rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(depth=st.integers(1, 9), batch_size=st.integers(1, 10), draws=st.integers(1, 3))
def test_noise_and_order_of_slices_do_not_depend_on_batches(depth, batch_size, draws):
    model = DiffusionModel(DiffusionSettings(unet_dim=8, num_res_blocks=1, noise_draws=draws))
    model.unet = Spy()
    images = torch.rand(depth, 1, 6, 5)
    slices = model.reconstruct(images, generator())
    by_batches = model.reconstruct(images, generator(), batch_size=batch_size)
    assert by_batches.shape == (depth, 1, 6, 5)
    assert torch.equal(by_batches, slices)
    assert max(len(x) for x, _ in model.unet.calls[draws:]) <= batch_size


def test_ensemble_is_the_mean_of_single_noise_levels(model):
    images, steps = torch.rand(2, 1, 16, 16), (250, 500, 750)
    mean = model(noise_ensemble=True, step_ensemble=steps).reconstruct(images, generator())
    source = generator()  # one source for all three: each level has its own draw
    single = [model(test_timesteps=step).reconstruct(images, source) for step in steps]
    torch.testing.assert_close(mean, sum(single) / 3)


def test_draws_are_independent_and_averaged(model):
    images = torch.rand(2, 1, 16, 16)
    mean = model(noise_draws=3).reconstruct(images, generator())
    source, made = generator(), model()
    single = [made.reconstruct(images, source) for _ in range(3)]
    torch.testing.assert_close(mean, sum(single) / 3)
    assert not torch.equal(single[0], single[1])


def test_slices_have_their_own_noise_unless_it_is_shared(spied):
    images = torch.full((3, 1, 16, 16), 0.5)
    own = spied().reconstruct(images, generator())
    assert not torch.equal(own[0], own[1])
    shared = spied(shared_noise=True).reconstruct(images, generator())
    assert torch.equal(shared[0], shared[2])
    single = spied(shared_noise=True).reconstruct(images, generator(), batch_size=1)
    assert torch.equal(single, shared)


def test_odd_slice_shapes(model):
    assert model(unshuffle=2).reconstruct(torch.rand(2, 1, 19, 13), generator()).shape == (2, 1, 19, 13)


# --- what cannot be used


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"noisetype": "perlin"}, "noisetype"),
        ({"loss": "huber"}, "loss"),
        ({"noise_draws": 0}, "noise_draws"),
        ({"test_timesteps": 0}, "test_timesteps"),
        ({"test_timesteps": 1001}, "test_timesteps"),
        ({"noise_ensemble": True, "step_ensemble": (250, 1001)}, "step_ensemble"),
        ({"noise_ensemble": True, "step_ensemble": ()}, "step_ensemble"),
        ({"train_timesteps": (0, 1001)}, "train_timesteps"),
        ({"train_timesteps": (5, 5)}, "train_timesteps"),
        ({"unet_dim": 0}, "unet_dim"),
    ],
)
def test_unusable_settings_are_named(tiny, changes, name):
    with pytest.raises(InputError, match=rf"model\.cfg\.{name}"):
        DiffusionModel(tiny(**changes))


def test_wrong_shapes_are_named(spied):
    model = spied()
    images = torch.rand(8, 8, 3)
    for call in (lambda: model.loss(images, images > 0, {}), lambda: model.reconstruct(images, generator())):
        with pytest.raises(ValueError, match=r"got shape \(8, 8, 3\)"):
            call()
    with pytest.raises(ValueError, match=r"got shape \(1, 8, 8, 3\)"):
        model.reconstruct(torch.rand(1, 8, 8, 3), generator())


@given(slices=st.integers(1, 400), pixels=st.integers(1, 2**21))
def test_calls_on_a_gpu_are_few_and_of_equal_size(slices, pixels):
    size = gpu_batch(slices, pixels)
    calls = math.ceil(slices / size)
    assert size == 1 or size * pixels <= GPU_BATCH_PIXELS
    assert slices > (calls - 1) * max(1, GPU_BATCH_PIXELS // pixels), "no fewer calls would do"
    assert size * calls - slices < calls


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree(model):
    made, images = model(), torch.rand(4, 1, 32, 40)
    on_cpu = made.reconstruct(images, generator())
    torch.backends.cudnn.allow_tf32 = False
    on_gpu = made.to("cuda").reconstruct(images.to("cuda"), generator())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-3)
