"""Reading what detectors write: JSON of COCO, AlphaPose, OpenPose and MMPose, and plain arrays.

What is read is checked before it is used; an error names the file and the field.
"""

import json
import math
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from keras_wsgcn.data.keypoint_tracks import track_people
from keras_wsgcn.data.keypoints import (
    MAX_FRAME_NUMBER,
    MAX_FRAMES,
    MAX_PIXELS,
    KeypointFormat,
    KeypointTrack,
    get_format,
)
from keras_wsgcn.errors import InputError, check_number, shown
from keras_wsgcn.files import check_regular, read_npy_header

MAX_BYTES = 512 * 2**20  # of a file, packed or unpacked
MAX_FRAME_BYTES = 16 * 2**20  # of a file that holds one frame
MAX_DETECTIONS = 2_000_000  # people times frames
MAX_NUMBERS = 2**25  # of an array, which becomes float64: 256 MiB, three hours of 33 joints

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # of an image, not the `.000012` of a frame

_Frame = tuple[int, np.ndarray, np.ndarray]


def read_keypoints(
    path: str | os.PathLike, format: str | KeypointFormat, *, least_confidence: float = 0.3
) -> tuple[KeypointTrack, ...]:
    """Reads the keypoints of a video, whatever of the kinds below they are.

    - A folder: OpenPose's, one `*.json` a frame, each with `people[].pose_keypoints_2d`.
      The frame is the last number in the file's name. One such file alone is one frame.
    - `.json`: COCO results, a list of `{"image_id", "keypoints": [x, y, score, ...]}`, several
      for an image that shows several people; or COCO annotations, which hold such a list, and
      things without keypoints, which are left out. The frame is `image_id`, or the last number in
      it. With `track_id` in every entry that is who is who; null and negative numbers are none.
      AlphaPose's `idx` is taken likewise, where every entry has one and none is twice in a frame.
    - `.json`, or a folder of them: MMPose's predictions, of an image a list of people, each with
      `keypoints` `[[x, y], ...]` and `keypoint_scores`; of a video a list of frames, each with
      `frame_id` and such `instances`. Its demos write that as `instance_info`.
    - `.npy` or `.npz` (its array `keypoints`, or its only one): `(frames, joints, 2)`, or 3 with
      confidence, or `(people, frames, joints, 2 or 3)`. NaN, or (0, 0), is missing.

    People without an identity in the file are joined over time by `track_people`.

    Args:
        path: the file or folder.
        format: name of the keypoint format, or an own one.
        least_confidence: below it a joint does not help in telling who is who.

    Returns:
        One track per person, coordinates as they are in the file.

    Raises:
        InputError: if there is no such file, or it is damaged, too large or not in this format.
    """
    path, row = Path(path), get_format(format)
    check_number("least_confidence", least_confidence, least=0.0)
    if path.is_dir():
        files = sorted(path.glob("[!.]*.json"))  # macOS writes a `._name` beside some files
        tracks = track_people(
            _openpose_frames(files, path, row), row, least_confidence=least_confidence
        )
    elif path.suffix == ".json":
        content = _read_json(path, MAX_BYTES)
        if isinstance(content, Mapping) and "people" in content:
            people = [(0, *_openpose_people(path, content, row))]
            tracks = track_people(people, row, least_confidence=least_confidence)
        else:
            tracks = _coco_tracks(path, _as_coco(path, content), row, least_confidence)
    elif path.suffix in (".npy", ".npz"):
        tracks = _array_tracks(path, row)
    else:
        raise _refusal(path, "it must be a folder, or end in .json, .npy or .npz")
    if not any(track.seen(least_confidence).any() for track in tracks):
        raise _refusal(path, f"it holds no person with a joint of confidence {least_confidence}")
    return tracks


# --- COCO ---------------------------------------------------------------------------------------


