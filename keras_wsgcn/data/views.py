"""Views: 2D poses in pixels and the camera that saw them, and the arrays that an archive keeps.

In the file they are `pose2d/<key>/<camera>`, and one row of each `camera_...` array a view.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from keras_wsgcn.data.cameras import Camera
from keras_wsgcn.data.human36m_cameras import Human36mCamera
from keras_wsgcn.errors import InputError, shown

MAX_PIXELS = 1e5

# How the lens of a stored camera distorts.
LENSES = {"brown-conrady": Camera, "human3.6m": Human36mCamera}
# Fields of a camera: kind of dtype and number of dimensions of the array over all views.
_CAMERA_ARRAYS = {
    "rotation": ("f", 3), "position": ("f", 2), "focal_length": ("f", 2),
    "principal_point": ("f", 2), "image_size": ("iu", 2), "radial": ("f", 2),
    "tangential": ("f", 2),
}  # fmt: skip
LIST_NAME = "camera_view"  # the array that lists the views; without it a file has none
SOURCE_NAME = "pose2d_source"

ReadArray = Callable[[str, str, int], np.ndarray]  # name, kinds of dtype, dimensions


@dataclass(frozen=True)
class View:
    """What one camera saw of a sequence.

    Args:
        camera: the camera; its name is unique within the sequence, and has no `/`.
        pose2d: `(frames, joints, 2)` float32, pixels.

    Raises:
        InputError: if the 2D poses are not finite pixels of that shape, or a name has a `/`.
    """

    camera: Camera
    pose2d: np.ndarray

    def __post_init__(self):
        if "/" in self.camera.name:  # which in the file parts it from the key
            raise InputError(
                f"`camera` must have a name without `/`. Received: {shown(self.camera.name)}"
            )
        pose2d = np.asarray(self.pose2d)
        if pose2d.ndim != 3 or pose2d.shape[2] != 2 or pose2d.dtype.kind not in "fiu":
            raise InputError(
                "`pose2d` must be numbers of shape (frames, joints, 2). "
                f"Received: pose2d of shape {pose2d.shape} and dtype {pose2d.dtype}"
            )
        pose2d = np.ascontiguousarray(pose2d, dtype="float32")
        # NaN passes through max and min, and no comparison with it is true.
        peak = max(float(pose2d.max(initial=0.0)), -float(pose2d.min(initial=0.0)))
        if not peak <= MAX_PIXELS:
            raise InputError(
                f"`pose2d` must be finite pixels, below {MAX_PIXELS:.0f}. "
                f"Received: pose2d with values up to {peak:.4g}"
            )
        object.__setattr__(self, "pose2d", pose2d)


def arrays_of(views: Mapping[str, Iterable[View]], source: str) -> dict[str, np.ndarray]:
    """The arrays that stand for views in a file: empty if there are none.

    Args:
        views: the views of each sequence, by its key.
        source: where the 2D poses come from, such as `cpn`.

    Raises:
        InputError: if a camera's lens is none of those that a file can hold.
    """
    rows = [(f"{key}/{view.camera.name}", view) for key, some in views.items() for view in some]
    if not rows:
        return {}
    lenses = {kind: name for name, kind in LENSES.items()}
    if others := {type(view.camera) for _, view in rows} - set(lenses):
        raise InputError(
            f"`views` must be of cameras of the types {[kind.__name__ for kind in lenses]}, to be "
            f"saved. Received: {sorted(kind.__name__ for kind in others)}"
        )
    arrays = {f"pose2d/{name}": view.pose2d for name, view in rows}
    arrays[LIST_NAME] = np.array([name for name, _ in rows])
    arrays["camera_lens"] = np.array([lenses[type(view.camera)] for _, view in rows])
    for field, (kinds, _) in _CAMERA_ARRAYS.items():
        values = [getattr(view.camera, field) for _, view in rows]
        arrays[f"camera_{field}"] = np.array(values, "int32" if kinds == "iu" else "float64")
    arrays[SOURCE_NAME] = np.array(source)
    return arrays


def views_from(read: ReadArray) -> tuple[dict[str, tuple[View, ...]], str]:
    """Views out of a file that has the array `camera_view`.

    Args:
        read: gives an array by name after checking its kind of dtype and its dimensions.

    Returns:
        The views of each sequence by its key, and where the 2D poses come from.

    Raises:
        InputError: if the arrays do not fit together.
    """
    names = read(LIST_NAME, "U", 1).tolist()
    if len(set(names)) < len(names):  # each would be read again
        raise InputError(f"`{LIST_NAME}` must have each view once. Received: some twice")
    columns = {"lens": read("camera_lens", "U", 1)}
    for field, (kinds, ndim) in _CAMERA_ARRAYS.items():
        columns[field] = read(f"camera_{field}", kinds, ndim)
    for field, column in columns.items():
        if len(column) != len(names):
            raise InputError(
                f"`camera_{field}` must have a row for each of the {len(names)} views. "
                f"Received: {len(column)} rows"
            )
    views: dict[str, tuple[View, ...]] = {}
    for row, name in enumerate(names):
        fields = {field: column[row] for field, column in columns.items()}
        key, _, camera_name = name.rpartition("/")
        view = View(_camera(camera_name, **fields), read(f"pose2d/{name}", "f", 3))
        views[key] = (*views.get(key, ()), view)
    return views, str(read(SOURCE_NAME, "U", 0))


def _camera(name: str, *, lens, image_size, radial, tangential, **fields) -> Camera:
    if str(lens) not in LENSES:
        raise InputError(
            f"`camera_lens` must hold lenses among {list(LENSES)}. Received: {str(lens)!r}"
        )
    return LENSES[str(lens)](
        name=name,
        image_size=tuple(image_size.tolist()),
        radial=tuple(radial.tolist()),
        tangential=tuple(tangential.tolist()),
        **fields,
    )
