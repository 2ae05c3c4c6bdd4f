"""Lifted poses to look at: a picture, a GIF or MP4, and an HTML page to turn and play them.

All three draw the same scene. The libraries that draw are imported on demand (extra `plots`).
"""

import base64
import contextlib
import html
import importlib.resources
import json
import math
import os
import shutil
import string
import subprocess
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_wsgcn import files, plots
from keras_wsgcn.errors import InputError, check_instance
from keras_wsgcn.inference import PoseSequence

_MAX_PEOPLE = 6  # side by side, more are too small to be seen
_MAX_NAME = 20  # characters that fit below a person
_MAX_FRAMES = {".gif": 300, ".mp4": 3000, ".html": 2000}  # some MB, some minutes of drawing
_MAX_FPS = {".gif": 50.0, ".mp4": 60.0, ".html": 60.0}  # browsers slow faster GIFs down
_LARGEST_METRES = 30.0  # a person is smaller; also what 16 bits hold in millimetres
_GAP = 0.35  # metres between people side by side
_GRID = 0.5  # metres between the lines behind the skeleton
_AZIMUTH, _ELEVATION = -60, 12  # degrees; beside the camera, where depth can be seen
# Inches, and pixels an inch. Video takes even numbers, and matplotlib 3.8 makes 459 pixels of 4.6.
_SIZE, _DPI = (8.0, 4.601), 100
_GIF_COLOURS = 64
_NO_TAGS = str.maketrans("<>", "‹›")  # which plotly would read, and not always escaped
_MISSING = -32768  # stands for NaN among the 16-bit integers of a page
_BONES: dict[str, Any] = {"linewidth": 2.4, "solid_capstyle": "round"}
_JOINTS: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 2.6, "color": "#222222"}


def write_picture(sequence: PoseSequence, path: str | os.PathLike) -> None:
    """Draws up to four frames across a sequence: the 2D input above, the 3D poses below.

    Args:
        sequence: what to draw. Of more than six people, those seen in most frames are drawn.
        path: the PNG file to be written.

    Raises:
        InputError: if no pose is there to be drawn, a unit is wrong, or `path` does not end in
            `.png`.
        ImportError: if matplotlib is missing.
    """
    path = _checked(sequence, path, (".png",))
    seen = np.flatnonzero(_is_seen(sequence.pose3d).any(axis=0))
    columns = min(4, len(seen))
    scene = _stage(sequence, seen[np.linspace(0, len(seen) - 1, columns).round().astype(int)])
    width, height = 2.6 * columns + 0.7, 6.4
    figure = plots.new_figure(width, height)
    grid = figure.add_gridspec(
        2, columns, left=0.6 / width, right=1 - 0.1 / width, top=0.95, bottom=0.12,
        height_ratios=(1, 1.25), hspace=0.1, wspace=0.08,
    )  # fmt: skip
    for column in range(columns):
        above = figure.add_subplot(grid[0, column])
        below = figure.add_subplot(grid[1, column], projection="3d")
        for panel in (_input_panel(above, scene), _scene_panel(below, scene)):
            panel.show(column)
        above.set_title(scene.time_of(column), fontsize=10)
        if column:  # the scale of the first holds for all
            above.set_ylabel("")
            above.set_yticklabels([])
    _add_captions(figure, scene)
    plots.write(figure, path)


def write_animation(sequence: PoseSequence, path: str | os.PathLike) -> None:
    """Writes a sequence as a moving picture: the 2D input beside the 3D poses.

    It plays at the speed of the sequence. From a long or fast one, every n-th frame is taken, so
    that no more than 300 (GIF) or 3000 (MP4) remain, and 50 or 60 a second.

    Args:
        sequence: what to draw. Of more than six people, those seen in most frames are drawn.
        path: the file to be written, `.gif` or `.mp4`.

    Raises:
        InputError: if no pose is there to be drawn, a unit is wrong, or `path` does not end in
            `.gif` or `.mp4`.
        ImportError: if matplotlib or, for MP4, ffmpeg is missing.
        OSError: if ffmpeg fails.
    """
    path = _checked(sequence, path, (".gif", ".mp4"))
    suffix = path.suffix.lower()
    ffmpeg = _find_ffmpeg() if suffix == ".mp4" else ""
    scene = _stage(sequence, *_every_nth(sequence, suffix))
    with files.atomic_path(path) as temporary:
        if suffix == ".gif":
            _write_gif(temporary, scene)
        else:
            _write_mp4(temporary, scene, ffmpeg)


