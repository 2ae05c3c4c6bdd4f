"""Who is who: the detections of single frames joined to one track per person."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from keras_wsgcn.data.keypoints import KeypointFormat, KeypointTrack, get_format, seen_joints
from keras_wsgcn.errors import InputError, check_integer, check_number

MAX_PEOPLE = 200  # in one frame


@dataclass
class _Person:
    """A track that grows."""

    keypoints: np.ndarray  # as last seen, `(joints, 2)`
    visible: np.ndarray  # `(joints,)` booleans, of the same frame
    rows: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.rows[-1][0]


def track_people(
    frames: Iterable[tuple[int, np.ndarray, np.ndarray]],
    format: str | KeypointFormat,
    *,
    least_confidence: float = 0.3,
    gate: float = 0.5,
    max_lost: int = 30,
) -> tuple[KeypointTrack, ...]:
    """Joins the detections of single frames to one track per person.

    Greedy and frame by frame: of all pairs of a person seen before and a detection, the closest
    is joined first. How close is the mean distance of the joints seen in both, divided by the
    diagonal of the larger of the two bounding boxes. A detection with nobody within `gate` starts
    a new person. People who pass in front of each other may be exchanged.

    Args:
        frames: (frame number, `(people, joints, 2)` pixels, `(people, joints)` confidence), the
            numbers rising.
        format: name of the keypoint format.
        least_confidence: below it a joint is not looked at here.
        gate: how far a person may be from where they were last seen, in diagonals.
        max_lost: frames after which a person who is not seen is forgotten.

    Returns:
        The tracks in the order in which they begin; people are numbered from 1.

    Raises:
        InputError: if an argument is out of range, or a frame holds too many people.
    """
    get_format(format)
    check_number("least_confidence", least_confidence, least=0.0)
    check_number("gate", gate, above=0.0)
    check_integer("max_lost", max_lost, least=1)
    everyone: list[_Person] = []
    present: list[_Person] = []
    for number, keypoints, confidence in frames:
        if len(keypoints) > MAX_PEOPLE:
            raise InputError(
                f"`frames` must hold at most {MAX_PEOPLE} people each. "
                f"Received: {len(keypoints)} people in frame {number}"
            )
        seen = seen_joints(keypoints, confidence, least_confidence)
        present = [person for person in present if number - person.last <= max_lost]
        chosen = _pair(present, keypoints, seen, gate)
        for detection in np.flatnonzero(seen.any(axis=1)):
            person = chosen.get(int(detection))
            if person is None:
                person = _Person(keypoints[detection], seen[detection])
                everyone.append(person)
                present.append(person)
            person.keypoints, person.visible = keypoints[detection], seen[detection]
            person.rows.append((number, keypoints[detection], confidence[detection]))
    return tuple(_track(name, person, format) for name, person in enumerate(everyone, 1))


def _pair(
    present: list[_Person], keypoints: np.ndarray, seen: np.ndarray, gate: float
) -> dict[int, _Person]:
    """Which detection is which person: the closest pair first, each once."""
    if not present or not len(keypoints):
        return {}
    before = np.stack([person.keypoints for person in present])
    seen_before = np.stack([person.visible for person in present])
    shared = seen_before[:, None] & seen[None]
    apart = np.linalg.norm(before[:, None] - keypoints[None], axis=-1)
    total = np.where(shared, apart, 0.0).sum(axis=-1)
    size = np.maximum(_diagonals(before, seen_before)[:, None], _diagonals(keypoints, seen)[None])
    count = shared.sum(axis=-1)
    distance = np.where(count > 0, total / np.maximum(count, 1) / np.maximum(size, 1e-9), np.inf)
    chosen: dict[int, _Person] = {}
    taken: set[int] = set()
    for flat in np.argsort(distance, axis=None, kind="stable"):
        person, detection = divmod(int(flat), len(keypoints))
        if distance[person, detection] > gate:
            break
        if person not in taken and detection not in chosen:
            chosen[detection] = present[person]
            taken.add(person)
    return chosen


def _diagonals(keypoints: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Diagonals of the bounding boxes of what is seen, `(people,)` pixels."""
    low = np.where(seen[..., None], keypoints, np.inf).min(axis=1)
    high = np.where(seen[..., None], keypoints, -np.inf).max(axis=1)
    extent = np.where(seen.any(axis=1, keepdims=True), high - low, 0.0)
    return np.linalg.norm(extent, axis=-1)


def _track(name: int, person: _Person, format: str | KeypointFormat) -> KeypointTrack:
    numbers, keypoints, confidence = zip(*person.rows, strict=True)
    return KeypointTrack(
        person=name,
        frames=np.array(numbers),
        keypoints=np.stack(keypoints),
        confidence=np.stack(confidence),
        format=format,
    )
