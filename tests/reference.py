"""The oracle: Eqs. 2 to 11 of the paper, edge by edge in float64, independent of the library.

It names the eight schemes itself, on purpose: what it is compared with derives them from a table.
"""

import numpy as np


def neighbours(num_joints, bones):
    """For each joint the set of its neighbours and itself."""
    near = [{joint} for joint in range(num_joints)]
    for a, b in bones:
        near[a].add(b)
        near[b].add(a)
    return near


def fixed_affinity(near):
    """Eq. 2: the entries of D~^-1/2 (A + I) D~^-1/2 as a dict by (target, source)."""
    degree = [len(n) for n in near]
    return {(i, j): 1.0 / np.sqrt(degree[i] * degree[j]) for i in range(len(near)) for j in near[i]}


def learned_affinity(near, logits):
    """A softmax over each neighbourhood; logits by (target, source)."""
    affinity = {}
    for i in range(len(near)):
        total = sum(np.exp(logits[i, j]) for j in near[i])
        affinity.update({(i, j): np.exp(logits[i, j]) / total for j in near[i]})
    return affinity


def depths(near, centre):
    """Path lengths from the centre, by Bellman-Ford."""
    depth = [0 if joint == centre else 10**9 for joint in range(len(near))]
    for _ in near:
        for i in range(len(near)):
            for j in near[i]:
                depth[i] = min(depth[i], depth[j] + 1)
    return depth


def kernel_index(scheme, i, j, depth, edge_number):
    """Which kernel Eqs. 3 to 11 apply to source j at target i, as an index into the stack."""
    part = int(i != j)
    if scheme == "full_sharing":  # Eq. 3: W
        return (0,)
    if scheme == "full_sharing_decoupled":  # Eq. 9: W for the joint itself, T for the others
        return (part,)
    if scheme == "pre_agg":  # Eq. 5: W_j
        return (0, j)
    if scheme == "pre_agg_decoupled":  # Eq. 10: W_i, T_j
        return (part, j)
    if scheme == "post_agg":  # Eq. 6: W_i
        return (0, i)
    if scheme == "post_agg_decoupled":  # Eq. 11: W_i, T_i
        return (part, i)
    if scheme == "conv_style":  # Eq. 8: W_d(i, j)
        if depth[i] == depth[j]:
            return (0,)
        return (1,) if depth[j] < depth[i] else (2,)
    if scheme == "no_sharing":  # Eq. 7: W_ij
        return (0, edge_number[i, j])
    raise AssertionError(scheme)


SCHEMES = (
    "full_sharing", "full_sharing_decoupled", "pre_agg", "pre_agg_decoupled", "post_agg",
    "post_agg_decoupled", "conv_style", "no_sharing",
)  # fmt: skip
# Method: kernels a layer holds on the 16 joints.
KERNELS_16 = dict(zip(SCHEMES, (1, 2, 16, 32, 16, 32, 3, 46), strict=True))


def graph_conv(scheme, x, kernel, bias, near, centre, affinity):
    """Forward: x (batch, joints, in) to (batch, joints, out), one edge after the other."""
    depth = depths(near, centre)
    edges = [(i, j) for i in range(len(near)) for j in sorted(near[i])]
    number = {edge: n for n, edge in enumerate(edges)}
    y = np.zeros((*x.shape[:2], kernel.shape[-1])) + bias
    for i, j in edges:
        w = kernel[kernel_index(scheme, i, j, depth, number)]
        y[:, i] += affinity[i, j] * x[:, j] @ w
    return y


def lifter(scheme, weights, x, near, centre):
    """A whole model: an input layer, blocks of two layers with a residual connection, an output.

    `weights` are by name of the Keras layer, in Keras's order; `x` is (batch, joints, 2).
    """
    affinity = fixed_affinity(near)

    def conv(x, name):
        kernel, bias = weights[f"{name}_conv"]
        return graph_conv(scheme, x, kernel, bias, near, centre, affinity)

    def layer(x, name):
        scale, offset, mean, variance = weights[f"{name}_norm"]
        return np.maximum((conv(x, name) - mean) / np.sqrt(variance + 1e-5) * scale + offset, 0)

    x, block = layer(x, "input"), 1
    while f"block{block}_layer1_conv" in weights:
        x = x + layer(layer(x, f"block{block}_layer1"), f"block{block}_layer2")
        block += 1
    return conv(x, "output")


def graph_conv_gradients(scheme, x, kernel, near, centre, affinity, upstream, learned):
    """Gradients of sum(y * upstream) for x, kernel, bias and, if learned, the logits (by edge)."""
    depth = depths(near, centre)
    edges = [(i, j) for i in range(len(near)) for j in sorted(near[i])]
    number = {edge: n for n, edge in enumerate(edges)}
    by_x, by_kernel, by_affinity = np.zeros_like(x), np.zeros_like(kernel), {}
    for i, j in edges:
        k = kernel_index(scheme, i, j, depth, number)
        by_x[:, j] += affinity[i, j] * upstream[:, i] @ kernel[k].T
        by_kernel[k] += affinity[i, j] * x[:, j].T @ upstream[:, i]
        by_affinity[i, j] = np.sum((x[:, j] @ kernel[k]) * upstream[:, i])
    gradients = {"kernel": by_kernel, "bias": upstream.sum(axis=(0, 1))}
    if learned:
        gradients["affinity_logits"] = np.array(
            [
                affinity[i, j]
                * (by_affinity[i, j] - sum(affinity[i, m] * by_affinity[i, m] for m in near[i]))
                for i, j in edges
            ]
        )
    return by_x, gradients


def non_local(x, theta, phi, g, pair, output, scale, offset, groups, mean, variance, epsilon):
    """The concatenation form, pose by pose; each linear map is a pair (kernel, bias)."""
    y = np.empty_like(x)
    for b, pose in enumerate(x):
        t = [joint @ theta[0] + theta[1] for joint in pose]
        p = [joint @ phi[0] + phi[1] for joint in pose]
        v = [joint @ g[0] + g[1] for joint in pose]
        if groups:
            p = [np.max([p[j] for j in group], axis=0) for group in groups]
            v = [np.max([v[j] for j in group], axis=0) for group in groups]
        for i in range(len(pose)):
            total = np.zeros(len(v[0]))
            for j in range(len(p)):
                f = max(0.0, pair @ np.concatenate([t[i], p[j]])) / len(p)
                total += f * v[j]
            z = total @ output[0] + output[1]
            y[b, i] = pose[i] + scale * (z - mean) / np.sqrt(variance + epsilon) + offset
    return y
