"""Human3.6M: other people's archives into the library's own, and its split by subjects.

The data may not be passed on; whoever has it converts it once with `prepare_data.py human36m`.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn.data import human36m_cdf
from keras_wsgcn.data.archive import Motion, MotionArchive
from keras_wsgcn.data.human36m_cameras import camera_names, cameras_of
from keras_wsgcn.data.human36m_formats import MAX_BYTES, read_objects, refusal
from keras_wsgcn.data.human36m_pickles import PickledArray
from keras_wsgcn.data.poses import Splits, observe_splits
from keras_wsgcn.data.views import View
from keras_wsgcn.errors import InputError, check_choice, check_folder
from keras_wsgcn.skeletons import h36m_17

TRAIN_SUBJECTS, TEST_SUBJECTS = (1, 5, 6, 7, 8), (9, 11)
# The paper chooses its best epoch on the test subjects; here one of the training subjects does.
VALIDATION_SUBJECTS = (8,)
ACTIONS = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Photo", "Posing", "Purchases",
    "Sitting", "SittingDown", "Smoking", "Waiting", "WalkingDog", "Walking", "WalkingTogether",
)  # fmt: skip
SOURCE_KIND = "human3.6m"
FPS = 50.0

POSITIONS_NAME = "data_3d_h36m.npz"
DETECTIONS = {"gt": "data_2d_h36m_gt.npz", "cpn": "data_2d_h36m_cpn_ft_h36m_dbb.npz"}

# Where the joints of h36m_17 stand among the 32 of the recordings.
_OF_32 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
# Left and right of the 17 joints, as the archives' metadata has them: another order, other joints.
_SYMMETRY = ((4, 5, 6, 11, 12, 13), (1, 2, 3, 14, 15, 16))
_SPELLINGS = {
    "TakingPhoto": "Photo", "WalkDog": "WalkingDog", "WalkTogether": "WalkingTogether",
}  # fmt: skip
_DROPPED = {(11, "Directions")}  # its video is damaged; everyone leaves it out
# Frames of a detector are a few more than those of the motion; other people are elsewhere.
_MAX_MEDIAN_PX = 150.0
_MAX_DISAGREEMENT = 0.01  # metres between the cameras' versions of one pose

Report = Callable[[str], None]


def read_archives(
    folder: str | os.PathLike, detections: str = "gt", report: Report = lambda line: None
) -> MotionArchive:
    """Reads VideoPose3D's archives.

    Args:
        folder: where `data_3d_h36m.npz` lies, and `data_2d_h36m_gt.npz` or
            `data_2d_h36m_cpn_ft_h36m_dbb.npz`.
        detections: `"gt"` for true 2D poses, `"cpn"` for those of a detector. Without the file of
            the true ones there are no 2D poses in the result; they are then projected on loading.
        report: is called with lines about what was found.

    Returns:
        Sequences of 17 joints in the world, with what the four cameras saw.

    Raises:
        InputError: if a file is missing, or is anything else than such an archive. Nothing of a
            file is executed.
    """
    folder = Path(folder)
    check_choice("detections", detections, DETECTIONS)
    path, path2d = folder / POSITIONS_NAME, folder / DETECTIONS[detections]
    positions = _positions(path, _tree(path, read_objects(path, ("positions_3d",))["positions_3d"]))
    if detections == "gt" and not path2d.exists():
        report(f"{path2d.name} is not there: 2D poses will be projected on loading")
        return _assemble(path, positions, path2d, {}, "", report)
    members = read_objects(path2d, ("positions_2d",), ("metadata",))
    if "metadata" in members:
        _check_metadata(path2d, members["metadata"])
    pose2d = _detections(path2d, _tree(path2d, members["positions_2d"]))
    return _assemble(path, positions, path2d, pose2d, detections, report)


def read_cdf(folder: str | os.PathLike, report: Report = lambda line: None) -> MotionArchive:
    """Reads the official files: `D3_Positions_mono` or `D3_Positions`, and `D2_Positions`.

    Args:
        folder: the folder that holds `S1`, `S5`, ..., each with `MyPoseFeatures`.
        report: is called with lines about what was found.

    Returns:
        As `read_archives`. Without `D2_Positions` it has no 2D poses.

    Raises:
        InputError: if a file is not as it should be, or there is none.
        ImportError: if cdflib is not installed.
    """
    folder = check_folder("folder", folder)
    kinds = ("D3_Positions_mono", "D3_Positions")
    takes = human36m_cdf.read_folder(folder, kinds, 3)
    if not takes:
        raise InputError(
            f"`folder` must hold folders such as S1/MyPoseFeatures/{kinds[0]} with CDF files. "
            f"Received: folder={str(folder)!r}"
        )
    positions = _positions(folder, takes)
    pose2d = _detections(folder, human36m_cdf.read_folder(folder, ("D2_Positions",), 2))
    return _assemble(folder, positions, folder, pose2d, "gt" if pose2d else "", report)


def is_human36m(archive: MotionArchive) -> bool:
    """Whether an archive was made by `read_archives` or `read_cdf`."""
    return all(motion.source_kind == SOURCE_KIND for motion in archive.motions)


def split(
    archive: MotionArchive,
    *,
    validation: Iterable[int] | None = None,
    test: Iterable[int] | None = None,
    **options: Any,
) -> Splits:
    """Training, validation and test poses of Human3.6M, every frame of every camera.

    Args:
        archive: what `read_archives` or `read_cdf` made. Without stored 2D poses they are
            projected through the cameras of the recordings.
        validation: subjects out of training that choose the model; `None` for
            `VALIDATION_SUBJECTS`.
        test: subjects to test on; `None` for `TEST_SUBJECTS`.
        **options: further arguments of `observe`, such as `skeleton` (16 joints for true 2D poses,
            17 for detections in the paper) or `noise_px`.

    Returns:
        The splits, called `human36m-gt` or `human36m-cpn`.
    """
    keypoints = archive.pose2d_source or "gt"
    return observe_splits(
        archive,
        None if archive.views else lambda motion: cameras_of(motion.subject),
        name=f"human36m-{keypoints}",
        validation=VALIDATION_SUBJECTS if validation is None else validation,
        test=TEST_SUBJECTS if test is None else test,
        keypoints=keypoints,
        keep_unseen=True,
        **options,
    )


# --- from trees to arrays -----------------------------------------------------------------------

Tree = dict[int, dict[str, Any]]  # by subject and name of the take


def _tree(path: Path, value: Any) -> Tree:
    """The dicts by subject and take, arrays as arrays, and no more of them than fit in memory."""
    if type(value) is not dict or not all(type(takes) is dict for takes in value.values()):
        raise refusal(path, "it must hold a dict of dicts, by subject and take")
    if strange := [name for name in value if not re.fullmatch(r"S\d{1,3}", name)]:
        raise refusal(path, f"its subjects must be called S1, S5, ..., not {strange[0][:80]!r}")
    size = 0
    tree: Tree = {}
    for subject, takes in value.items():
        for name, found in takes.items():
            where = f"{subject}/{name[:80]}"
            is_list = type(found) is list
            if is_list and len(found) != len(camera_names()):
                raise refusal(path, f"`{where}` has {len(found)} cameras instead of four")
            arrays = [_array(path, where, item) for item in (found if is_list else [found])]
            size += sum(array.nbytes for array in arrays)
            # One array of the file can stand in many places, each of which becomes a copy.
            if size > MAX_BYTES:
                raise refusal(path, f"its arrays take more than {MAX_BYTES} bytes")
            tree.setdefault(int(subject[1:]), {})[name] = (
                dict(zip(camera_names(), arrays, strict=True)) if is_list else arrays[0]
            )
    return tree


def _array(path: Path, where: str, value: Any) -> np.ndarray:
    if not isinstance(value, PickledArray) or not isinstance(value.value, np.ndarray):
        raise refusal(path, f"`{where}` must be a float array, not {type(value).__name__}")
    return value.value


def _positions(path: Path, tree: Tree) -> Tree:
    """Positions in the world: `(frames, 17, 3)` float32, metres."""
    found: Tree = {}
    for subject, takes in tree.items():
        for name, value in takes.items():
            where = f"S{subject}/{name[:80]}"
            if isinstance(value, dict):
                value = {k: _seventeen(path, where, v, (3,)) for k, v in value.items()}
                value = _in_the_world(path, where, subject, value)
            else:
                value = _seventeen(path, where, value, (3,))
            found.setdefault(subject, {})[name] = value
    return found


def _in_the_world(
    path: Path, where: str, subject: int, of_cameras: dict[str, np.ndarray]
) -> np.ndarray:
    """Positions in the camera frames as one in the world, on which all cameras must agree."""
    cameras = {camera.name: camera for camera in cameras_of(subject)}
    worlds = [cameras[name].camera_to_world(points) for name, points in of_cameras.items()]
    frames = min(map(len, worlds))
    worlds = [world[:frames] for world in worlds]
    apart = max(float(np.abs(world - worlds[0]).max()) for world in worlds)
    if not apart <= _MAX_DISAGREEMENT:
        raise refusal(
            path,
            f"`{where}` must be the same pose in every camera, but they are {apart:.3g} m apart",
        )
    return worlds[0].astype(np.float32)


def _detections(path: Path, tree: Tree) -> Tree:
    """2D poses: for each take the `(frames, 17, 2)` float32 pixels of the four cameras, in order.

    A third number of a joint is the detector's confidence, and left out.
    """
    found: Tree = {}
    for subject, takes in tree.items():
        for name, value in takes.items():
            where = f"S{subject}/{name[:80]}"
            if not isinstance(value, dict) or set(value) != set(camera_names()):
                raise refusal(path, f"`{where}` must have 2D poses of the cameras {camera_names()}")
            found.setdefault(subject, {})[name] = [
                _seventeen(path, where, value[camera], (2, 3))[..., :2] for camera in camera_names()
            ]
    return found


def _seventeen(path: Path, where: str, array: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """The 17 joints out of 17 or 32, checked."""
    if array.ndim != 3 or array.shape[1] not in (17, 32) or array.shape[2] not in widths:
        raise refusal(
            path,
            f"`{where}` must be of shape (frames, 17 or 32, {widths[0]}), not {array.shape}",
        )
    if not len(array) or not np.isfinite(array).all():
        raise refusal(path, f"`{where}` must hold frames, and be finite in all of them")
    return np.asarray(array if array.shape[1] == 17 else array[:, list(_OF_32)], np.float32)


def _check_metadata(path: Path, metadata: Any) -> None:
    if type(metadata) is not dict:
        raise refusal(path, f"its metadata must be a dict, not {type(metadata).__name__}")
    if metadata.get("num_joints", 17) != 17 or "keypoints_symmetry" not in metadata:
        return  # all 32 joints are known by their number
    found = metadata["keypoints_symmetry"]
    if type(found) in (list, tuple):
        found = tuple(tuple(side) if type(side) in (list, tuple) else side for side in found)
    if found != _SYMMETRY:
        raise refusal(path, "its metadata has other joints on the left and right than Human3.6M")


# --- from arrays to an archive ------------------------------------------------------------------


def _assemble(
    path: Path, positions: Tree, path2d: Path, pose2d: Tree, source: str, report: Report
) -> MotionArchive:
    motions, views = [], {}
    for subject in sorted(positions):
        for name in sorted(positions[subject]):
            if (subject, name) in _DROPPED:
                continue
            motion = _motion(path, subject, name, positions[subject][name])
            motions.append(motion)
            if pose2d:
                views[motion.key] = _views(path2d, motion, name, pose2d.get(subject, {}).get(name))
    if not motions:
        raise refusal(path, "there is no sequence for it")
    archive = MotionArchive(h36m_17, tuple(motions), views, source)
    frames = sum(len(motion.positions) for motion in motions)
    report(f"{len(motions)} sequences, {frames} frames, {4 * frames} poses with four cameras")
    if views:
        far = np.median([_distance_px(view, m) for m in motions for view in views[m.key]])
        report(f"2D poses ({source}): {far:.2f} px from the projected ones in the median")
    return archive


def _motion(path: Path, subject: int, name: str, positions: np.ndarray) -> Motion:
    text, _, take = name.partition(" ")
    action = _SPELLINGS.get(text, text)
    if action not in ACTIONS or not re.fullmatch(r"\d{0,3}", take):
        raise refusal(path, f"`S{subject}/{name[:80]}` is none of the actions {ACTIONS}")
    try:
        cameras_of(subject)
        return Motion(positions, subject, action, take or "0", FPS, source_kind=SOURCE_KIND)
    except InputError as error:
        raise refusal(path, f"`S{subject}/{name[:80]}`: {error}") from None


def _views(
    path: Path, motion: Motion, name: str, pose2d: list[np.ndarray] | None
) -> tuple[View, ...]:
    frames = len(motion.positions)
    if pose2d is None or min(map(len, pose2d)) < frames:
        found = "none" if pose2d is None else [len(poses) for poses in pose2d]
        raise refusal(
            path, f"`S{motion.subject}/{name}` must have at least {frames} 2D poses, not {found}"
        )
    try:
        views = tuple(
            View(camera, poses[:frames])
            for camera, poses in zip(cameras_of(motion.subject), pose2d, strict=True)
        )
    except InputError as error:
        raise refusal(path, f"`S{motion.subject}/{name}`: {error}") from None
    far = max(_distance_px(view, motion) for view in views)
    if far > _MAX_MEDIAN_PX:
        raise refusal(
            path,
            f"the 2D poses of `S{motion.subject}/{name}` lie {far:.0f} pixels from where the "
            "cameras see it: another person, or the cameras in another order",
        )
    return views


def _distance_px(view: View, motion: Motion) -> float:
    """Median distance of stored 2D poses from projected ones, over some frames."""
    some = slice(None, None, max(1, len(motion.positions) // 20))
    points = view.camera.world_to_camera(motion.positions[some])
    return float(
        np.median(np.linalg.norm(view.camera.project(points) - view.pose2d[some], axis=-1))
    )
