"""Valid data files for `fuzz_readers.py`, how they are spoilt, and what must hold of them."""

import functools
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import human36m_files
import numpy as np
from fuzzing import (
    FOLDER,
    RUBBISH,
    as_json,
    as_objects,
    as_toml,
    damage,
    misfit,
    reassemble,
    rewrite,
    saved,
    scribble,
)
from mocap_files import PLAIN, amc_text, asf_text, bvh_text

from keras_wsgcn.data import human36m as human36m_archives
from keras_wsgcn.data.archive import Motion, MotionArchive, load_archive, save_archive
from keras_wsgcn.data.cmu import four_cameras
from keras_wsgcn.data.keypoint_files import read_keypoints
from keras_wsgcn.data.keypoints import KeypointTrack
from keras_wsgcn.data.mocap import read_asf_amc, read_bvh
from keras_wsgcn.data.mocap_folders import read_folder, read_labels
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.data.views import View
from keras_wsgcn.skeletons import Skeleton, h36m_17
from keras_wsgcn.studies.spec import StudySpec, load_spec

Files = dict[str, bytes]

# --- spoiling ------------------------------------------------------------------------------------


def _one(rng: random.Random, case: Files, other: Files) -> tuple[str, bytes, bytes]:
    name = rng.choice(list(case))
    return name, case[name], other.get(name) or next(iter(other.values()))


def spoil_npz(rng: random.Random, case: Files, other: Files) -> Files:
    name, content, second = _one(rng, case, other)
    change = damage if rng.random() < 0.3 else reassemble
    return {**case, name: change(rng, content, second)}


def spoil_npy(rng: random.Random, case: Files, other: Files) -> Files:
    name, content, second = _one(rng, case, other)
    return {**case, name: misfit(rng, content, second)}


def spoil_text(rng: random.Random, case: Files, other: Files) -> Files:
    name, content, second = _one(rng, case, other)
    change = damage if rng.random() < 0.3 else scribble
    return {**case, name: change(rng, content, second)}


def spoil_json(rng: random.Random, case: Files, other: Files) -> Files:
    name, content, second = _one(rng, case, other)
    if rng.random() < 0.3:
        return {**case, name: damage(rng, content, second)}
    return {**case, name: as_json(rewrite(rng, json.loads(content)))}


def spoil_toml(rng: random.Random, case: Files, other: Files) -> Files:
    name, content, second = _one(rng, case, other)
    if rng.random() < 0.3:
        return {**case, name: rng.choice((damage, scribble))(rng, content, second)}
    value = rewrite(rng, json.loads(content.partition(b"#")[2]))
    return {**case, name: as_toml(value if isinstance(value, dict) else {"name": value})}


# --- motion archives -----------------------------------------------------------------------------

_ARM = Skeleton("arm", ("shoulder", "elbow", "wrist"), (-1, 0, 1))


def _poses(frames: int, joints: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1.5, (frames, joints, 3)).astype("float32")


def _archive(subjects: tuple[int, ...], *, views: bool = False) -> MotionArchive:
    motions = tuple(
        Motion(_poses(3, seed=s), s, "Walking", f"{s:02d}_01", 30.0, "slow", "x.amc", "asf/amc")
        for s in subjects
    )
    seen = {
        motion.key: tuple(
            View(camera, camera.project(camera.world_to_camera(motion.positions)))
            for camera in four_cameras(motion)
        )
        for motion in motions
    }
    return MotionArchive(h36m_17, motions, seen if views else {}, "gt" if views else "")


def _bytes(folder: Path, archive: MotionArchive, compressed: bool = True) -> bytes:
    path = folder / "seed.npz"
    save_archive(path, archive)
    content = path.read_bytes()
    if not compressed:
        stream = io.BytesIO()
        np.savez(stream, **dict(np.load(io.BytesIO(content))))
        content = stream.getvalue()
    path.unlink()
    return content


def archives(folder: Path) -> list[Files]:
    arm = MotionArchive(_ARM, (Motion(_poses(2, 3), 1, "Arm", "1"),))
    made = (
        (_archive((1, 2)), True), (_archive((1, 2)), False), (_archive((1,), views=True), False),
        (arm, False),
    )  # fmt: skip
    return [{"a.npz": _bytes(folder, archive, packed)} for archive, packed in made]


def read_archive(folder: Path) -> None:
    archive = load_archive(folder / "a.npz")
    for motion in archive.motions:
        assert motion.positions.shape[1:] == (archive.skeleton.num_joints, 3)
        assert np.isfinite(motion.positions).all()
    save_archive(folder / "again.npz", archive)
    again = load_archive(folder / "again.npz")
    for one, other in zip(archive.motions, again.motions, strict=True):
        assert one.key == other.key
        np.testing.assert_array_equal(one.positions, other.positions)


