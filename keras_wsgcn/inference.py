"""From 2D keypoints to 3D poses: `PoseSequence` and the function that fills it with a model.

What is drawn, written to a file or passed on is a `PoseSequence`.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_wsgcn.data.cameras import checked_size, normalize_screen
from keras_wsgcn.data.keypoints import DETECTED, MISSING, ORIGINS, KeypointTrack, convert_track
from keras_wsgcn.errors import InputError, check_choice, check_integer, check_number
from keras_wsgcn.files import atomic_path
from keras_wsgcn.models import skeleton_of
from keras_wsgcn.prediction import predict, root_aligned
from keras_wsgcn.skeletons import Skeleton

MAX_POSES = 4_000_000  # people times frames: 2 GB of arrays
COORDINATES = "3D in metres, camera frame (x right, y down, z away), relative to the root joint"
_METRE_DIGITS, _PIXEL_DIGITS = 5, 3  # of text: a hundredth of a millimetre


@dataclass(frozen=True)
class PoseSequence:
    """People over time, in 2D as seen and in 3D as lifted.

    Args:
        pose3d: `(people, frames, joints, 3)` float32, metres, camera frame (x right, y down,
            z away from the camera), relative to the root; NaN where a pose is missing.
        pose2d: `(people, frames, joints, 2)` float32, pixels; NaN where a joint is missing.
        skeleton: the joints.
        image_size: (width, height), pixels.
        fps: frames per second.
        people: what each person is called, an integer or a string, each once.
        first_frame: the number of the first frame.
        origin: `(people, frames, joints)` int8, indices into `data.keypoints.ORIGINS`: whether a
            2D joint was detected, interpolated or approximated. By default, whether there is one.

    Raises:
        InputError: if the parts do not fit together.
    """

    pose3d: np.ndarray
    pose2d: np.ndarray
    skeleton: Skeleton
    image_size: tuple[int, int]
    fps: float
    people: tuple[int | str, ...]
    first_frame: int = 0
    origin: np.ndarray = None  # type: ignore[assignment]  # filled in below, out of pose2d

    def __post_init__(self):
        store = object.__setattr__  # the record is frozen for everyone else
        people = (p.item() if isinstance(p, np.generic) else p for p in self.people)
        store(self, "people", tuple(people))
        shape = np.shape(self.pose3d)[:-1]
        for name, width in (("pose3d", 3), ("pose2d", 2)):
            array = np.asarray(getattr(self, name), dtype=np.float32)
            fits = array.ndim == 4 and array.shape == (*shape, width)
            if not fits or array.shape[2] != self.skeleton.num_joints:
                raise InputError(
                    f"`{name}` must have the shape (people, frames, {self.skeleton.num_joints}, "
                    f"{width}), people and frames the same in 2D and 3D. "
                    f"Received: {name}.shape={array.shape}"
                )
            if np.isinf(array).any():
                raise InputError(
                    f"`{name}` must be finite, or NaN where missing. Received: {name} with infinity"
                )
            store(self, name, array)
        # In files 1 and "1" are the same.
        if len(self.people) != shape[0] or len(set(map(str, self.people))) != len(self.people):
            raise InputError(
                f"`people` must hold {shape[0]} different names. Received: people={self.people}"
            )
        checked_size(self.image_size)
        store(self, "image_size", tuple(np.asarray(self.image_size).tolist()))
        store(self, "fps", check_number("fps", self.fps, above=0.0))
        store(self, "first_frame", check_integer("first_frame", self.first_frame, least=0))
        seen = np.isfinite(self.pose2d).all(axis=-1)
        origin = np.where(seen, DETECTED, MISSING) if self.origin is None else self.origin
        store(self, "origin", np.asarray(origin, dtype=np.int8))
        if self.origin.shape != seen.shape or not np.isin(self.origin, range(len(ORIGINS))).all():
            raise InputError(
                f"`origin` must have the shape {seen.shape} and hold indices into {ORIGINS}. "
                f"Received: origin of shape {self.origin.shape}"
            )

    @property
    def frames(self) -> np.ndarray:
        """The numbers of the frames, `(frames,)`."""
        return self.first_frame + np.arange(self.pose3d.shape[1])

    @property
    def lifted(self) -> np.ndarray:
        """Where there is a 3D pose, `(people, frames)` booleans."""
        return np.isfinite(self.pose3d).all(axis=(-2, -1))


def lift_tracks(
    model: keras.Model,
    tracks: Sequence[KeypointTrack],
    image_size: tuple[int, int],
    *,
    fps: float = 30.0,
    least_confidence: float = 0.3,
    max_gap: int = 8,
) -> PoseSequence:
    """Lifts the keypoints of several people to 3D with a Keras model.

    The keypoints are converted to the model's skeleton (`convert_track`) and normalised by the
    image size. No camera is needed: the model assumes the one it was trained with, whose focal
    length is about 1.1 times the width of the image.

    Args:
        model: a lifting model whose joints the tracks' formats have or make.
        tracks: the people, keypoints in pixels.
        image_size: (width, height), pixels.
        fps: frames per second.
        least_confidence: below it a joint is missing.
        max_gap: how many frames in a row are interpolated at most.

    Returns:
        The poses of all people over all frames, from the first in which anyone is seen.

    Raises:
        InputError: if there is nobody, the frames are too many, or the model has joints that
            a format does not make.
    """

    def lift(pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        return predict(model, normalize_screen(pixels, image_size).astype(np.float32))

    return lift_tracks_with(
        lift,
        skeleton_of(model),
        tracks,
        image_size,
        fps=fps,
        least_confidence=least_confidence,
        max_gap=max_gap,
    )


def lift_tracks_with(
    lift: Callable[[np.ndarray, tuple[int, int]], np.ndarray],
    skeleton: Skeleton,
    tracks: Sequence[KeypointTrack],
    image_size: tuple[int, int],
    *,
    fps: float = 30.0,
    least_confidence: float = 0.3,
    max_gap: int = 8,
) -> PoseSequence:
    """Lifts the keypoints of several people to 3D with any function, such as a server's client.

    Args:
        lift: from `(poses, joints, 2)` pixels and (width, height) to `(poses, joints, 3)` metres.
        skeleton: the joints that `lift` takes.
        tracks: as for `lift_tracks`, and so are the others, the result and the errors.
    """
    if not tracks:
        raise InputError(f"`tracks` must hold at least one person. Received: tracks={tracks}")
    first = min(int(track.frames[0]) for track in tracks)
    frames = max(int(track.frames[-1]) for track in tracks) - first + 1
    if len(tracks) * frames > MAX_POSES:
        raise InputError(
            f"`tracks` must make at most {MAX_POSES} poses, people times frames. "
            f"Received: {len(tracks)} people in {frames} frames"
        )
    shape = (len(tracks), frames, skeleton.num_joints)
    pose2d, pose3d = (np.full((*shape, width), np.nan, np.float32) for width in (2, 3))
    origin = np.zeros(shape, np.int8)
    sequence = PoseSequence(  # before the long work, for it checks what it is given
        pose3d=pose3d,
        pose2d=pose2d,
        skeleton=skeleton,
        image_size=image_size,
        fps=fps,
        people=tuple(track.person for track in tracks),
        first_frame=first,
    )
    usable = np.zeros(shape[:2], bool)
    for person, track in enumerate(tracks):
        converted = convert_track(
            track, skeleton, least_confidence=least_confidence, max_gap=max_gap
        )
        rows = converted.frames - first
        pose2d[person, rows] = converted.pose2d
        origin[person, rows] = converted.origin
        usable[person, rows] = converted.usable
    if usable.any():
        lifted = lift(pose2d[usable], image_size)
        pose3d[usable] = root_aligned(lifted, skeleton.root)
    return replace(sequence, pose3d=pose3d, pose2d=pose2d, origin=origin)


# --- files --------------------------------------------------------------------------------------


def save_poses(path: str | os.PathLike, sequence: PoseSequence) -> None:
    """Writes a sequence as `.npz`, `.json` or `.csv`, by the suffix of `path`, atomically.

    All hold metres in 3D, pixels in 2D and the names of the joints. Missing poses are NaN in
    `.npz`, and left out of `.json` and `.csv`.

    - `.npz`: `pose3d_m` (people, frames, joints, 3), `pose2d_px` (people, frames, joints, 2),
      `origin` (people, frames, joints) as indices into `origin_names`, `people`, `frames`,
      `joint_names`, `parents`, `fps`, `image_size_px`, `coordinates`.
    - `.json`: `joint_names`, `units`, ..., and `people`, each with its `poses`, one a frame.
    - `.csv`: one row for each person, frame and joint: `x_m, y_m, z_m, u_px, v_px, origin`.

    Args:
        path: where to.
        sequence: what to write.

    Raises:
        InputError: if the suffix is another.
    """
    check_choice("suffix", Path(path).suffix, WRITERS)
    with atomic_path(path) as temporary:
        WRITERS[Path(path).suffix](sequence, temporary)


def _write_npz(sequence: PoseSequence, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(
            file,
            pose3d_m=sequence.pose3d,
            pose2d_px=sequence.pose2d,
            origin=sequence.origin,
            origin_names=np.array(ORIGINS),
            people=np.array([str(person) for person in sequence.people]),
            frames=sequence.frames,
            joint_names=np.array(sequence.skeleton.joint_names),
            parents=np.array(sequence.skeleton.parents),
            fps=np.array(sequence.fps),
            image_size_px=np.array(sequence.image_size),
            coordinates=np.array(COORDINATES),
        )


def _write_json(sequence: PoseSequence, path: Path) -> None:
    record = {
        "units": {"pose3d": "metres", "pose2d": "pixels"},
        "coordinates": COORDINATES,
        "joint_names": sequence.skeleton.joint_names,
        "parents": sequence.skeleton.parents,
        "image_size": sequence.image_size,
        "fps": sequence.fps,
        "people": [
            {"person": name, "poses": list(_poses_of(sequence, person))}
            for person, name in enumerate(sequence.people)
        ],
    }
    path.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")


def _poses_of(sequence: PoseSequence, person: int) -> Iterator[dict[str, Any]]:
    for row in np.flatnonzero(sequence.lifted[person]):
        yield {
            "frame": int(sequence.frames[row]),
            "pose3d": _rounded(sequence.pose3d[person, row], _METRE_DIGITS),
            "pose2d": _rounded(sequence.pose2d[person, row], _PIXEL_DIGITS),
            "origin": [ORIGINS[number] for number in sequence.origin[person, row]],
        }


def _write_csv(sequence: PoseSequence, path: Path) -> None:
    people, rows = np.nonzero(sequence.lifted)
    joints = sequence.skeleton.num_joints
    names = np.array([str(name) for name in sequence.people])
    metres = sequence.pose3d[people, rows].reshape(-1, 3).astype(np.float64)
    pixels = sequence.pose2d[people, rows].reshape(-1, 2).astype(np.float64)
    columns = {
        "person": np.repeat(names[people], joints),
        "frame": np.repeat(sequence.frames[rows], joints),
        "joint": np.tile(sequence.skeleton.joint_names, len(rows)),
        **dict(zip(("x_m", "y_m", "z_m"), metres.round(_METRE_DIGITS).T, strict=True)),
        **dict(zip(("u_px", "v_px"), pixels.round(_PIXEL_DIGITS).T, strict=True)),
        "origin": np.array(ORIGINS)[sequence.origin[people, rows].ravel()],
    }
    pd.DataFrame(columns).to_csv(path, index=False)


def _rounded(values: np.ndarray, digits: int) -> list:
    return values.astype(np.float64).round(digits).tolist()


WRITERS = {".npz": _write_npz, ".json": _write_json, ".csv": _write_csv}
