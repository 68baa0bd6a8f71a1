"""Synthetic blur against closed forms: motion, averaging, light, saturation, noise."""

from dataclasses import replace

import numpy as np
import pytest

from basicsr.data.blur import light, motion, render
from basicsr.data.blur.light import Sensor
from basicsr.data.blur.motion import Camera
from basicsr.data.blur.parameters import BlurParameters
from basicsr.data.blur.render import Window, blurred_pair

STILL = BlurParameters(
    shake=(0, 0), scale=(1, 1), foreground=0, gain=(1, 1), highlights=0, shot_noise=(0, 0),
    read_noise=(0, 0), jpeg=0, video=0,
)  # fmt: skip
VIEW = Window(0, 0, 200, 150)  # the fixture `photograph`


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope='module')
def photograph():
    """Smooth shapes of all brightnesses, (150, 200, 3)."""
    rng = np.random.default_rng(1)
    masks = [render.random_mask(rng, 200, 150, 12) for _ in range(3)]
    return (255 * np.stack(masks, axis=2)).astype(np.uint8)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def translations(xs, ys=0.0):
    """Homographies of a view that moves to x, y."""
    H = np.tile(np.eye(3), (len(xs), 1, 1))
    H[:, 0, 2], H[:, 1, 2] = xs, ys
    return H


def averaged(layer, xs, ys=0.0):
    """The mean of `layer` (h, w, C) over a translation."""
    height, width = layer.shape[:2]
    H, shares = motion.frames(translations(xs, ys), motion.grid(0, 0, width, height))
    return render.average(layer, H, shares, width, height)


# --- motion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('seed', 'length'), [(0, 9.0), (1, 30.0), (2, 0.0)])
def test_trajectory_has_the_bits_of_the_plain_formulation_and_its_length(seed, length):
    found = motion.random_trajectory(np.random.default_rng(seed), length)

    rng, steps = np.random.default_rng(seed), 1000
    dt = 1 / steps
    tremor = 1.5 * np.sqrt(dt) * rng.standard_normal((steps, 2))
    jerked = rng.random(steps) < dt
    jerks = 2 * rng.standard_normal((steps, 2))
    angle = rng.uniform(0, 2 * np.pi)
    velocity, position = np.array([np.cos(angle), np.sin(angle)]), np.zeros(2)
    expected = np.empty((steps, 2))
    for step in range(steps):
        expected[step] = position
        velocity = velocity + tremor[step] - 4.0 * dt * position
        if jerked[step]:
            velocity = velocity + jerks[step]
        position = position + dt * velocity
    expected *= length / np.linalg.norm(np.diff(expected, axis=0), axis=1).sum()
    assert found.tobytes() == (expected - expected.mean(axis=0)).tobytes()
    assert np.hypot(*np.diff(found, axis=0).T).sum() == pytest.approx(length, abs=1e-9)


def test_long_exposures_wind_more():
    def straightness(exposure):
        paths = [motion.random_trajectory(np.random.default_rng(n), 1.0, exposure, 256) for n in range(60)]
        return np.mean([np.linalg.norm(path[-1] - path[0]) for path in paths])

    assert straightness(0.1) > 0.9 > 0.6 > straightness(4.0)