_OPTIONS = {"validation": [2], "test": [3], "stride": 1, "noise_px": 0.5, "seed": 0,
            "skeleton": "h36m_16"}  # fmt: skip


def splits(folder: Path) -> list[Any]:
    contents = [_bytes(folder, _archive((1, 2, 3), views=views)) for views in (False, True)]
    return [{"s.npz": content, "options": _OPTIONS} for content in contents]


def spoil_options(rng: random.Random, case: Any, other: Any) -> Any:
    return {**case, "options": rewrite(rng, case["options"], (*RUBBISH, "generated"))}


def read_splits(case: Any) -> None:
    Path(FOLDER).mkdir(exist_ok=True)
    path = Path(FOLDER) / "s.npz"
    path.write_bytes(case["s.npz"])
    options = as_objects(case["options"])
    known = {name: options[name] for name in _OPTIONS if name in options}
    made = load_splits(path, **known)
    for part in (made.train, made.validation, made.test):
        assert np.isfinite(part.pose2d).all()
        assert part.pose3d.shape == (len(part), part.skeleton.num_joints, 3)


# --- Human3.6M -----------------------------------------------------------------------------------


@functools.cache
def _human36m() -> list[Files]:
    world = human36m_files.world(1, "Walking")[:3]
    three = {"S1": {"Walking": world, "Photo 1": world[:2]}}
    two = {"S1": {name: human36m_files.seen(p, 1) for name, p in three["S1"].items()}}
    modern, old = {}, {}
    for name, values in (
        ("data_3d_h36m.npz", {"positions_3d": three}),
        ("data_2d_h36m_gt.npz", {"positions_2d": two, "metadata": human36m_files.METADATA}),
    ):
        stream, second = io.BytesIO(), io.BytesIO()
        np.savez_compressed(stream, **values)
        modern[name] = stream.getvalue()
        with_two = {key: human36m_files.old_npy(value) for key, value in values.items()}
        with zipfile.ZipFile(second, "w") as archive:
            for key, content in with_two.items():
                archive.writestr(f"{key}.npy", content)
        old[name] = second.getvalue()
    return [modern, old]


def human36m(folder: Path) -> list[Files]:
    return _human36m()


def read_human36m(folder: Path) -> None:
    archive = human36m_archives.read_archives(folder)
    for motion in archive.motions:
        assert motion.positions.shape[1:] == (17, 3)
        assert np.isfinite(motion.positions).all()
    for views in archive.views.values():
        assert len(views) == 4


# --- motion capture ------------------------------------------------------------------------------

_REST = "root 0 0 0 0 0 0\nlfemur 0 0 0\nltibia 0\nlhumerus 0\n"


def acclaim(folder: Path) -> list[Files]:
    moved = _REST.replace("root 0 0 0", "root 1 2 3").replace("ltibia 0", "ltibia 40")
    return [
        {"07.asf": asf_text().encode(), "07_01.amc": amc_text(_REST, moved, _REST).encode()},
        {"07.asf": asf_text(0.05).encode(), "07_01.amc": amc_text(*[moved] * 9).encode()},
    ]


def _check_motion(motion: Motion) -> None:
    assert motion.positions.shape[1:] == (17, 3)
    assert np.isfinite(motion.positions).all()


def read_acclaim(folder: Path) -> None:
    _check_motion(read_asf_amc(folder / "07.asf", folder / "07_01.amc"))


def bvh(folder: Path) -> list[Files]:
    moved = {"Hips": (1, 2, 3, 10, 20, 30), "LeftForeArm": (90, 0, 0)}
    return [{"08_01.bvh": bvh_text({}, *[moved] * count).encode()} for count in (2, 9)]


def read_biovision(folder: Path) -> None:
    _check_motion(read_bvh(folder / "08_01.bvh", layout=PLAIN))


def mocap(folder: Path) -> list[Files]:
    header = b"file,subject,action,description\n"
    labels = header + b'07_01.amc,,Walking,"slow, then fast"\n08_01,18,Jumping,\n'
    return [
        {**one, **two, "actions.csv": labels}
        for one, two in zip(acclaim(folder), bvh(folder), strict=True)
    ]


def read_mocap(folder: Path) -> None:
    labels = read_labels(folder / "actions.csv")
    for motion in read_folder(folder, labels=labels, min_frames=1).motions:
        _check_motion(motion)


# --- keypoints -----------------------------------------------------------------------------------


