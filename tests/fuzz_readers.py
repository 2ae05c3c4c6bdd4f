"""The table of readers: how valid inputs are made and spoilt, and what must hold when one is read.

A further reader is a further row of `READERS`.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_arguments
import fuzz_files as files
import fuzz_models as models

from keras_wsgcn.errors import InputError
from keras_wsgcn.serving.stand_in import Refusal

Case = Any  # arguments by name, or the contents of files by name


@dataclass(frozen=True)
class Reader:
    """What is fed with rubbish.

    Args:
        name: what it is called.
        seeds: valid inputs; may use a folder.
        mutate: an input out of two valid ones.
        read: reads a folder of files, or arguments; checks what came of it.
        refusal: the error that it may raise.
        quick: how many inputs the quick run gives it.
        is_plain: whether it computes nothing with Keras.
    """

    name: str
    seeds: Callable[[Path], list[Case]]
    mutate: Callable[[random.Random, Case, Case], Case]
    read: Callable[[Any], None]
    refusal: type[Exception] = InputError
    quick: int = 300
    is_plain: bool = True

    def write(self, folder: Path, case: Case) -> list[str]:
        """Writes a case of files, and returns their names; arguments are no files."""
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(case, dict) or not all(isinstance(c, bytes) for c in case.values()):
            return []
        for name, content in case.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return [*case, folder.name]


def _arguments(name: str, is_plain: bool) -> Reader:
    _, arguments, _ = (fuzz_arguments.ARGUMENTS | fuzz_arguments.KERAS)[name]
    return Reader(
        name,
        seeds=lambda folder: [arguments],
        mutate=fuzz_arguments.mutate if is_plain else fuzz_arguments.mutate_model,
        read=fuzz_arguments.reading(name),
        quick=200 if is_plain else 12,
        is_plain=is_plain,
    )


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        *(_arguments(name, is_plain=True) for name in fuzz_arguments.ARGUMENTS),
        *(_arguments(name, is_plain=False) for name in fuzz_arguments.KERAS),
        Reader("load_archive", files.archives, files.spoil_npz, files.read_archive),
        Reader("load_splits", files.splits, files.spoil_options, files.read_splits, quick=100),
        Reader("human36m.read_archives", files.human36m, files.spoil_npz, files.read_human36m),
        Reader("read_asf_amc", files.acclaim, files.spoil_text, files.read_acclaim),
        Reader("read_bvh", files.bvh, files.spoil_text, files.read_biovision),
        Reader("mocap.read_folder", files.mocap, files.spoil_text, files.read_mocap, quick=100),
        Reader("keypoints JSON", files.coco, files.spoil_json, files.read_keypoint_json),
        Reader("keypoints OpenPose", files.openpose, files.spoil_json, files.read_openpose),
        Reader("keypoints npy", files.keypoint_npy, files.spoil_npy, files.read_keypoint_npy),
        Reader("keypoints npz", files.keypoint_npz, files.spoil_npz, files.read_keypoint_npz),
        Reader("load_spec", files.specs, files.spoil_toml, files.read_spec),
        Reader("storage", models.storages, models.spoil_sqlite, models.read_storage, quick=40),
        Reader("run folder", models.runs, models.spoil_run, models.read_run, quick=60),
        Reader(
            "load_model", models.models, models.spoil_model, models.read_model,
            quick=30, is_plain=False,
        ),
        Reader("read_metadata", models.models, models.spoil_model, models.read_model_metadata),
        Reader(
            "REST", models.requests, models.spoil_request, models.read_request, refusal=Refusal
        ),
    )
}  # fmt: skip