@pytest.mark.parametrize('length', [1.0, 12.0, 40.0])
def test_view_travels_the_requested_length(length):
    percent = 100 * length / 640
    parameters = replace(STILL, shake=(percent, percent))
    for seed in range(4):
        H = motion.random_shake(np.random.default_rng(seed), parameters, 640, 480).homographies()
        moved = motion.transform(H, motion.grid(0, 0, 640, 480))
        assert motion.step_lengths(moved).sum(axis=0).mean() == pytest.approx(length, rel=1e-3)
        np.testing.assert_allclose(H[len(H) // 2], np.eye(3), atol=1e-12)


def test_homographies_are_those_of_a_pinhole_camera(rng):
    camera = Camera(rng.normal(0, 0.1, (5, 3)), rng.normal(0, 0.1, (5, 3)), focal=300.0, centre=(100.0, 80.0))
    pixels = rng.uniform(0, 200, (7, 2))
    rays = np.column_stack([(pixels - camera.centre) / camera.focal, np.ones(7)])  # to the plane z = 1
    for nearer in (1.0, 2.5):
        found = motion.transform(camera.homographies(nearer), pixels)
        for moment, (angle, shift) in enumerate(zip(camera.angles, camera.shifts, strict=True)):
            size = np.linalg.norm(angle)
            x, y, z = angle / size
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            R = np.eye(3) + np.sin(size) * cross + (1 - np.cos(size)) * cross @ cross
            seen = rays / nearer @ R.T - shift
            np.testing.assert_allclose(
                found[moment], camera.focal * seen[:, :2] / seen[:, 2:] + camera.centre, atol=1e-9
            )


@pytest.mark.parametrize('travel', [0.0, 0.4, 7.0, 60.0, 1000.0])
def test_frames_are_close_together_and_share_the_exposure(travel):
    time = np.linspace(0, 1, 512)
    H, shares = motion.frames(translations(travel * time**2), motion.grid(0, 0, 10, 10))
    assert len(H) == len(shares) <= motion.MOST_FRAMES
    assert shares.sum() == pytest.approx(1) and shares.min() > 0
    assert (shares @ H[:, 0, 2]) == pytest.approx((travel * time**2).mean())  # no part of the exposure is lost
    if travel <= 60:
        assert np.diff(H[:, 0, 2]).max(initial=0) < 1


def test_extreme_motion_stays_in_view(photograph, rng):
    parameters = BlurParameters(shake=(50, 50), fov=(120, 120), depth=(0.01, 0.01), foreground=1)
    image = rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)
    for seed in range(5):
        lq, gt = blurred_pair(image, np.random.default_rng(seed), parameters, patch=16)
        assert lq.shape == gt.shape == (16, 16, 3)
    # A camera with a wide angle that turns and approaches an object as much as `random_shake` allows.
    angles, shifts = np.zeros((65, 3)), np.zeros((65, 3))
    angles[:, 1] = shifts[:, 2] = np.linspace(-0.2, 0.2, 65)
    camera = Camera(angles, shifts, focal=100 / np.tan(np.radians(60)), centre=(99.5, 74.5))
    for seed in range(8):
        layer, _ = render.random_object(
            photograph, np.random.default_rng(seed), BlurParameters(), camera, VIEW, 1.0, Sensor(video_frames=7)
        )
        assert layer.light.shape[1] < 5 * 200


# --- averaging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('length', [4.0, 8.0, 13.0])
def test_constant_speed_is_a_box_filter_of_linear_light(length):
    """A box of this length scales a wave of f cycles per pixel by sinc(f·length)."""
    f, x = 1 / 40, np.arange(160)
    wave = np.cos(2 * np.pi * f * x)
    layer = np.tile((0.5 + 0.4 * wave)[None, :, None], (20, 1, 4)).astype(np.float32)
    found = averaged(layer, np.linspace(-length / 2, length / 2, 500))[10, 20:140, 0]
    np.testing.assert_allclose(found, 0.5 + 0.4 * np.sinc(f * length) * wave[20:140], atol=3e-3)


def test_light_is_averaged_before_the_camera_curve():
    """Black and white for half the time each is sRGB 188; the mean of the two levels is 128."""
    stripes = np.zeros((16, 64, 4), np.float32)
    stripes[:, (np.arange(64) // 8) % 2 == 1] = 1
    found = light.develop(averaged(stripes, np.linspace(-8, 8, 400))[:, 16:48, :3])
    assert np.abs(found.astype(int) - 188).max() <= 3


def test_averaging_conserves_light(rng):
    layer = np.zeros((80, 80, 4), np.float32)
    layer[30:50, 30:50] = rng.random((20, 20, 1))
    found = averaged(layer, *motion.random_trajectory(rng, 25.0).T)
    assert found.sum() == pytest.approx(layer.sum(), rel=1e-4)


@pytest.mark.parametrize('value', [0, 1, 10, 127, 254, 255])
def test_constant_photograph_stays_constant(value):
    image = np.full((60, 80, 3), value, np.uint8)
    parameters = replace(STILL, shake=(10, 10), foreground=1)
    for picture in blurred_pair(image, np.random.default_rng(3), parameters):
        np.testing.assert_array_equal(picture, image)


def test_roll_leaves_the_centre_sharp(photograph):
    angles = np.zeros((65, 3))
    angles[:, 2] = np.linspace(-0.075, 0.075, 65)
    camera = Camera(angles, np.zeros((65, 3)), focal=200.0, centre=(99.5, 74.5))
    layer = render.make_layer(photograph, VIEW, None, Sensor())
    rolled = light.develop(
        layer.average(*motion.frames(camera.homographies(), motion.grid(*VIEW)), VIEW)[..., :3]
    )
    centre, corner = (slice(65, 85), slice(90, 110)), (slice(0, 20), slice(0, 20))
    assert psnr(rolled[centre], photograph[centre]) > psnr(rolled[corner], photograph[corner]) + 6


# --- pictures -----------------------------------------------------------------------------------------------


def test_without_motion_and_noise_both_images_are_the_photograph(photograph):
    lq, gt = blurred_pair(photograph, np.random.default_rng(0), STILL)
    np.testing.assert_array_equal(lq, photograph)
    np.testing.assert_array_equal(gt, photograph)
    lq, gt = blurred_pair(photograph, np.random.default_rng(0), STILL, patch=64)
    np.testing.assert_array_equal(lq, gt)
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (64, 64, 3)).reshape(-1, 64, 64, 3)
    assert (windows == gt).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(
    ('spoilt', 'low', 'high'),
    [
        ({'shake': (10, 10)}, 5, 30),
        ({'shot_noise': (0.05, 0.05), 'jpeg': 1, 'jpeg_quality': (30, 30)}, 15, 40),
    ],
)
def test_motion_noise_and_compression_spare_the_sharp_image(photograph, spoilt, low, high):
    lq, gt = blurred_pair(photograph, np.random.default_rng(0), replace(STILL, **spoilt))
    np.testing.assert_array_equal(gt, photograph)
    assert low < psnr(lq, gt) < high


def test_patch_is_blurred_like_the_entire_image(photograph):
    moving = replace(STILL, shake=(7, 7), roll=(1, 1), depth=(1, 1))
    H = motion.random_shake(np.random.default_rng(5), moving, 200, 150).homographies()
    patch = Window(70, 50, 48, 40)
    everything = render.make_layer(photograph, VIEW, None, Sensor())
    around = patch.grown(render.margin(H, patch))
    part = render.make_layer(render.cut(photograph, around, 1.0), around, None, Sensor())
    some = motion.frames(H, motion.grid(*VIEW))
    np.testing.assert_allclose(part.average(*some, patch), everything.average(*some, patch), atol=1e-4)


@pytest.mark.parametrize(
    'window', [(-5, -7, 20, 30), (190, 140, 30, 30), (-10, -10, 230, 180), (20, 30, 40, 50)]
)
def test_cut_reflects_beyond_the_border(photograph, window):
    left, top, width, height = window
    padded = np.pad(photograph, ((40, 40), (40, 40), (0, 0)), mode='symmetric')
    expected = padded[top + 40 : top + 40 + height, left + 40 : left + 40 + width]
    np.testing.assert_array_equal(render.cut(photograph, Window(*window), 1.0), expected)


def test_cut_shrinks_by_the_mean_and_enlarges_by_interpolation(photograph):
    found = render.cut(photograph, Window(5, 10, 40, 30), 0.5)
    expected = photograph[20:80, 10:90].reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(found - expected).max() <= 0.5

    # Cubic interpolation keeps a ramp; pixels are squares, so the centre of pixel x is at (x + 1/2) / 2 − 1/2.
    ramp = np.broadcast_to(4 * np.arange(60, dtype=np.uint8)[None, :, None], (50, 60, 3))
    found = render.cut(np.ascontiguousarray(ramp), Window(20, 12, 60, 40), 2.0)
    expected = 4 * ((np.arange(20, 80) + 0.5) / 2 - 0.5)
    assert found.shape == (40, 60, 3)
    assert np.abs(found - expected[None, :, None])[:, 4:-4].max() <= 0.5

    lq, gt = blurred_pair(photograph, np.random.default_rng(0), replace(STILL, scale=(3, 3)), patch=64)
    assert lq.shape == gt.shape == (64, 64, 3)
    steps = [np.abs(np.diff(image.astype(int), axis=1)).mean() for image in (gt, photograph)]
    assert steps[0] < 0.6 * steps[1]  # neighbouring pixels are nearly alike


def test_only_the_object_moves(photograph):
    moving = replace(STILL, foreground=1, foreground_shift=(12, 12), foreground_size=(20, 20))
    shares = []
    for seed in range(6):
        lq, gt = blurred_pair(photograph, np.random.default_rng(seed), moving)
        shares.append((np.abs(lq.astype(int) - gt).max(axis=2) > 2).mean())
    assert min(shares) > 0.01 and max(shares) < 0.95 and 0.1 < np.mean(shares) < 0.8


def test_object_can_come_from_another_photograph(photograph):
    other = np.full_like(photograph, 200)
    parameters = replace(STILL, foreground=1)
    _, gt = blurred_pair(photograph // 2, np.random.default_rng(2), parameters, other=lambda rng: other)
    assert (gt == 200).all(axis=2).any() and (gt < 128).any()


@pytest.mark.parametrize('size', [10.0, 40.0])
def test_masks_are_smooth_shapes(size):
    mask = np.stack([render.random_mask(np.random.default_rng(n), 160, 120, size) for n in range(20)])
    assert mask.min() == 0 and mask.max() == 1
    assert 0.05 < mask.mean() < 0.4
    assert ((mask > 0) & (mask < 1)).mean() < 4 * render.MASK_EDGE / size


# --- light, noise, video ------------------------------------------------------------------------------------


def test_camera_curve_inverts_linearisation():
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    np.testing.assert_array_equal(light.develop(light.to_linear(levels).astype(np.float32)), levels)
    np.testing.assert_allclose(light.to_srgb(light.to_linear(levels)), levels, atol=1e-3)


def test_highlights_leave_streaks():
    """A light ten times brighter than white, seen for a fifth of the time, is white along its streak."""
    image = np.zeros((21, 61, 3), np.uint8)
    image[8:13, 28:33] = 255
    found = []
    for gain in (1.0, 10.0):
        layer = render.make_layer(image, Window(0, 0, 61, 21), None, Sensor(highlight_gain=gain)).light
        found.append(light.develop(averaged(layer, np.linspace(-12.5, 12.5, 400))[..., :3])[10, 22:39])
    assert found[0].max() < 140 and found[1].min() == 255


def test_only_almost_white_is_brightened():
    levels = np.linspace(0, 1, 101, dtype=np.float32)
    brighter = levels.copy()
    light.brighten_highlights(brighter, 5.0)
    np.testing.assert_array_equal(brighter[:80], levels[:80])
    assert (np.diff(brighter) > 0).all() and brighter[-1] == pytest.approx(5)


@pytest.mark.parametrize(
    ('level', 'shot', 'read'), [(0.0, 0.1, 0.02), (0.3, 0.05, 0.0), (0.8, 0.04, 0.03), (4, 0.1, 0)]
)
def test_noise_has_the_stated_variance(rng, level, shot, read):
    constant = np.full((300, 300, 3), level, np.float32)
    noise = light.add_noise(constant, rng, shot, read) - constant
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    assert noise.var() == pytest.approx(shot**2 * min(level, 1) + read**2, rel=0.02)


@pytest.mark.parametrize('count', [7, 8, 9])
def test_video_is_averaged_in_srgb(photograph, count):
    """Frames at distances of one pixel: the mean of the levels, not of the light, of that many shifted copies."""
    window, sensor = Window(20, 20, 100, 100), Sensor(video_frames=count)
    layer = render.make_layer(photograph, VIEW, None, sensor)
    H = translations(np.repeat(np.arange(count) - count // 2, 10))
    lq, gt = render.expose(layer, H, window, sensor)
    copies = [
        photograph[20:120, 20 + shift : 120 + shift] for shift in range(-(count // 2), count - count // 2)
    ]
    np.testing.assert_allclose(255 * lq[..., :3], np.mean(copies, axis=0), atol=1e-3)
    np.testing.assert_array_equal(light.to_image(gt[..., :3]), photograph[20:120, 20:120])


def test_video_keeps_the_mean_level_and_long_exposures_brighten_it():
    stripes = np.zeros((120, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    moving = replace(STILL, shake=(12, 12), exposure=(0.01, 0.01), roll=(0, 0))
    for seed in range(4):
        for video, level in ((1, (127.5, 4)), (0, (188, 8))):
            lq, _ = blurred_pair(stripes, np.random.default_rng(seed), replace(moving, video=video), 64)
            assert lq.mean() == pytest.approx(level[0], abs=level[1])


def test_gain_saturates_except_in_video(photograph):
    gain = replace(STILL, gain=(3, 3), highlights=1, highlight_gain=(9, 9))
    lq, gt = blurred_pair(np.full((32, 32, 3), 200, np.uint8), np.random.default_rng(0), gain)
    assert lq.min() == gt.min() == 255
    for picture in blurred_pair(
        photograph, np.random.default_rng(0), replace(gain, video=1, shot_noise=(0.1, 0.1))
    ):
        np.testing.assert_array_equal(picture, photograph)


# --- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('shake', (5, 4)), ('shake', (-1, 4)), ('shake', (0, float('nan'))), ('scale', (0, 1)),
        ('shake', 5), ('fov', (40,)), ('fov', (40, 180)), ('foreground', 1.5), ('jpeg', 'often'),
        ('highlights', (0, 1)), ('jpeg_quality', (0, 50)), ('gain', ['1', '2']),
        ('video_frames', (7.5, 9)), ('jpeg_quality', (70, 80.5)), ('video', True), ('shake', (False, True)),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(name, value):
    with pytest.raises(ValueError, match=rf'^{name}: found .*; allowed: (a chance from|\[lo, hi\] with) '):
        BlurParameters(**{name: value})
