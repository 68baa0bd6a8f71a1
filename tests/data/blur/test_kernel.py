"""Uniform blur: kernels, and convolution in linear light against a direct sum."""

import numpy as np
import pytest

from basicsr.data.blur import kernel as kernels

LENGTHS = [0.0, 0.3, 1.0, 5.0, 11.7, 60.0]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def srgb_to_linear(value):
    value /= 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def linear_to_srgb(light):
    return 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize('length', LENGTHS)
def test_kernel_is_a_centred_distribution(length):
    for seed in range(5):
        kernel = kernels.random_kernel(np.random.default_rng(seed), length)
        size = len(kernel)
        assert kernel.shape == (size, size) and size % 2 == 1 and kernel.dtype == np.float64
        assert kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1, abs=1e-12)
        offset = np.arange(size) - size // 2
        assert (kernel.sum(1) * offset).sum() == pytest.approx(0, abs=1e-9)
        assert (kernel.sum(0) * offset).sum() == pytest.approx(0, abs=1e-9)


def test_length_zero_gives_the_delta_kernel_and_other_kernels_differ(rng):
    np.testing.assert_allclose(kernels.random_kernel(rng, 0.0), [[1.0]])
    first, second = (kernels.random_kernel(rng, 9.0) for _ in range(2))
    assert first.shape != second.shape or np.abs(first - second).max() > 0.01


def test_rasterise_splits_a_position_among_its_neighbours():
    kernel = kernels.rasterise(np.array([[0.25, -0.5], [-0.25, 0.5]]))
    half = np.array([[0, 0.125, 0.125], [0.375, 0.75, 0.375], [0.125, 0.125, 0]]) / 2
    np.testing.assert_allclose(kernel, half, atol=1e-15)


def test_constant_images_and_delta_kernels_change_nothing(rng):
    for value in (0, 1, 10, 11, 127, 255):
        image = np.full((9, 40, 3), value, np.uint8)
        np.testing.assert_array_equal(kernels.blur(image, kernels.random_kernel(rng, 15.0), 0, rng), image)
    image = rng.integers(0, 256, (20, 31, 3), dtype=np.uint8)
    for size in (1, 5, 13):
        delta = np.zeros((size, size))
        delta[size // 2, size // 2] = 1
        np.testing.assert_array_equal(kernels.blur(image, delta, 0, rng), image)


@pytest.mark.parametrize('size', [3, 5, 13])  # OpenCV uses another method for sizes of 11 and more
@pytest.mark.parametrize('channels', [1, 3])
def test_blur_is_a_convolution_of_linear_light(rng, size, channels):
    height, width, radius = 14, 17, size // 2
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    kernel = rng.random((size, size))  # asymmetric: a correlation would differ
    kernel /= kernel.sum()

    def reflected(index, length):
        return -index - 1 if index < 0 else 2 * length - 1 - index if index >= length else index

    expected = np.zeros(image.shape)
    for y, x, c in np.ndindex(image.shape):
        light = 0.0
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                source = image[reflected(y - dy, height), reflected(x - dx, width), c]
                light += kernel[radius + dy, radius + dx] * srgb_to_linear(float(source))
        expected[y, x, c] = linear_to_srgb(light)

    blurred = kernels.blur(image, kernel, 0, rng)
    assert blurred.dtype == np.uint8 and blurred.shape == image.shape
    assert np.abs(blurred - expected).max() <= 0.5 + 1e-6  # rounding only


def test_noise_is_gaussian_in_levels_and_does_not_wrap_around(rng):
    image = np.full((200, 200, 3), 128, np.uint8)
    difference = kernels.blur(image, np.ones((1, 1)), 3.0, rng).astype(float) - 128
    assert difference.mean() == pytest.approx(0, abs=0.05)
    assert difference.std() == pytest.approx(np.sqrt(3.0**2 + 1 / 12), rel=0.02)  # 1/12: rounding
    assert np.mean(np.abs(difference) < 3.5) == pytest.approx(0.757, abs=0.01)  # P(|N(0, 3)| < 3.5)

    extremes = np.tile(np.array([[0, 255]], np.uint8), (50, 50))[..., None]
    noisy = kernels.blur(extremes, np.ones((1, 1)), 5.0, rng)
    assert noisy[:, ::2].max() < 60 and noisy[:, 1::2].min() > 195