def write_page(sequence: PoseSequence, path: str | os.PathLike) -> None:
    """Writes a sequence as one HTML page, on which it is turned with the mouse and played.

    The page holds all it needs, plotly.js too (about 5 MB), and loads nothing from a network. From
    a long sequence, every n-th frame is taken, so that no more than 2000 remain.

    Args:
        sequence: what to show. Of more than six people, those seen in most frames are shown.
        path: the file to be written, `.html`.

    Raises:
        InputError: if no pose is there to be shown, a unit is wrong, or `path` does not end in
            `.html`.
        ImportError: if plotly is missing.
    """
    path = _checked(sequence, path, (".html",))
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError('Pages need plotly: pip install "keras_wsgcn[plots]"') from error
    scene = _stage(sequence, *_every_nth(sequence, ".html"))
    template = importlib.resources.files("keras_wsgcn").joinpath("page.html").read_text("utf-8")
    page = string.Template(template).substitute(
        plotly=get_plotlyjs(),
        caption="<br>".join(html.escape(line) for line in scene.captions),
        last=len(scene.frames) - 1,
        # Names come from a user: no text of theirs may end the script.
        data=json.dumps(_page_data(scene), separators=(",", ":")).replace("<", "\\u003c"),
    )
    files.write_text(path, page)


# --- the scene ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """What is drawn.

    `points` is `(people, frames, joints, 3)` metres, x to the right, y away from the camera, z up,
    people side by side; `pose2d` `(people, frames, joints, 2)` pixels; `origins` `(people,)` the x
    at which each root stands; `bones` the (parent, child) pairs of each side, `(bones, 2)`;
    `frames` the number of each frame in the sequence, `fps` how many make a second.
    """

    sequence: PoseSequence
    points: np.ndarray
    pose2d: np.ndarray
    origins: np.ndarray
    names: tuple[str, ...]
    bones: dict[str, np.ndarray]
    frames: np.ndarray
    fps: float

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits of all points, `(3,)` each, with a margin."""
        low, high = (pick(self.points, axis=(0, 1, 2)) for pick in (np.nanmin, np.nanmax))
        return low - 0.15, high + 0.15

    def time_of(self, row: int) -> str:
        frame = self.sequence.first_frame + int(self.frames[row])
        return f"frame {frame}, {frame / self.sequence.fps:.2f} s"

    @property
    def captions(self) -> list[str]:
        """What the reader has to know: units, assumptions, what is left out."""
        skeleton, (width, height) = self.sequence.skeleton, self.sequence.image_size
        shown, present = len(self.names), len(self.sequence.people)
        several = "; people stand side by side in their order in the image" if shown > 1 else ""
        captions = [
            f"3D: {skeleton.num_joints} joints ({skeleton.name}), metres relative to "
            f"{skeleton.joint_names[skeleton.root]}, in the camera's frame; grid {_GRID:g} m. "
            f"2D: pixels of an image of {width:g} × {height:g}.",
            "Assumed: an upright camera without lens distortion, its axis through the centre of "
            "the image, its field of view as in training. "
            f"Places in the room are not recovered{several}.",
        ]
        if shown < present:
            captions.append(f"Shown: {shown} of {present} people, those seen in most frames.")
        return captions


def _every_nth(sequence: PoseSequence, suffix: str) -> tuple[np.ndarray, int]:
    """The frames that a file of some format shows, among them the first with a pose; and n."""
    count = sequence.pose3d.shape[1]
    most, fastest = _MAX_FRAMES[suffix], _MAX_FPS[suffix]
    stride = max(math.ceil(sequence.fps / fastest), math.ceil(count / most))
    first = int(np.flatnonzero(_is_seen(sequence.pose3d).any(axis=0))[0])
    return np.arange(first % stride, count, stride), stride


