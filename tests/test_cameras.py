import numpy as np
import pytest

from keras_wsgcn import InputError
from keras_wsgcn.data.cameras import Camera, denormalize_screen, normalize_screen

pytestmark = pytest.mark.plain

LENS = {"radial": (-0.21, 0.24, -0.002), "tangential": (-0.0009, -0.0016)}


def camera(**changes):
    settings = {"focal_length": 1145.0, "image_size": (1000, 1000)}
    at = Camera.look_at((5.0, 0.0, 1.6), (0.0, 0.0, 0.9), **settings)
    fields = {name: getattr(at, name) for name in Camera.__dataclass_fields__}
    return Camera(**{**fields, **changes})


def test_axes_are_right_down_forward():
    at = camera()  # on the x axis, looking back along it
    ahead, right, above = at.world_to_camera(np.array([[0, 0, 0.9], [5, 1, 1.6], [5, 0, 2.6]]))
    np.testing.assert_allclose(ahead, [0, 0, np.hypot(5, 0.7)], atol=1e-12)
    np.testing.assert_allclose(right[:2], [1, 0], atol=1e-12)
    assert above[1] < -0.9
    np.testing.assert_allclose(np.linalg.det(at.rotation), 1)


def test_pinhole_projection_by_hand():
    pixels = camera().project(np.array([[0, 0, 2.0], [1, 0, 2], [0, -0.5, 5]]))
    np.testing.assert_allclose(pixels, [[500, 500], [500 + 1145 / 2, 500], [500, 500 - 114.5]])


def test_distortion_by_hand():
    """x = 0.3, y = 0.4 on the plane z = 1: r^2 = 0.25, OpenCV's formula written out."""
    k1, k2, k3, p1, p2 = 0.1, -0.2, 0.3, 0.01, 0.02
    radial = 1 + 0.25 * k1 + 0.25**2 * k2 + 0.25**3 * k3
    x = 0.3 * radial + 2 * p1 * 0.12 + p2 * (0.25 + 2 * 0.09)
    y = 0.4 * radial + p1 * (0.25 + 2 * 0.16) + 2 * p2 * 0.12
    got = camera(radial=(k1, k2, k3), tangential=(p1, p2)).project(np.array([0.6, 0.8, 2.0]))
    np.testing.assert_allclose(got, [500 + 1145 * x, 500 + 1145 * y], rtol=1e-14)


@pytest.mark.parametrize("lens", [{}, LENS], ids=["pinhole", "distorted"])
def test_everything_has_an_inverse(lens, rng):
    at = camera(**lens)
    world = rng.uniform(-1, 1, (40, 16, 3))
    points = at.world_to_camera(world)
    np.testing.assert_allclose(at.camera_to_world(points), world, atol=1e-12)
    back = at.unproject(at.project(points), points[..., 2])
    np.testing.assert_allclose(back, points, atol=1e-9)


@pytest.mark.parametrize("size", [(1000, 1000), (1920, 1080), (480, 640)])
def test_screen_coordinates_and_back(size, rng):
    width, height = size
    corners = normalize_screen(np.array([[0, 0], [width, height], [width / 2, height / 2]]), size)
    np.testing.assert_allclose(corners, [[-1, -height / width], [1, height / width], [0, 0]])
    pixels = rng.uniform(0, width, (5, 16, 2))
    np.testing.assert_allclose(denormalize_screen(normalize_screen(pixels, size), size), pixels)


def test_sees_only_what_is_inside_and_far_enough():
    points = np.array([[0, 0, 2.0], [0, 0, 0.99], [0, 0, -3], [2, 0, 2], [0, -0.99, 2]])
    assert camera().sees(points).tolist() == [True, False, False, False, False]
    assert camera().sees(np.array([0.87, 0.87, 2.0]))
    assert not camera().sees(np.array([0.88, 0, 2.0]))


def test_no_lens_sees_beyond_where_its_polynomial_turns_back():
    """The coefficients of a wide lens, of the size of KITTI's."""
    at = camera(
        radial=(-0.373, 0.204, -0.0723), focal_length=(984.0, 984.0),
        principal_point=(690.0, 250.0), image_size=(1392, 512),
    )  # fmt: skip
    angles = np.radians([0, 30, 58])
    points = 6 * np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=-1)
    pixels = at.project(points)
    assert ((pixels > 0) & (pixels < (1392, 512))).all()  # the last comes back into the image
    assert at.sees(points).tolist() == at.is_before(points).tolist() == [True, True, False]


def test_pixels_of_no_point_are_nan_and_all_others_exact(rng):
    at = camera(radial=(-0.27, 0.11, -0.02), focal_length=(880.0, 880.0), image_size=(1920, 1080))
    pixels = rng.uniform(0, 1, (2000, 2)) * (1920, 1080)
    points = at.unproject(pixels, np.full(2000, 3.0))
    found = np.isfinite(points).all(axis=-1)
    assert 0.5 < found.mean() < 1
    np.testing.assert_allclose(at.project(points[found]), pixels[found], atol=0.1)
    assert at.is_before(points[found]).all()


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"rotation": np.eye(2)}, "rotation"),
        ({"rotation": 2 * np.eye(3)}, "rotation"),
        ({"rotation": np.diag([1.0, 1, -1])}, "rotation"),
        ({"position": (0, 0, np.nan)}, "position"),
        ({"focal_length": (0, 1)}, "focal_length"),
        ({"image_size": (0, 100)}, "image_size"),
        ({"radial": (0.1, 0.2)}, "radial"),
    ],
)
def test_refuses_what_is_no_camera(changes, argument):
    with pytest.raises(InputError, match=rf"`{argument}` must .*Received: {argument}="):
        camera(**changes)


def test_refuses_to_look_straight_down():
    with pytest.raises(InputError, match="`target` must not lie"):
        Camera.look_at((0, 0, 3), (0, 0, 0), focal_length=1000, image_size=(10, 10))


@pytest.mark.parametrize("size", [(0, 1), (1,), (1, np.nan), "wide"])
def test_refuses_what_is_no_image_size(size):
    with pytest.raises((InputError, ValueError)):
        normalize_screen(np.zeros((1, 2)), size)
