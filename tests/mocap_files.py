"""Motion capture files made by hand, for the tests of their readers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_wsgcn.data.archive import Motion
from keras_wsgcn.data.mocap import CGSPEED, BvhLayout, read_asf_amc, read_bvh
from keras_wsgcn.skeletons import h36m_17

J = {name: joint for joint, name in enumerate(h36m_17.joint_names)}


# name: parent, vector in file units, frame in which the bone turns, channels
BONES = {
    "lhipjoint": ("root", (0.1, 0, 0), "0 0 0 XYZ", ""),
    "lfemur": ("lhipjoint", (0, -0.4, 0), "0 0 0 XYZ", "rx ry rz"),
    "ltibia": ("lfemur", (0, -0.3, 0), "0 0 0 XYZ", "rx"),
    "rhipjoint": ("root", (-0.1, 0, 0), "0 0 0 XYZ", ""),
    "rfemur": ("rhipjoint", (0, -0.4, 0), "0 0 0 XYZ", ""),
    "rtibia": ("rfemur", (0, -0.3, 0), "0 0 0 XYZ", ""),
    "lowerback": ("root", (0, 0.2, 0), "0 0 0 XYZ", ""),
    "upperback": ("lowerback", (0, 0.1, 0), "0 0 0 XYZ", ""),
    "thorax": ("upperback", (0, 0.1, 0.02), "0 0 0 XYZ", ""),
    "lowerneck": ("thorax", (0, 0.1, 0), "0 0 0 XYZ", ""),
    "upperneck": ("lowerneck", (0, 0.05, 0), "0 0 0 XYZ", ""),
    "head": ("upperneck", (0, 0.1, 0), "0 0 0 XYZ", ""),
    "lclavicle": ("thorax", (0.2, 0, 0), "0 0 0 XYZ", ""),
    "lhumerus": ("lclavicle", (0.3, 0, 0), "0 0 90 XYZ", "rx"),
    "lradius": ("lhumerus", (0.25, 0, 0), "0 0 0 XYZ", ""),
    "lwrist": ("lradius", (0.125, 0, 0), "0 0 0 XYZ", ""),
    "rclavicle": ("thorax", (-0.2, 0, 0), "0 0 0 XYZ", ""),
    "rhumerus": ("rclavicle", (-0.3, 0, 0), "0 0 0 XYZ", ""),
    "rradius": ("rhumerus", (-0.25, 0, 0), "0 0 0 XYZ", ""),
    "rwrist": ("rradius", (-0.125, 0, 0), "0 0 0 XYZ", ""),
}
REST = "root 0 0 0 0 0 0\nlfemur 0 0 0\nltibia 0\nlhumerus 0\n"


def asf_text(length: float = 0.0254) -> str:  # with this length a unit is a metre
    lines = ["# made by hand", ":version 1.10", ":units", "  mass 1.0", f"  length {length}"]
    lines += ["  angle deg", ":root", "  order TX TY TZ RX RY RZ", "  axis XYZ"]
    lines += ["  position 0 0 0", "  orientation 0 0 0", ":bonedata"]
    for number, (name, (_, vector, axis, dof)) in enumerate(BONES.items(), 1):
        size = np.linalg.norm(vector)
        unit = " ".join(f"{x / size:.12f}" for x in vector)
        lines += [" begin", f"  id {number}", f"  name {name}", f"  direction {unit}"]
        lines += [f"  length {size:.12f}", f"  axis {axis}"]
        lines += [f"  dof {dof}", "  limits (-10 10)", "         (-20 20)"] if dof else []
        lines += [" end"]
    lines += [":hierarchy", " begin"]
    # Children stand before their parents, which the format allows.
    lines += [f"  {parent} {name}" for name, (parent, *_) in reversed(BONES.items())]
    return "\n".join([*lines, " end", ""])


def amc_text(*frames: str) -> str:
    numbered = "".join(f"{n}\n{frame}" for n, frame in enumerate(frames, 1))
    return f"# made by hand\n:FULLY-SPECIFIED\n:DEGREES\n{numbered}"


def acclaim(folder: Path, *frames: str, asf: str | None = None, take: str = "07_01") -> Motion:
    (folder / "07.asf").write_text(asf_text() if asf is None else asf)
    (folder / f"{take}.amc").write_text(amc_text(*frames))
    return read_asf_amc(folder / "07.asf", folder / f"{take}.amc", fps=120)


def near(actual: np.ndarray, expected: object) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-6)


# --- BVH ----------------------------------------------------------------------------------------

ZYX = "Zrotation Yrotation Xrotation"
# name: parent, offset in file units; the ends are the end sites
JOINTS: Mapping[str, tuple[str, tuple[float, float, float]]] = {
    "Hips": ("", (0, 0, 0)),
    "LeftUpLeg": ("Hips", (1, -1, 0)),
    "LeftLeg": ("LeftUpLeg", (0, -7, 0)),
    "LeftFoot": ("LeftLeg", (0, -6, 0)),
    "RightUpLeg": ("Hips", (-1, -1, 0)),
    "RightLeg": ("RightUpLeg", (0, -7, 0)),
    "RightFoot": ("RightLeg", (0, -6, 0)),
    "Spine": ("Hips", (0, 2, 0)),
    "Spine1": ("Spine", (0, 2, 0.5)),
    "Neck": ("Spine1", (0, 0, 0)),
    "Head": ("Neck", (0, 3, 0)),
    "Head/end": ("Head", (0, 1, 0)),
    "LeftShoulder": ("Spine1", (0, 0, 0)),
    "LeftArm": ("LeftShoulder", (3, 1, 0)),
    "LeftForeArm": ("LeftArm", (5, 0, 0)),
    "LeftHand": ("LeftForeArm", (4, 0, 0)),
    "RightShoulder": ("Spine1", (0, 0, 0)),
    "RightArm": ("RightShoulder", (-3, 1, 0)),
    "RightForeArm": ("RightArm", (-5, 0, 0)),
    "RightHand": ("RightForeArm", (-4, 0, 0)),
}
PLAIN = BvhLayout(
    joints={**CGSPEED.joints, "l_wrist": "LeftHand", "r_wrist": "RightHand"}, metres_per_unit=0.05
)


def bvh_text(*frames: Mapping[str, tuple], order: str = ZYX, joints: Mapping = JOINTS) -> str:
    """A BVH file; a frame gives channels by joint, all others are 0."""
    lines = ["HIERARCHY"]

    def write(name: str) -> None:
        parent, offset = joints[name]
        kind = "End" if name.endswith("/end") else "JOINT" if parent else "ROOT"
        lines.append(f"{kind} {'Site' if kind == 'End' else name}")
        lines.extend(["{", "OFFSET " + " ".join(map(str, offset))])
        if kind == "ROOT":
            lines.append(f"CHANNELS 6 Xposition Yposition Zposition {order}")
        elif kind == "JOINT":
            lines.append(f"CHANNELS 3 {order}")
        for child, (above, _) in joints.items():
            if above == name:
                write(child)
        lines.append("}")

    write("Hips")
    lines += ["MOTION", f"Frames: {len(frames)}", "Frame Time: .0083333"]
    named = [line.split()[1] for line in lines if line.startswith(("ROOT", "JOINT"))]
    for frame in frames:
        values = [frame.get(n, (0,) * (6 if n == "Hips" else 3)) for n in named]
        lines.append(" ".join(str(v) for value in values for v in value))
    return "\n".join([*lines, ""])


def bvh(folder: Path, *frames: Mapping, layout=PLAIN, order=ZYX, joints=JOINTS, **kwargs) -> Motion:
    path = folder / "08_01.bvh"
    path.write_text(bvh_text(*frames, order=order, joints=joints))
    return read_bvh(path, layout=layout, fps=120, **kwargs)