def _stage(sequence: PoseSequence, frames: np.ndarray, stride: int = 1) -> _Scene:
    """Chooses people, and places them side by side in their order in the image."""
    pose2d = sequence.pose2d[:, frames].astype(np.float64)
    counts = _is_seen(sequence.pose3d[:, frames]).sum(axis=1)
    most_seen = np.argsort(-counts, kind="stable")[:_MAX_PEOPLE]
    people = [int(person) for person in most_seen if counts[person]]
    people.sort(key=lambda person: _median_x(pose2d[person]))

    points = sequence.pose3d[people][:, frames].astype(np.float64)[..., [0, 2, 1]] * (1, 1, -1)
    left, right = np.nanmin(points[..., 0], axis=(1, 2)), np.nanmax(points[..., 0], axis=(1, 2))
    origins = np.concatenate([[0.0], np.cumsum(right[:-1] - left[1:] + _GAP)])
    return _Scene(
        sequence=sequence,
        points=points + origins[:, None, None, None] * (1, 0, 0),
        pose2d=pose2d[people],
        origins=origins,
        names=tuple(_short(sequence.people[person]) for person in people),
        bones=plots.bones_by_side(sequence.skeleton),
        frames=frames,
        fps=sequence.fps / stride,
    )


def _is_seen(poses: np.ndarray) -> np.ndarray:
    """Where a pose has a joint to be drawn, `(people, frames)`."""
    return np.isfinite(poses).all(axis=-1).any(axis=-1)


def _median_x(pose2d: np.ndarray) -> float:
    x = pose2d[..., 0][np.isfinite(pose2d[..., 0])]
    return float(np.median(x)) if len(x) else math.inf


def _short(name: int | str) -> str:
    return plots.shortened(f"person {name}" if isinstance(name, int) else name, _MAX_NAME)


def _checked(sequence: PoseSequence, path: str | os.PathLike, suffixes: tuple[str, ...]) -> Path:
    path = plots.checked_path(path, suffixes)
    check_instance("sequence", sequence, PoseSequence, "such as `lift_tracks` gives")
    if not _is_seen(sequence.pose3d).any():
        raise InputError(
            "`sequence` must hold at least one 3D pose. "
            f"Received: sequence.pose3d.shape={sequence.pose3d.shape}, all of it missing"
        )
    peak = float(np.nanmax(np.abs(sequence.pose3d)))
    if peak > _LARGEST_METRES:
        raise InputError(
            f"`sequence` must hold pose3d in metres, at most {_LARGEST_METRES:g}. "
            f"Received: sequence.pose3d with values up to {peak:.4g}"
        )
    return path


# --- drawing with matplotlib --------------------------------------------------------------------


class _Panel:
    """The skeletons of all people in one pair of axes; `show` moves them to a frame."""

    def __init__(self, axes: Any, poses: np.ndarray, scene: _Scene):
        nothing: list[list] = [[]] * poses.shape[-1]
        self.poses, self.pairs = poses, list(scene.bones.values())
        styles = [{"color": plots.SIDE_COLOURS[side], **_BONES} for side in scene.bones]
        self.lines = [axes.plot(*nothing, **style)[0] for style in (*styles, _JOINTS)]

    def show(self, row: int) -> None:
        poses = self.poses[:, row]
        paths = [plots.bone_path(poses, pairs) for pairs in self.pairs]
        paths.append(poses.reshape(-1, poses.shape[-1]))
        for line, path in zip(self.lines, paths, strict=True):
            (line.set_data_3d if path.shape[1] == 3 else line.set_data)(*path.T)


def _input_panel(axes: Any, scene: _Scene) -> _Panel:
    joints = scene.pose2d.reshape(-1, 2)
    joints = joints[np.isfinite(joints).all(axis=1)]
    if len(joints):
        low, high = plots.equal_limits(joints)
        axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))  # y points down
    axes.set_aspect("equal")
    axes.set_ylabel("2D input, px", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    return _Panel(axes, scene.pose2d, scene)


def _scene_panel(axes: Any, scene: _Scene) -> _Panel:
    from matplotlib.ticker import MultipleLocator

    low, high = scene.limits
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(high - low, zoom=1.25 if len(scene.names) < 3 else 1.1)  # a row is wide
    axes.view_init(elev=_ELEVATION, azim=_AZIMUTH)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MultipleLocator(_GRID))
        axis.set_ticklabels([])
        axis.set_pane_color((0.96, 0.96, 0.96))
    for name, x in zip(scene.names, scene.origins, strict=True):
        if len(scene.names) > 1:
            axes.text(x, 0, low[2], name, fontsize=8, ha="center", va="top", parse_math=False)
    return _Panel(axes, scene.points, scene)


def _add_captions(figure: Any, scene: _Scene) -> None:
    """The sides' colours, and below them the captions, as wide as the figure."""
    lines = textwrap.wrap(" ".join(scene.captions), width=int(figure.get_figwidth() * 18))
    figure.text(0.01, 0.01, "\n".join(lines), fontsize=6.5, color="#555555", va="bottom")
    height = 0.12 * len(lines) + 0.02  # inches
    plots.add_side_legend(figure, bottom=height / figure.get_figheight())


