"""A perfect 2D detector of a generated walk, and files as detectors write them."""

import json

import numpy as np

from keras_wsgcn.data.cmu import four_cameras
from keras_wsgcn.data.keypoints import FORMATS, KeypointTrack
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.skeletons import h36m_17

# Where the parts of a face are, in fractions of stature from the thorax: forward, up, and to the
# left for the left one. From tables of the human body, not from the library's mixtures.
FACE = {
    "nose": (0.085, 0.092, 0.0), "eye": (0.068, 0.118, 0.018), "ear": (0.015, 0.107, 0.044),
    "crown": (0.010, 0.182, 0.0),
}  # fmt: skip


def face_points(positions):
    """Name to `(frames, 3)` metres: the face, placed by the neck and the head."""
    thorax, neck, head, left, right = (
        positions[:, h36m_17.index(name)]
        for name in ("thorax", "neck_nose", "head", "l_shoulder", "r_shoulder")
    )
    # Bodies have neck_nose at (0.030, 0.068) and head at (0.012, 0.143): they span the plane.
    plane = np.linalg.inv(np.array([[0.030, 0.068], [0.012, 0.143]]))
    forward, up = np.einsum("ij,jfx->ifx", plane, np.stack([neck - thorax, head - thorax]))
    stature = np.linalg.norm(head - thorax, axis=1, keepdims=True) / np.hypot(0.012, 0.143)
    aside = np.cross(up, forward)
    aside *= np.sign(np.sum(aside * (left - right), axis=1, keepdims=True))
    aside *= stature / np.linalg.norm(aside, axis=1, keepdims=True)
    points = {}
    for name, (f, u, s) in FACE.items():
        for prefix, sign in (("l_", 1), ("r_", -1)) if s else (("", 0),):
            points[prefix + name] = thorax + f * forward + u * up + sign * s * aside
    return points


def detector_joints(positions, format):
    """What a perfect detector of a format sees, `(frames, joints, 3)` metres, NaN if nothing."""
    known = {name: positions[:, joint] for joint, name in enumerate(h36m_17.joint_names)}
    known["mid_hip"] = (known["l_hip"] + known["r_hip"]) / 2
    known["neck"] = (known["l_shoulder"] + known["r_shoulder"]) / 2
    known |= face_points(positions) if format not in ("h36m16", "h36m17") else {}
    nothing = np.full_like(known["pelvis"], np.nan)
    return np.stack([known.get(name, nothing) for name in FORMATS[format].joint_names], axis=1)


def generated_walk():
    """A walk, `(frames, 17, 3)` metres, and a camera that sees it."""
    motion = generate_motions(subjects=1, takes=1, seconds=4.0, actions=["Walking"]).motions[0]
    return motion.positions.astype(np.float64), four_cameras(motion)[1]


def seen(walk, format):
    """Keypoints of the walk, `(frames, joints, 3)`: pixels and confidence, 0 0 0 if missing."""
    positions, camera = walk
    pixels = camera.project(camera.world_to_camera(detector_joints(positions, format)))
    there = np.isfinite(pixels).all(axis=-1, keepdims=True)
    return np.concatenate([np.where(there, pixels, 0.0), 0.9 * there], axis=-1)


def track_of(keypoints, /, format="coco17", **changes):
    fields = dict(
        person=1, frames=np.arange(len(keypoints)), keypoints=keypoints[..., :2],
        confidence=keypoints[..., 2], format=format,
    )  # fmt: skip
    return KeypointTrack(**{**fields, **changes})


def truth(walk, skeleton=h36m_17):
    positions, camera = walk
    pixels = camera.project(camera.world_to_camera(positions))
    return pixels[:, [h36m_17.index(name) for name in skeleton.joint_names]]


# --- files as detectors write them --------------------------------------------------------------


def write_coco(folder, people, image_ids=None):
    entries = [
        {
            "image_id": image_ids[frame] if image_ids else frame,
            "category_id": 1,
            "keypoints": keypoints[frame].ravel().tolist(),
            "score": 0.97,
        }
        for frame in range(len(people[0]))
        for keypoints in people
    ]
    path = folder / "results.json"
    path.write_text(json.dumps(entries))
    return path


def write_openpose(folder, people):
    folder = folder / "openpose"
    folder.mkdir()
    for frame in range(len(people[0])):
        found = [
            {"person_id": [-1], "pose_keypoints_2d": keypoints[frame].ravel().tolist(),
             "face_keypoints_2d": []}
            for keypoints in people
        ]  # fmt: skip
        path = folder / f"clip_{frame:012d}_keypoints.json"
        path.write_text(json.dumps({"version": 1.3, "people": found}))
    return folder


def write_npy(folder, people):
    path = folder / "keypoints.npy"
    np.save(path, np.stack(people))
    return path


def write_npz(folder, people):
    path = folder / "keypoints.npz"
    np.savez_compressed(path, keypoints=people[0], fps=np.array(30.0))
    return path