def _coco_tracks(
    path: Path, content: Any, row: KeypointFormat, least_confidence: float
) -> tuple[KeypointTrack, ...]:
    annotated = isinstance(content, Mapping) and "annotations" in content
    if annotated:
        content = content["annotations"]
    if not isinstance(content, list) or not content:
        raise _refusal(
            path,
            "it must hold a list of COCO results, or what OpenPose or MMPose write of people",
        )
    if len(content) > MAX_DETECTIONS:
        raise _refusal(path, f"it holds {len(content)} entries, more than {MAX_DETECTIONS}")
    for number, entry in enumerate(content):
        if not isinstance(entry, Mapping):
            raise _refusal(path, f"entry {number} must be an object, not {_shown(entry)}")
    entries = dict(enumerate(content))
    if annotated:  # things of other categories than people
        entries = {number: entry for number, entry in entries.items() if "keypoints" in entry}
        if not entries:
            raise _refusal(path, f"none of its {len(content)} annotations has `keypoints`")
    frames = [
        _frame_number(path, _stem(entry.get("image_id")), f"`image_id` of entry {number}")
        for number, entry in entries.items()
    ]
    _check_images(path, entries.values(), frames)
    detections = [
        _triples(path, entry.get("keypoints"), row, f"`keypoints` of entry {number}")
        for number, entry in entries.items()
    ]
    if names := _names_of(entries.values(), frames):
        known = dict(zip(entries, names, strict=True))
        return _known_tracks(path, known, frames, detections, row)
    grouped: dict[int, list[np.ndarray]] = {}
    for frame, detection in zip(frames, detections, strict=True):
        grouped.setdefault(frame, []).append(detection)
    stacked = ((frame, np.stack(found)) for frame, found in sorted(grouped.items()))
    images = ((frame, found[..., :2], found[..., 2]) for frame, found in stacked)
    return track_people(images, row, least_confidence=least_confidence)


def _check_images(path: Path, content: Iterable[Mapping], frames: list[int]) -> None:
    """Two images must not share a number: `front_1.jpg` and `side_1.jpg` are two videos."""
    names: dict[int, Any] = {}
    for entry, frame in zip(content, frames, strict=True):
        if names.setdefault(frame, entry["image_id"]) != entry["image_id"]:
            raise _refusal(
                path,
                f"`image_id` must tell one frame from another; {names[frame]!r} and "
                f"{entry['image_id']!r} have one number",
            )
    if (span := max(frames) - min(frames) + 1) > MAX_FRAMES:
        raise _refusal(path, f"`image_id` spans {span} frames, more than {MAX_FRAMES}")


def _names_of(entries: Collection[Mapping], frames: list[int]) -> list | None:
    """Who each entry is, as the file says it; None if it does not."""
    names = [entry.get("track_id") for entry in entries]
    if all(map(_is_tracked, names)):
        return names
    numbers = [_alphapose_name(entry.get("idx")) for entry in entries]
    apart = len(set(zip(numbers, frames, strict=True))) == len(frames)
    return numbers if apart and None not in numbers else None


def _is_tracked(track_id: Any) -> bool:
    """Trackers write -1, or null, for a person of whom they do not know who it is."""
    return track_id is not None and not (isinstance(track_id, int) and track_id < 0)


def _alphapose_name(idx: Any) -> int | None:
    """The number in `idx`: 3, `[3.0]`, or of poses that were merged `[[3.0], [3.0]]`; 0 is none."""
    rows = idx if isinstance(idx, list) else [idx]
    numbers = [number for row in rows for number in (row if isinstance(row, list) else [row])]
    if any(type(number) not in (int, float) for number in numbers) or len(set(numbers)) != 1:
        return None
    return int(numbers[0]) if 1 <= numbers[0] <= MAX_DETECTIONS and numbers[0] % 1 == 0 else None


def _known_tracks(
    path: Path,
    names: Mapping[int, Any],
    frames: list[int],
    detections: list,
    row: KeypointFormat,
) -> tuple[KeypointTrack, ...]:
    """Tracks by who each entry is."""
    people: dict[int | str, dict[int, np.ndarray]] = {}
    for (number, name), frame, found in zip(names.items(), frames, detections, strict=True):
        if type(name) not in (int, str):
            raise _refusal(
                path, f"`track_id` of entry {number} must be an integer, not {_shown(name)}"
            )
        rows = people.setdefault(name, {})
        if frame in rows:
            raise _refusal(path, f"`track_id` {name!r} stands twice in frame {frame}")
        rows[frame] = found
    tracks = []
    for name, rows in people.items():
        numbers = sorted(rows)
        stacked = np.stack([rows[frame] for frame in numbers])
        keypoints, confidence = stacked[..., :2], stacked[..., 2]
        tracks.append(KeypointTrack(name, np.array(numbers), keypoints, confidence, row))
    return tuple(tracks)


