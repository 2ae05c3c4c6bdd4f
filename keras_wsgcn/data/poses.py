"""`PoseDataset`: pairs of 2D input and 3D target with their origin, and how motions become one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from keras_wsgcn import skeletons
from keras_wsgcn.data.archive import Motion, MotionArchive
from keras_wsgcn.data.cameras import Camera, normalize_screen
from keras_wsgcn.errors import InputError, check_integer, check_integers, check_number
from keras_wsgcn.files import digest_of_arrays
from keras_wsgcn.skeletons import Skeleton

# What a run records of its data beside how it is loaded.
DATA_FACTS = ("name", "digest", "train_poses", "validation_poses", "validation_subjects")

# A person is a few metres across: a larger coordinate means another unit, usually millimetres.
_LARGEST_METRES = 5.0
_LARGEST_SCREEN = 10.0


@dataclass(frozen=True)
class PoseDataset:
    """Poses as parallel arrays, one row a view of a frame.

    Args:
        pose2d: `(poses, joints, 2)` float32, normalised screen coordinates.
        pose3d: `(poses, joints, 3)` float32, metres, camera frame, relative to the root.
        subject: `(poses,)` integers.
        action: `(poses,)` strings.
        take: `(poses,)` strings.
        camera: `(poses,)` integers.
        frame: `(poses,)` integers, the frame in its sequence.
        skeleton: the joints, or their name.
        dropped: views left out because a joint was outside the image or too near.

    Raises:
        InputError: if shapes differ, a number is not finite, or a unit is wrong.
    """

    pose2d: np.ndarray
    pose3d: np.ndarray
    subject: np.ndarray
    action: np.ndarray
    take: np.ndarray
    camera: np.ndarray
    frame: np.ndarray
    skeleton: Skeleton
    dropped: int = 0

    def __post_init__(self):
        object.__setattr__(self, "skeleton", skeletons.get(self.skeleton))
        joints = self.skeleton.num_joints
        poses = len(self.pose2d)
        for name, width, largest, unit in (
            ("pose2d", 2, _LARGEST_SCREEN, "normalised screen coordinates, about -1 to 1"),
            ("pose3d", 3, _LARGEST_METRES, "metres relative to the root"),
        ):
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            if array.shape != (poses, joints, width):
                raise InputError(
                    f"`{name}` must have the shape ({poses}, {joints}, {width}), the joints being "
                    f"those of skeleton {self.skeleton.name!r}. "
                    f"Received: {name}.shape={array.shape}"
                )
            # NaN passes through max and min. An array of absolute values would double the memory.
            peak = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
            if not np.isfinite(peak):
                raise InputError(f"`{name}` must be finite. Received: {name} with NaN or infinity")
            if peak > largest:
                raise InputError(
                    f"`{name}` must be in {unit}. Received: {name} with values up to {peak:.4g}"
                )
            object.__setattr__(self, name, array)
        if not np.allclose(self.pose3d[:, self.skeleton.root], 0.0, atol=1e-5):
            raise InputError(
                "`pose3d` must be relative to the root: joint "
                f"{self.skeleton.joint_names[self.skeleton.root]!r} at 0. Received: root up to "
                f"{np.abs(self.pose3d[:, self.skeleton.root]).max():.4g} m away"
            )
        for name in ("subject", "action", "take", "camera", "frame"):
            column = np.asarray(getattr(self, name))
            if column.shape != (poses,):
                raise InputError(
                    f"`{name}` must have the shape ({poses},). "
                    f"Received: {name}.shape={column.shape}"
                )
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.pose2d)

    def subset(self, rows: np.ndarray) -> "PoseDataset":
        """The poses that `rows` selects: a boolean mask, indices or a slice.

        Views that were dropped are not counted of a part.
        """
        arrays = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if field.name not in ("skeleton", "dropped")
        }
        return replace(self, **arrays, dropped=0)

    def of_subjects(self, subjects: Iterable[int]) -> "PoseDataset":
        """The poses of some subjects.

        Raises:
            InputError: if a subject has no pose here.
        """
        subjects = list(check_integers("subjects", subjects, least=0))
        present = np.unique(self.subject).tolist()
        if missing := sorted(set(subjects) - set(present)):
            raise InputError(
                f"`subjects` must be among {present}; {missing} are not. "
                f"Received: subjects={subjects}"
            )
        return self.subset(np.isin(self.subject, subjects))

    def statistics(self) -> dict[str, object]:
        """Counts and extents: poses, subjects, actions, cameras, means and deviations."""
        return {
            "poses": len(self),
            "dropped_views": self.dropped,
            "subjects": np.unique(self.subject).tolist(),
            "actions": np.unique(self.action).tolist(),
            "cameras": np.unique(self.camera).tolist(),
            "pose2d_mean": self.pose2d.mean(axis=(0, 1), dtype=np.float64).tolist(),
            "pose2d_std": self.pose2d.std(axis=(0, 1), dtype=np.float64).tolist(),
            "pose3d_mean_m": self.pose3d.mean(axis=(0, 1), dtype=np.float64).tolist(),
            "pose3d_std_m": self.pose3d.std(axis=(0, 1), dtype=np.float64).tolist(),
        }


@dataclass(frozen=True)
class Splits:
    """Training poses, validation poses that choose the model, test poses that never do.

    Args:
        name: what the data set is called.
        train: poses to train on.
        validation: poses of other subjects: early stopping, model choice and tuning.
        test: poses of yet other subjects, only ever evaluated.
        seen_actions: actions whose test errors are also given apart from the others', because they
            are trained on; of CMU-24.
        keypoints: `"gt"` or `"cpn"` for Human3.6M, whose errors the paper's tables have.
        digest: of the file that they were read from, by which a run knows its data again.
        origin: how `load_splits` was called: `source` and the options, all that it takes to load
            them again. It cannot be given; splits made by hand, as by `dataclasses.replace`, have
            none.

    Raises:
        InputError: if two of them share a subject.
    """

    name: str
    train: PoseDataset
    validation: PoseDataset
    test: PoseDataset
    seen_actions: tuple[str, ...] = ()
    keypoints: str = ""
    digest: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self):
        people = [set(part.subject.tolist()) for part in (self.train, self.validation, self.test)]
        if people[0] & people[1] or people[0] & people[2] or people[1] & people[2]:
            raise InputError(
                "`train`, `validation` and `test` must not share subjects. "
                f"Received: {[sorted(p) for p in people]}"
            )

    def loaded(self, origin: Mapping[str, Any], digest: str) -> "Splits":
        """The same splits, of which it is known where they are from."""
        splits = replace(self, digest=digest)
        object.__setattr__(splits, "origin", dict(origin))
        return splits

    def facts(self) -> dict[str, Any]:
        """What a run records of its data, to know it again; JSON values.

        Splits made by hand are known by their poses, bit by bit.
        """
        parts, names = (self.train, self.validation), ("pose2d", "pose3d", "subject")
        arrays = (getattr(part, name) for part in parts for name in names)
        digest = self.digest if self.origin else digest_of_arrays(arrays)
        people = np.unique(self.validation.subject).tolist()
        values = (self.name, digest, len(self.train), len(self.validation), people)
        return {**dict(zip(DATA_FACTS, values, strict=True)), **self.origin}


def select_joints(source: Skeleton, target: Skeleton) -> np.ndarray:
    """Where each joint of `target` stands in `source`, `(joints,)` indices.

    Raises:
        InputError: if `source` lacks a joint of `target`.
    """
    if missing := sorted(set(target.joint_names) - set(source.joint_names)):
        raise InputError(
            f"`skeleton` must have joints among {source.joint_names}; {missing} are not. "
            f"Received: skeleton={target.name!r}"
        )
    return np.array([source.joint_names.index(name) for name in target.joint_names])


def observe(
    archive: MotionArchive,
    cameras: Callable[[Motion], Sequence[Camera]] | None = None,
    *,
    skeleton: str | Skeleton | None = "h36m_16",
    stride: int = 1,
    noise_px: float = 0.0,
    seed: int | np.random.Generator = 0,
    keep_unseen: bool = False,
) -> PoseDataset:
    """Sees motions through cameras: projects, normalises, and makes targets relative to the root.

    A frame with a joint outside the image, or not 1 m in front of the camera plane, is dropped for
    that camera; the count is in `PoseDataset.dropped`. Stored 2D poses are all taken.

    Args:
        archive: motions in metres, z up.
        cameras: gives the cameras of a motion. `None` takes the views that the archive stores.
        skeleton: the joints to keep. `None` keeps all, the archive's own.
        stride: every how many frames one is taken.
        noise_px: standard deviation of Gaussian detector noise on the 2D input, pixels.
        seed: of the noise, or the generator to draw it from.
        keep_unseen: whether to keep the frames with a joint outside the image.

    Returns:
        The poses, ordered by motion, camera and frame.

    Raises:
        InputError: if an argument is out of range, or no pose is left.
    """
    skeleton = archive.skeleton if skeleton is None else skeletons.get(skeleton)
    check_integer("stride", stride, least=1)
    check_number("noise_px", noise_px, least=0)
    rng = seed
    if not isinstance(rng, np.random.Generator):
        rng = np.random.default_rng(check_integer("seed", rng, least=0))
    joints = select_joints(archive.skeleton, skeleton)
    seers = [_seers(archive, cameras, motion) for motion in archive.motions]
    most = sum(
        len(range(0, len(motion.positions), stride)) * len(some)
        for motion, some in zip(archive.motions, seers, strict=True)
    )
    columns = _empty_columns(archive, most, skeleton.num_joints)
    start = dropped = 0
    for motion, some in zip(archive.motions, seers, strict=True):
        frames = np.arange(0, len(motion.positions), stride)
        first = start
        world = motion.positions[::stride, joints].astype(np.float64)
        for number, (camera, stored) in enumerate(some):
            points = camera.world_to_camera(world)
            seen = np.full(len(points), True)
            if stored is not None:
                pixels = stored[::stride, joints]
            else:
                sees = camera.is_before if keep_unseen else camera.sees
                seen = np.all(sees(points), axis=1)
                points = points[seen]
                pixels = camera.project(points)
            dropped += int((~seen).sum())
            if noise_px:
                pixels = pixels + rng.normal(0.0, noise_px, pixels.shape)
            rows = slice(start, start + len(points))
            columns["pose2d"][rows] = normalize_screen(pixels, camera.image_size)
            columns["pose3d"][rows] = points - points[:, [skeleton.root]]
            columns["frame"][rows] = frames[seen]
            columns["camera"][rows] = number
            start = rows.stop
        for name in ("subject", "action", "take"):
            columns[name][first:start] = getattr(motion, name)
    if not start:
        raise InputError(
            "`archive` must hold a frame that a camera sees whole. "
            f"Received: archive with {len(archive.motions)} motions, {dropped} views dropped"
        )
    arrays = {name: column[:start] for name, column in columns.items()}
    return PoseDataset(**arrays, skeleton=skeleton, dropped=dropped)


def observe_splits(
    archive: MotionArchive,
    cameras: Callable[[Motion], Sequence[Camera]] | None = None,
    *,
    name: str,
    validation: Iterable[int],
    test: Iterable[int],
    keypoints: str = "",
    seed: int = 0,
    **options,
) -> Splits:
    """Sees each part of an archive for itself, so that a part counts the views it drops.

    Args:
        archive: motions in metres, z up.
        cameras: as `observe` takes them.
        name: of the splits.
        validation: subjects to validate on.
        test: subjects to test on; all others are trained on.
        keypoints: of the splits.
        seed: of the noise, which goes on from one part to the next.
        **options: further arguments of `observe`.

    Returns:
        The splits.

    Raises:
        InputError: if no subject is named, the archive lacks one or has no other to train on, or as
            `observe`.
    """
    parts = {"validation": tuple(validation), "test": tuple(test)}
    received = f"Received: validation={parts['validation']}, test={parts['test']}"
    people = {motion.subject for motion in archive.motions}
    if not all(parts.values()):
        raise InputError(
            f"`validation` and `test` must name subjects of the archive, {sorted(people)}. "
            f"{received}"
        )
    if missing := sorted(set().union(*parts.values()) - people):
        raise InputError(
            f"`validation` and `test` must be subjects of the archive, {sorted(people)}; "
            f"{missing} are not. {received}"
        )
    parts = {"train": tuple(people.difference(*parts.values())), **parts}
    if not parts["train"]:
        raise InputError(
            f"`validation` and `test` must leave subjects of the archive to train on. {received}"
        )
    rng = np.random.default_rng(check_integer("seed", seed, least=0))
    seen = {
        part: observe(archive.of_subjects(subjects), cameras, seed=rng, **options)
        for part, subjects in parts.items()
    }
    return Splits(name, seen["train"], seen["validation"], seen["test"], keypoints=keypoints)


def _seers(
    archive: MotionArchive, cameras: Callable[[Motion], Sequence[Camera]] | None, motion: Motion
) -> list[tuple[Camera, np.ndarray | None]]:
    """The cameras of a motion, each with its 2D poses where they are stored."""
    if cameras is not None:
        return [(camera, None) for camera in cameras(motion)]
    if motion.key not in archive.views:
        raise InputError(
            "`cameras` must be given where the archive stores no 2D poses. "
            f"Received: cameras=None, with no views of {motion.key!r}"
        )
    return [(view.camera, view.pose2d) for view in archive.views[motion.key]]


def _empty_columns(archive: MotionArchive, poses: int, joints: int) -> dict[str, np.ndarray]:
    """Columns of a PoseDataset, allocated whole: parts that are joined later take twice as much."""
    columns = {
        "pose2d": np.empty((poses, joints, 2), np.float32),
        "pose3d": np.empty((poses, joints, 3), np.float32),
        **{name: np.empty(poses, np.int32) for name in ("subject", "camera", "frame")},
    }
    for name in ("action", "take"):
        longest = max(len(getattr(motion, name)) for motion in archive.motions)
        columns[name] = np.empty(poses, f"U{longest}")
    return columns
