"""Motion archives: 3D joint positions over time, one array a sequence, in one plain `.npz` file."""

from dataclasses import dataclass

import numpy as np

from keras_wsgcn.skeletons import Skeleton


@dataclass(frozen=True)
class Motion:
    """One sequence of 3D poses.

    Args:
        positions: `(frames, joints, 3)` float32, metres in the world, z up.
        subject: number of the person.
        action: what the person does.
        take: name of the recording, unique within subject and action.
        fps: frames per second.
        description: free text.
        source: file that the sequence was read from, or the name of its generator.
    """

    positions: np.ndarray
    subject: int
    action: str
    take: str
    fps: float = 30.0
    description: str = ""
    source: str = ""

    @property
    def key(self) -> str:
        """`S002/Walking/02_01`: subject, action and take."""
        return f"S{self.subject:03d}/{self.action}/{self.take}"


@dataclass(frozen=True)
class MotionArchive:
    """Sequences that share a skeleton.

    Args:
        skeleton: the joints of every sequence.
        motions: the sequences, each key once.
    """

    skeleton: Skeleton
    motions: tuple[Motion, ...]