# --- MMPose -------------------------------------------------------------------------------------


def _as_coco(path: Path, content: Any) -> Any:
    """Predictions of MMPose as the entries of COCO results; anything else as it is."""
    if isinstance(content, Mapping) and "instance_info" in content:
        content = content["instance_info"]
    if not isinstance(content, list):
        return content
    frames: list[Mapping[str, Any]] = []
    for entry in content:
        if not isinstance(entry, Mapping) or not {"instances", "keypoint_scores"} & set(entry):
            return content
        frames.append(entry if "instances" in entry else {"frame_id": 0, "instances": [entry]})
    if any(not isinstance(frame["instances"], list) for frame in frames):
        raise _refusal(path, "the `instances` of a frame must be a list")
    numbers = [
        _frame_number(path, frame.get("frame_id"), f"`frame_id` of frame {place}")
        for place, frame in enumerate(frames)
    ]
    return [
        {"image_id": number, "keypoints": _flat(path, person)}
        for number, frame in zip(numbers, frames, strict=True)
        for person in frame["instances"]
    ]


def _flat(path: Path, person: Any) -> list:
    """`keypoints` and `keypoint_scores` as one list, x, y and score after each other."""
    fields: Mapping[str, Any] = person if isinstance(person, Mapping) else {}
    points, scores = fields.get("keypoints"), fields.get("keypoint_scores")
    if (
        not (isinstance(points, list) and isinstance(scores, list))
        or len(points) != len(scores)
        or any(not isinstance(point, list) or len(point) != 2 for point in points)
    ):
        raise _refusal(
            path,
            "each person must have `keypoints`, a list of [x, y], and as many `keypoint_scores`, "
            f"not {_shown(person)}",
        )
    return [
        number for point, score in zip(points, scores, strict=True) for number in (*point, score)
    ]


# --- OpenPose -----------------------------------------------------------------------------------


def _openpose_frames(files: list[Path], folder: Path, row: KeypointFormat) -> Iterable[_Frame]:
    if not files:
        raise _refusal(folder, "the folder must hold *.json files, one a frame")
    if len(files) > MAX_FRAMES:
        raise _refusal(folder, f"it holds {len(files)} files, more than {MAX_FRAMES}")
    numbers = [_frame_number(folder, file.stem, f"the name {file.name!r}") for file in files]
    if len(set(numbers)) < len(numbers):
        raise _refusal(folder, "two files have one frame number: keep one video in a folder")
    for number, file in sorted(zip(numbers, files, strict=True)):
        content = _read_json(file, MAX_FRAME_BYTES)
        yield (number, *_openpose_people(file, content, row))


def _openpose_people(
    path: Path, content: Any, row: KeypointFormat
) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(content, list):  # MMPose's, of an image
        content = {"people": [{"pose_keypoints_2d": _flat(path, one)} for one in content]}
    people = content.get("people") if isinstance(content, Mapping) else None
    if not isinstance(people, list):
        raise _refusal(path, "`people` must be a list")
    found = np.zeros((len(people), row.num_joints, 3))
    for number, person in enumerate(people):
        if not isinstance(person, Mapping):
            raise _refusal(path, f"`people[{number}]` must be an object, not {_shown(person)}")
        field = f"`people[{number}].pose_keypoints_2d`"
        found[number] = _triples(path, person.get("pose_keypoints_2d"), row, field)
    return found[..., :2], found[..., 2]


# --- arrays -------------------------------------------------------------------------------------


def _array_tracks(path: Path, row: KeypointFormat) -> tuple[KeypointTrack, ...]:
    array = _read_array(path)
    shaped = array.ndim in (3, 4) and array.shape[-2] == row.num_joints
    if (
        not shaped
        or array.shape[-1] not in (2, 3)
        or 0 in array.shape
        or array.dtype.kind not in "fiu"
    ):
        raise _refusal(
            path,
            f"it must hold numbers of shape (frames, {row.num_joints}, 2 or 3) for {row.name!r}, "
            f"people first if there are several, not shape {array.shape} and dtype {array.dtype}",
        )
    array = array.astype(np.float64).reshape(-1, *array.shape[-3:])
    if len(array) * array.shape[1] > MAX_DETECTIONS or array.shape[1] > MAX_FRAMES:
        raise _refusal(path, f"it holds {array.shape[:2]} people and frames, which is too many")
    if np.isinf(array).any() or np.nanmax(np.abs(array), initial=0.0) > MAX_PIXELS:
        raise _refusal(path, f"its numbers must be pixels up to {MAX_PIXELS:.0f}, or NaN")
    keypoints = array[..., :2]
    confidence = array[..., 2] if array.shape[-1] == 3 else np.ones(array.shape[:-1])
    missing = np.isnan(array).any(axis=-1) | (keypoints == 0).all(axis=-1)
    confidence = np.where(missing, 0.0, confidence)
    frames = np.arange(array.shape[1])
    return tuple(
        KeypointTrack(number, frames, *person, row)
        for number, person in enumerate(zip(keypoints, confidence, strict=True), 1)
    )