def _animate(scene: _Scene, rows: Iterable[int]) -> Iterator[np.ndarray]:
    """The pictures of some frames, `(height, width, 3)` bytes each.

    What stands still is drawn once: drawing 3D axes takes longer than all skeletons.
    """
    figure = plots.new_figure(*_SIZE, dpi=_DPI)
    grid = figure.add_gridspec(
        1, 2, left=0.075, right=0.99, top=0.93, bottom=0.16, width_ratios=(1, 1.5), wspace=0.03
    )
    panels = (
        _input_panel(figure.add_subplot(grid[0]), scene),
        _scene_panel(figure.add_subplot(grid[1], projection="3d"), scene),
    )
    clock = figure.text(0.5, 0.95, "", ha="center", fontsize=9)
    moving = [clock, *(line for panel in panels for line in panel.lines)]
    for artist in moving:
        artist.set_animated(True)
    _add_captions(figure, scene)
    canvas = figure.canvas
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    for row in rows:
        clock.set_text(scene.time_of(row))
        for panel in panels:
            panel.show(row)
        canvas.restore_region(still)
        for artist in moving:
            figure.draw_artist(artist)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


# --- files --------------------------------------------------------------------------------------


def _write_gif(path: Path, scene: _Scene) -> None:
    from PIL import Image

    count = len(scene.frames)
    # One palette for all: with one each, the still parts would flicker.
    sample = np.concatenate(list(_animate(scene, range(0, count, math.ceil(count / 8)))))
    palette = Image.fromarray(sample).quantize(_GIF_COLOURS, dither=Image.Dither.NONE)
    first, *others = (
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in _animate(scene, range(count))
    )
    # GIF counts in hundredths of a second: rounding the times, not the durations, keeps the speed.
    times = np.round(np.arange(count + 1) * 100 / scene.fps).astype(int)
    durations = (np.diff(times).clip(1, 65535) * 10).tolist()
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def _find_ffmpeg() -> str:
    """The ffmpeg of the system, or else the one that the extra `video` brings."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ImportError('MP4 needs ffmpeg: pip install "keras_wsgcn[video]"') from error


def _write_mp4(path: Path, scene: _Scene, ffmpeg: str) -> None:
    """Pipes the pictures through ffmpeg, which chooses its best encoder (H.264, where it can)."""
    size = "x".join(str(round(side * _DPI)) for side in _SIZE)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{scene.fps:.6f}"]
    target = ["-an", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", str(path)]
    command = [ffmpeg, "-loglevel", "error", "-y", *source, "-i", "-", *target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with contextlib.suppress(BrokenPipeError):  # then ffmpeg says below what is wrong
            for picture in _animate(scene, range(len(scene.frames))):
                process.stdin.write(picture.tobytes())  # type: ignore[union-attr]
        message = process.communicate()[1].decode(errors="replace").strip()
    if process.returncode:
        raise OSError(f"ffmpeg could not write {path.suffix} ({process.returncode}): {message}")


def _page_data(scene: _Scene) -> dict[str, Any]:
    """What the script of the page reads."""
    low, high = scene.limits
    return {
        "mm": _packed((scene.points - scene.origins[:, None, None, None] * (1, 0, 0)) * 1000),
        "pixels": _packed(scene.pose2d),
        "missing": _MISSING,
        "origins": scene.origins.round(3).tolist(),
        "names": [name.translate(_NO_TAGS) for name in scene.names],
        "joints": scene.sequence.skeleton.joint_names,
        "bones": {side: pairs.tolist() for side, pairs in scene.bones.items()},
        "colours": plots.SIDE_COLOURS,
        "times": [scene.time_of(row) for row in range(len(scene.frames))],
        "fps": scene.fps,
        "low": low.round(3).tolist(),
        "high": high.round(3).tolist(),
        "grid": _GRID,
    }


def _packed(values: np.ndarray) -> str:
    """Numbers as 16-bit integers in base64: a tenth of what they take as text."""
    rounded = values.round().clip(-32767, 32767)  # wilder pixels are far outside the image
    integers = np.where(np.isfinite(values).all(axis=-1, keepdims=True), rounded, _MISSING)
    return base64.b64encode(integers.astype("<i2").tobytes()).decode("ascii")
