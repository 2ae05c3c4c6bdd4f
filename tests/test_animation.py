import base64
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("plotly", reason="the extra `plots` is not installed")

from PIL import Image

from keras_wsgcn import animation, plots, skeletons
from keras_wsgcn.animation import write_animation, write_page, write_picture
from keras_wsgcn.data.cmu import four_cameras
from keras_wsgcn.data.motions import generate_motions
from keras_wsgcn.data.poses import select_joints
from keras_wsgcn.errors import InputError
from keras_wsgcn.inference import PoseSequence

pytestmark = pytest.mark.plain

FRAMES = 12
UNSEEN = 6  # the frame in which nobody is seen
WRITERS = [
    (write_picture, "poses.png"),
    (write_animation, "poses.gif"),
    (write_page, "poses.html"),
]


def walkers(people=2, frames=FRAMES, skeleton="h36m_16"):
    """People who walk, seen by a camera and lifted without error; the last stands leftmost."""
    skeleton = skeletons.get(skeleton)
    archive = generate_motions(subjects=people, takes=1, seconds=frames / 30, actions=["Walking"])
    joints = select_joints(archive.skeleton, skeleton)
    points, pixels = [], []
    for number, motion in enumerate(archive.motions):
        camera = four_cameras(motion)[0]
        points.append(camera.world_to_camera(motion.positions[:, joints].astype(float)))
        pixels.append(camera.project(points[-1]) - (250 * number, 0))
    pose3d = np.stack(points)
    pose3d -= pose3d[:, :, [skeleton.root]]
    names = tuple(range(people))
    return PoseSequence(pose3d, np.stack(pixels), skeleton, (1000, 1000), 30.0, names)


def with_gaps(sequence):
    """The last person is missing for some frames, and everyone in one of them."""
    pose3d, pose2d = sequence.pose3d.copy(), sequence.pose2d.copy()
    for poses in (pose3d, pose2d):
        poses[-1, 3 : UNSEEN + 1] = np.nan
        poses[:, UNSEEN] = np.nan
    pose2d[0, 0, 3] = np.nan  # a joint of the input alone
    return replace(sequence, pose3d=pose3d, pose2d=pose2d, origin=None)


@pytest.fixture(scope="module")
def sequence():
    return replace(with_gaps(walkers()), people=("<b>Ann</b> & $B$", 7), first_frame=100)


def count(pixels, side):
    """How many pixels have the colour of a side, up to what a GIF's palette does to it."""
    colour = plots.SIDE_COLOURS[side]
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    distance = np.abs(np.asarray(pixels.convert("RGB")).astype(int) - rgb).max(axis=-1)
    return int((distance < 12).sum())


# --- the scene ----------------------------------------------------------------------------------


def test_people_stand_side_by_side_in_their_order_in_the_image(sequence):
    scene = animation._stage(sequence, np.arange(FRAMES))
    assert scene.names == ("person 7", "<b>Ann</b> & $B$")
    root = sequence.skeleton.root
    np.testing.assert_allclose(scene.points[:, 0, root, 0], scene.origins)
    right_of_first, left_of_second = np.nanmax(scene.points[0, ..., 0]), scene.points[1, ..., 0]
    assert np.nanmin(left_of_second) - right_of_first == pytest.approx(animation._GAP)
    upright = -sequence.pose3d[1, 0, :, 1]
    np.testing.assert_allclose(scene.points[0, 0, :, 2], upright)
    np.testing.assert_allclose(scene.points[0, 0, :, 1], sequence.pose3d[1, 0, :, 2])


def test_of_many_people_those_seen_most_are_shown():
    few, many = walkers(1), animation._MAX_PEOPLE + 2
    pose3d = np.repeat(few.pose3d, many, axis=0)
    pose3d[2, 1:] = np.nan
    pose3d[5] = np.nan
    pose2d = np.repeat(few.pose2d, many, axis=0)
    crowd = PoseSequence(pose3d, pose2d, few.skeleton, (1000, 1000), 30.0, tuple(range(many)))
    scene = animation._stage(crowd, np.arange(FRAMES))
    shown = {f"person {number}" for number in set(range(many)) - {2, 5}}
    assert set(scene.names) == shown
    assert scene.captions[-1] == "Shown: 6 of 8 people, those seen in most frames."