def _read_array(path: Path) -> np.ndarray:
    """The one array of a file, its header checked before it is given memory, never a pickle."""
    try:
        check_regular(path)
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return _checked_array(path, file, os.fstat(file.fileno()).st_size)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) != 1 and "keypoints" not in members:
                raise _refusal(
                    path, f"it must hold an array `keypoints`, not {sorted(members)[:9]}"
                )
            info = members.get("keypoints") or next(iter(members.values()))
            with archive.open(info) as file:
                return _checked_array(path, file, info.file_size)
    except InputError:
        raise
    except Exception as error:  # whatever zipfile and NumPy make of damaged bytes
        # NumPy's messages can have several lines.
        raise _refusal(path, f"it could not be read ({' '.join(str(error).split())})") from None


def _checked_array(path: Path, file: IO[bytes], size: int) -> np.ndarray:
    if size > MAX_BYTES:
        raise _refusal(path, f"it declares {size} bytes, more than {MAX_BYTES}")
    shape, by_columns, dtype = read_npy_header(file, size)
    if dtype.hasobject:
        raise _refusal(path, "it holds pickled objects, which are never loaded")
    if math.prod(shape) > MAX_NUMBERS:  # before they are read: packed they can be small
        raise _refusal(path, f"it holds more than {MAX_NUMBERS} numbers")
    present = size - file.tell()
    content = file.read(present)
    if len(content) != present or file.read(1):  # at the end the checksum is compared
        raise ValueError(f"it holds other than the {present} bytes that it declares")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


# --- checks -------------------------------------------------------------------------------------


def _refusal(path: Path, problem: str) -> InputError:
    return InputError(f"`path` must hold keypoints; {problem}. Received: path={str(path)!r}")


def _shown(value: Any) -> str:
    """A value out of a file, short enough for one line."""
    return shown(value, 60)


def _read_json(path: Path, limit: int) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise _refusal(path, f"it has more than {limit} bytes")
        return json.loads(content, parse_constant=refuse)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, f"it could not be read as JSON ({error})") from None


def _triples(path: Path, value: Any, row: KeypointFormat, field: str) -> np.ndarray:
    """`[x, y, score, ...]` as `(joints, 3)`."""
    if not isinstance(value, list) or len(value) != 3 * row.num_joints:
        held = f"{len(value)} values" if isinstance(value, list) else _shown(value)
        raise _refusal(
            path,
            f"{field} must be a list of {3 * row.num_joints} numbers, x, y and confidence of the "
            f"{row.num_joints} joints of {row.name!r}, not {held}",
        )
    for number in value:
        # Also false for infinity, which JSON can write as 1e999; bool is no number here.
        if type(number) not in (int, float) or not abs(number) <= MAX_PIXELS:
            raise _refusal(
                path, f"{field} must hold numbers up to {MAX_PIXELS:.0f}, not {_shown(number)}"
            )
    return np.array(value, dtype=np.float64).reshape(-1, 3)


def _stem(image_id: Any) -> Any:
    return _SUFFIX.sub("", image_id) if isinstance(image_id, str) else image_id


def _frame_number(path: Path, value: Any, field: str) -> int:
    """The frame in an `image_id` or a file's name: the integer itself, or the last in the text."""
    if type(value) is int and 0 <= value <= MAX_FRAME_NUMBER:
        return value
    numbers = re.findall(r"\d{1,18}", value) if isinstance(value, str) else []
    if numbers:
        return int(numbers[-1])
    raise _refusal(
        path, f"{field} must be an integer, or a name with a frame number, not {_shown(value)}"
    )