def _flat(person: int, frame: int) -> list[float]:
    rng = np.random.default_rng([person, frame])
    points = np.concatenate([rng.uniform(0, 500, (17, 2)), rng.uniform(0.2, 1, (17, 1))], axis=1)
    return [round(float(x), 2) for x in points.ravel()]


def coco(folder: Path) -> list[Files]:
    plain = [{"image_id": f, "keypoints": _flat(p, f), "score": 0.9}
             for f in range(3) for p in range(2)]  # fmt: skip
    known = [{**entry, "track_id": n % 2} for n, entry in enumerate(plain)]
    named = [{**entry, "image_id": f"front_{entry['image_id']:03d}.jpg"} for entry in plain]
    people = [{"keypoints": _flat(p, 0), "keypoint_scores": [0.5] * 17} for p in range(2)]
    for person in people:  # as MMPose writes them
        person["keypoints"] = [person["keypoints"][n : n + 2] for n in range(0, 51, 3)]
    video = [{"frame_id": f, "instances": people} for f in range(3)]
    kinds = (plain, known, named, {"annotations": plain}, people, video, {"instance_info": video})
    return [{"k.json": as_json(kind)} for kind in kinds]


def _check_tracks(tracks: tuple[KeypointTrack, ...]) -> None:
    assert tracks
    for track in tracks:
        assert len(track.frames) == len(track.keypoints) == len(track.confidence)
        assert np.isfinite(track.confidence).all()


def read_keypoint_json(folder: Path) -> None:
    _check_tracks(read_keypoints(folder / "k.json", "coco17"))


def openpose(folder: Path) -> list[Files]:
    def frame(number: int, people: int) -> bytes:
        found = [{"person_id": [-1], "pose_keypoints_2d": _flat(p, number)} for p in range(people)]
        return as_json({"version": 1.3, "people": found})

    return [
        {f"clip_{n:012d}_keypoints.json": frame(n, people) for n in range(3)} for people in (1, 2)
    ]


def read_openpose(folder: Path) -> None:
    _check_tracks(read_keypoints(folder, "coco17"))


def _arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(1, 500, shape).astype(kind) for shape, kind in
            (((3, 17, 2), "f4"), ((2, 3, 17, 3), "f8"), ((3, 17, 2), "u1"))]  # fmt: skip


def keypoint_npy(folder: Path) -> list[Files]:
    return [{"k.npy": saved(array)} for array in _arrays()]


def read_keypoint_npy(folder: Path) -> None:
    _check_tracks(read_keypoints(folder / "k.npy", "coco17"))


def keypoint_npz(folder: Path) -> list[Files]:
    made = []
    for array in _arrays():
        stream = io.BytesIO()
        np.savez_compressed(stream, keypoints=array, more=array[:1])
        made.append({"k.npz": stream.getvalue()})
    return made


def read_keypoint_npz(folder: Path) -> None:
    _check_tracks(read_keypoints(folder / "k.npz", "coco17"))


# --- specs of studies ----------------------------------------------------------------------------

_SPEC: dict[str, Any] = {
    "title": "t", "note": "n", "recipe": "quickstart", "seeds": [0, 1], "paper_table": 2,
    "data": {"source": "generated", "stride": 3},
    "config": {"channels": 4, "blocks": 1, "dropout": 0.2},
    "grid": [{"scheme": ["pre_agg", "post_agg"], "affinity": "fixed"}],
}  # fmt: skip
_SEARCH = {
    **{key: value for key, value in _SPEC.items() if key not in ("paper_table", "note")},
    "search": {
        "trials": 3, "prune": True, "seed": 0, "objectives": ["val_mpjpe_mm"],
        "space": {"learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
                  "batch_size": {"low": 64, "high": 128}, "schedule": {"choices": ["cosine"]}},
    },
}  # fmt: skip


def specs(folder: Path) -> list[Files]:
    # The value as JSON stands in a comment behind the TOML, for those who rewrite it.
    def text(value: dict[str, Any]) -> bytes:
        return as_toml(value) + b"#" + json.dumps(value).encode()

    tuned = {**_SPEC, "tuned_by": "search"}
    return [
        {"s.toml": text(_SPEC)},
        {"s.toml": text(_SEARCH)},
        {"s.toml": text(tuned), "search.toml": text(_SEARCH)},
        {"s.toml": text({**tuned, "tuned_by": "s"}), "search.toml": text(tuned)},
    ]


def read_spec(folder: Path) -> None:
    spec = load_spec(folder / "s.toml")
    assert spec.cells
    assert StudySpec.from_config(spec.get_config()).get_config() == spec.get_config()