def test_long_and_fast_sequences_are_thinned_and_keep_their_speed(monkeypatch):
    monkeypatch.setitem(animation._MAX_FRAMES, ".gif", 5)
    walk = walkers(1)
    pose3d = walk.pose3d.copy()
    pose3d[:, :4] = np.nan
    frames, stride = animation._every_nth(replace(walk, pose3d=pose3d), ".gif")
    assert (stride, frames.tolist()) == (3, [1, 4, 7, 10])  # frame 4 is the first with a pose
    assert animation._stage(walk, frames, stride).fps == 10
    assert animation._every_nth(replace(walk, fps=120.0), ".mp4")[1] == 2


# --- pictures -----------------------------------------------------------------------------------


def test_a_picture_shows_up_to_four_frames_and_all_sides(tmp_path, sequence):
    write_picture(sequence, tmp_path / "four.png")
    four = Image.open(tmp_path / "four.png")
    assert four.format == "PNG"
    assert all(count(four, side) > 500 for side in plots.SIDE_COLOURS)
    pose3d = np.full_like(sequence.pose3d, np.nan)
    pose3d[0, 5] = sequence.pose3d[0, 5]
    write_picture(replace(sequence, pose3d=pose3d), tmp_path / "new" / "one.PNG")
    one = Image.open(tmp_path / "new" / "one.PNG")
    assert one.width < four.width / 2
    pixels = np.asarray(four.convert("L"))
    margins = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (margins == 255).all(), "something is cut off at the edge"


def test_an_animated_gif_plays_all_frames_at_the_speed_of_the_sequence(tmp_path, sequence):
    write_animation(sequence, tmp_path / "poses.gif")
    gif = Image.open(tmp_path / "poses.gif")
    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", FRAMES, 0)
    durations, colours = [], []
    for frame in range(FRAMES):
        gif.seek(frame)
        durations.append(gif.info["duration"])
        colours.append(count(gif, "left"))
    assert set(durations) == {30, 40}
    assert sum(durations) == FRAMES * 1000 / 30
    assert colours[UNSEEN] < colours[UNSEEN - 1] < colours[0]


def ffmpeg_or_skip():
    try:
        return animation._find_ffmpeg()
    except ImportError as missing:
        pytest.skip(str(missing))


