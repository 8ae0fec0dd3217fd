import numpy as np
import opensimplex
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opensimplex.internals import _init

from brainuad.models import gaussian_noise, opensimplex_permutation, simplex_fields, simplex_noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", [1, 2, 12345])
def test_fields_of_the_release(reference, seed):
    arrays = reference("simplex_2d")
    permutation = opensimplex_permutation(seed)[None]
    six = simplex_fields(permutation, (96, 96))[0]
    np.testing.assert_allclose(six, arrays[f"seed{seed}"], rtol=0, atol=1e-5)
    one = simplex_fields(permutation, (40, 40), octaves=1, frequency=8)[0]
    np.testing.assert_allclose(one, arrays[f"seed{seed}_single"], rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_permutation_agrees_with_the_opensimplex_package(seed):
    np.testing.assert_array_equal(opensimplex_permutation(seed), _init(seed)[0])


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    frequency=st.sampled_from([1.3, 8.0, 64.0]),
    octaves=st.integers(1, 4),
    persistence=st.floats(0.1, 1.0),
)
def test_fields_agree_with_the_opensimplex_package(seed, size, frequency, octaves, persistence):
    second = opensimplex.OpenSimplex(seed)
    expected = np.zeros(size)
    for octave in range(octaves):
        x, y = (np.arange(n) * 2**octave / frequency for n in size)
        expected += persistence**octave * second.noise2array(y, x)  # (X, Y): the last axis comes first
    field = simplex_fields(
        opensimplex_permutation(seed)[None], size, octaves=octaves, persistence=persistence, frequency=frequency
    )[0]
    np.testing.assert_allclose(field, expected, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(octave=st.integers(1, 5), persistence=st.floats(0.1, 1.0), seed=st.integers(0, 1000))
def test_an_octave_halves_the_wavelength(octave, persistence, seed):
    permutation = opensimplex_permutation(seed)[None]
    size = (20, 28)
    more = simplex_fields(permutation, size, octaves=octave + 1, persistence=persistence)
    fewer = simplex_fields(permutation, size, octaves=octave, persistence=persistence)
    single = simplex_fields(permutation, size, octaves=1, frequency=64 / 2**octave)
    torch.testing.assert_close(more - fewer, persistence**octave * single, rtol=0, atol=1e-5)


def test_fields_of_a_batch_are_those_of_its_rows():
    permutations = torch.stack([opensimplex_permutation(seed) for seed in range(5)])
    batch = simplex_fields(permutations, (32, 17))
    for field, permutation in zip(batch, permutations, strict=True):
        torch.testing.assert_close(field, simplex_fields(permutation[None], (32, 17))[0])


def test_statistics_of_many_slices():
    fields = simplex_noise((1000, 1, 96, 96), generator=generator())
    assert abs(fields.mean()) < 0.01
    assert fields.std(dim=0).mean() == pytest.approx(0.575, abs=0.01)
    # Corner, rest of the image: the lattice stands still, so one pixel never changes; the others all do.
    assert fields[:, 0, 0, 0].abs().max() < 1e-6
    assert (fields.std(dim=0) > 0.1).float().mean() > 0.999


def test_slices_are_independent():
    fields = simplex_noise((400, 1, 96, 96), generator=generator(1)).flatten(1)
    correlations = torch.corrcoef(fields)[tuple(torch.triu_indices(400, 400, offset=1))]
    # A field has few independent values (its longest wave is 64 pixels): single correlations are not small.
    assert abs(correlations.mean()) < 0.01
    assert correlations.max() < 0.95
    neighbours = torch.diagonal(torch.corrcoef(fields), offset=1)
    assert abs(neighbours.mean()) < 4 * neighbours.std() / 399**0.5


def test_equal_seeds_give_equal_bytes():
    for noise in (simplex_noise, gaussian_noise):
        first = noise((3, 1, 24, 20), generator=generator(7))
        assert torch.equal(first, noise((3, 1, 24, 20), generator=generator(7)))
        assert not torch.equal(first, noise((3, 1, 24, 20), generator=generator(8)))


def test_nothing_but_the_generator_is_read():
    state = torch.random.get_rng_state()
    simplex_noise((2, 1, 8, 8), generator=generator())
    gaussian_noise((2, 1, 8, 8), generator=generator())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("noise", [simplex_noise, gaussian_noise])
@pytest.mark.parametrize("shape", [(2, 1, 9, 11), (2, 9, 11), (1, 1, 1, 1), (0, 1, 4, 4)])
def test_shape_and_type(noise, shape):
    field = noise(shape, generator=generator())
    assert field.shape == shape
    assert field.dtype == torch.float32
    assert noise(shape, generator=generator(), dtype=torch.float64).dtype == torch.float64


def test_type_does_not_change_the_draw():
    for noise in (simplex_noise, gaussian_noise):
        single = noise((2, 1, 8, 8), generator=generator())
        torch.testing.assert_close(noise((2, 1, 8, 8), generator=generator(), dtype=torch.float64).float(), single)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 8), (1, 1, 1, 8, 8)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"got \(" + ", ".join(map(str, shape))):
        simplex_noise(shape, generator=generator())


def test_noise_first_drawn_in_inference_mode_can_be_trained_on():
    shape = (1, 1, 13, 37)  # used nowhere else, so that the first call fills the cache
    with torch.inference_mode():
        simplex_noise(shape, generator=generator())
    weight = torch.ones((), requires_grad=True)
    (weight * simplex_noise(shape, generator=generator())).square().sum().backward()
    assert weight.grad is not None


def test_gaussian_noise_is_standard_normal():
    noise = gaussian_noise((64, 1, 64, 64), generator=generator())
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fields_agree_between_devices():
    permutations = torch.stack([opensimplex_permutation(seed) for seed in range(4)])
    on_gpu = simplex_fields(permutations.cuda(), (96, 96))
    torch.testing.assert_close(on_gpu.cpu(), simplex_fields(permutations, (96, 96)), rtol=0, atol=1e-5)
    drawn = simplex_noise((4, 1, 96, 96), generator=torch.Generator("cuda").manual_seed(0))
    assert drawn.is_cuda
    on_cpu = simplex_noise((4, 1, 96, 96), generator=generator(1))
    moved = simplex_noise((4, 1, 96, 96), generator=generator(1), device="cuda")
    torch.testing.assert_close(moved.cpu(), on_cpu, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("device", "where"), [("meta", "meta"), ("cpu", "cpu"), (None, "cpu")])
def test_fields_are_computed_on_the_device_asked_for(device, where, monkeypatch):
    seen = []

    def record(permutations, *args, **kwargs):
        seen.append(permutations.device.type)
        return simplex_fields(permutations, *args, **kwargs)

    monkeypatch.setattr("brainuad.models.noise.simplex_fields", record)
    fields = simplex_noise((2, 1, 8, 8), generator=generator(), device=device)
    assert seen == [fields.device.type] == [where]
