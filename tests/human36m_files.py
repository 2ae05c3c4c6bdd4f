"""Small files in exactly the formats of Human3.6M's archives, for the tests that read them."""

import pickle
import sys
import zipfile
from pathlib import Path

import fuzzing
import numpy as np
import pytest

from keras_wsgcn import InputError
from keras_wsgcn.data import human36m
from keras_wsgcn.data.human36m_cameras import cameras_of
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.skeletons import h36m_17

OF_32 = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
METADATA = {
    "layout_name": "h36m",
    "num_joints": 17,
    "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]],
}
NAMES = ("Directions", "Walking", "Walking 1", "WalkDog", "Photo 1")


def world(subject: int, name: str, frames: int = 24) -> np.ndarray:
    """Positions of 17 joints, `(frames, 17, 3)` float32 metres, different for every take."""
    seed = 100 * subject + NAMES.index(name)
    made = generate_motions(subjects=1, takes=1, seconds=1.0, actions=["Walking"], seed=seed)
    assert made.skeleton == h36m_17
    return made.motions[0].positions[:frames]


def as_32(points: np.ndarray) -> np.ndarray:
    """17 joints among 32; the others are far away, so that a wrong choice shows."""
    full = np.full((len(points), 32, points.shape[2]), 7.0, points.dtype)
    full[:, OF_32] = points
    return full


def seen(points: np.ndarray, subject: int) -> list[np.ndarray]:
    """Pixels of the four cameras, `(frames, joints, 2)` float32."""
    return [
        camera.project(camera.world_to_camera(points.astype(float))).astype("float32")
        for camera in cameras_of(subject)
    ]


def positions_3d(joints: int = 17, subjects=(1, 8, 9, 11)) -> dict:
    takes = {s: {name: world(s, name) for name in NAMES} for s in subjects}
    return {
        f"S{s}": {name: as_32(p) if joints == 32 else p for name, p in of_subject.items()}
        for s, of_subject in takes.items()
    }


def positions_2d(subjects=(1, 8, 9, 11), *, longer: int = 0, noise_px: float = 0.0) -> dict:
    rng = np.random.default_rng(0)

    def blur(poses):
        more = np.concatenate([poses, np.repeat(poses[-1:], longer, axis=0)])
        return (more + noise_px * rng.normal(size=more.shape)).astype("float32")

    return {
        f"S{s}": {name: [blur(p) for p in seen(world(s, name), s)] for name in NAMES}
        for s in subjects
    }


def object_array(value) -> np.ndarray:
    array = np.empty((), object)
    array[()] = value
    return array


def npy(payload: bytes, descr: str = "|O", shape: str = "()") -> bytes:
    """An `.npy` file whose data is `payload`, a pickle."""
    return fuzzing.npy(payload, descr, shape)


def old_npy(value, protocol: int = 2) -> bytes:
    """As an older NumPy on Python 3 wrote it: `numpy.core`, bytes as latin1 text."""
    payload = pickle.dumps(object_array(value), protocol)
    # Protocol 4 puts the length of a text before it.
    payload = payload.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
    return npy(payload.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def write_archives(folder: Path, *, joints: int = 17, detections: str | None = "gt", **options):
    """Both archives in a folder, by NumPy itself."""
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "data_3d_h36m.npz", positions_3d=positions_3d(joints))
    names = {"gt": "data_2d_h36m_gt.npz", "cpn": "data_2d_h36m_cpn_ft_h36m_dbb.npz"}
    if detections:
        np.savez_compressed(
            folder / names[detections], positions_2d=positions_2d(**options), metadata=METADATA
        )
    return folder


def refuses(folder, content: bytes, *words, member="positions_3d.npy"):
    """Reads a file with one hostile member: an InputError, and no canary."""
    write_zip(folder / "data_3d_h36m.npz", {member: content})
    refuses_file(folder, *words)


def refuses_file(folder, *words):
    """Reads a hostile file: an InputError that says so, no canary, nothing imported."""
    modules = set(sys.modules)
    with pytest.raises(InputError) as caught:
        human36m.read_archives(folder)
    message = str(caught.value)
    for word in ("`path` must be", "Received: path=", "data_3d_h36m.npz", *words):
        assert word in message
    assert "\n" not in message
    assert len(message) < 1000
    assert not (folder / "canary").exists()
    assert set(sys.modules) <= modules | {"pickletools"}