def test_an_mp4_has_all_frames(tmp_path, sequence):
    ffmpeg = ffmpeg_or_skip()
    write_animation(sequence, tmp_path / "poses.mp4")
    command = [ffmpeg, "-i", str(tmp_path / "poses.mp4"), "-f", "null", "-"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.search(r"Video: .*yuv420p.*800x460.*30 fps", report)
    assert re.findall(r"frame=\s*(\d+)", report)[-1] == str(FRAMES)


def test_a_failing_ffmpeg_is_reported_and_leaves_no_file(tmp_path, sequence, monkeypatch):
    monkeypatch.setattr(animation, "_find_ffmpeg", lambda: shutil.which("false"))
    with pytest.raises(OSError, match="ffmpeg could not write"):
        write_animation(sequence, tmp_path / "poses.mp4")
    assert not list(tmp_path.iterdir())


def test_a_sequence_without_input_or_with_another_skeleton_is_drawn(tmp_path):
    walk = walkers(1, skeleton="h36m_17", frames=3)
    walk = replace(walk, pose2d=walk.pose2d * np.nan)
    for write, name in WRITERS:
        write(walk, tmp_path / name)
    assert len(list(tmp_path.iterdir())) == len(WRITERS)


# --- the page -----------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def page_data(text):
    script = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(script[1])


def test_a_page_holds_every_person_in_millimetres(tmp_path, sequence):
    write_page(sequence, tmp_path / "poses.html")
    data = page_data((tmp_path / "poses.html").read_text())
    assert data["names"] == ["person 7", "‹b›Ann‹/b› & $B$"]
    shape = (2, FRAMES, 16, 3)
    mm = np.frombuffer(base64.b64decode(data["mm"]), "<i2").reshape(shape)
    expected = sequence.pose3d[[1, 0]][..., [0, 2, 1]] * (1000, 1000, -1000)
    seen = np.isfinite(expected)
    np.testing.assert_allclose(mm[seen], expected[seen], atol=0.51)
    assert (mm[~seen] == data["missing"]).all()
    pixels = np.frombuffer(base64.b64decode(data["pixels"]), "<i2").reshape(2, FRAMES, 16, 2)
    assert (pixels[1, 0, 3] == data["missing"]).all()
    assert data["times"][1] == "frame 101, 3.37 s"


def test_a_page_refers_to_nothing_outside(tmp_path, sequence):
    write_page(replace(sequence, people=("</script><img src=x>", "b")), tmp_path / "poses.html")
    text = (tmp_path / "poses.html").read_text()
    tags = Tags(text).found
    assert {tag for tag, _ in tags} <= {
        "html", "head", "meta", "title", "style", "body", "main", "canvas", "div", "button",
        "input", "span", "label", "select", "option", "footer", "br", "script",
    }  # fmt: skip
    assert not any({"src", "href"} & set(attributes) for _, attributes in tags)
    policy = next(a["content"] for _, a in tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    from plotly.offline import get_plotlyjs

    assert "http://" not in text.replace(get_plotlyjs(), "")
    assert "https://" not in text.replace(get_plotlyjs(), "")
    assert len(text) < 6e6


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    assert selenium
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "enable-unsafe-swiftshader",  # WebGL without a graphics card
        "window-size=640,480", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


def test_the_page_shows_the_poses_plays_and_turns_in_a_browser(tmp_path, sequence, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    write_page(sequence, tmp_path / "poses.html")
    browser.get((tmp_path / "poses.html").as_uri())
    find, wait = (lambda name: browser.find_element("id", name)), WebDriverWait(browser, 20, 0.1)
    scene, slider, button = find("scene"), find("frame"), find("play")
    wait.until(lambda _: find("time").text == "frame 100, 3.33 s")

    def coloured():
        return count(Image.open(io.BytesIO(scene.screenshot_as_png)), "left")

    def go_to(frame):
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
            slider,
            frame,
        )

    def eye():
        return browser.execute_script("return arguments[0].layout.scene.camera.eye", scene)

    # Both, one, nobody: what is counted beside the legend are the skeletons.
    wait.until(lambda _: coloured() > 300)
    both = coloured()
    go_to(UNSEEN - 1)
    wait.until(lambda _: coloured() < both)
    one = coloured()
    go_to(UNSEEN)
    wait.until(lambda _: coloured() < one)

    go_to(0)
    button.click()
    wait.until(lambda _: int(slider.get_property("value")) > 0)
    assert button.text == "Pause"
    before = eye()
    turn = ActionChains(browser, duration=50).move_to_element(scene).click_and_hold()
    turn.move_by_offset(60, 0).move_by_offset(30, 20).release().perform()
    wait.until(lambda _: eye() != before)
    frame = slider.get_property("value")
    wait.until(lambda _: slider.get_property("value") != frame)  # it plays on, and stays turned
    assert abs(eye()["x"] - before["x"]) > 0.1
    button.click()
    assert button.text == "Play"

    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    loaded = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert browser.execute_script(loaded) == []


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_bad_input_is_refused_before_a_file_is_written(tmp_path, sequence, write, name):
    cases = [
        (sequence, tmp_path / "poses.txt", "`path` must name a file that ends in"),
        (sequence, None, "`path` must name a file"),
        (sequence.pose3d, tmp_path / name, "`sequence` must be a PoseSequence"),
        (replace(sequence, pose3d=sequence.pose3d * np.nan), tmp_path / name, "at least one 3D"),
        (replace(sequence, pose3d=sequence.pose3d * 1000), tmp_path / name, "in metres"),
    ]
    for case, path, message in cases:
        with pytest.raises(InputError, match=rf"{message}.* Received: "):
            write(case, path)
    assert not list(tmp_path.iterdir())


def test_missing_libraries_are_named(tmp_path, sequence, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    cases = [
        ("matplotlib.figure", write_picture, "poses.png", "plots"),
        ("matplotlib.figure", write_animation, "poses.gif", "plots"),
        ("plotly.offline", write_page, "poses.html", "plots"),
        ("imageio_ffmpeg", write_animation, "poses.mp4", "video"),
    ]
    for module, write, name, extra in cases:
        with monkeypatch.context() as context:
            context.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=rf'pip install "keras_wsgcn\[{extra}\]"'):
                write(sequence, tmp_path / name)
    assert not list(tmp_path.iterdir())
