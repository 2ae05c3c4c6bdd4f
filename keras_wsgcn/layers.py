"""The graph layers: `GraphConv` for every weight-sharing scheme, `GraphNonLocal`, and the turn.

Written as Keras core writes layers; the contraction itself lives in `ops.py`.
"""

import functools

import keras
from keras import ops

from keras_wsgcn import ops as graph_ops
from keras_wsgcn import per_kernel, schemes, skeletons
from keras_wsgcn.budget import AFFINITIES
from keras_wsgcn.errors import InputError, check_choice, check_integer


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class GraphConv(keras.layers.Layer):
    """Graph convolution over the joints of a skeleton, under any weight-sharing scheme.

    Computes, for each joint `i` with its neighbours and itself as `j`,

        y_i = activation(sum over j of a_ij * x_j @ kernel[k(i, j)] + bias)

    where the scheme says which kernel `k` an edge uses. Each part of it runs in the cheaper order:
    joints are mixed after the matrix products or before them, whichever needs fewer products.
    Gradients are written out: under JAX there is no forward mode (`jax.jvp`).

    Args:
        units: Integer, channels of the output.
        scheme: Name of a scheme (see `keras_wsgcn.SCHEMES`), or a `Scheme`.
        skeleton: Name of a skeleton, or a `Skeleton`.
        affinity: `"fixed"` takes `a = D^-1/2 (A + I) D^-1/2` from the skeleton (Eq. 2).
            `"learned"` holds a logit for each edge and self-loop, starting at 1, and takes their
            softmax over the neighbourhood of a target, before the neighbourhood is split.
        activation: Activation function to use. If you don't specify anything, no activation is
            applied.
        use_bias: Boolean, whether one bias per channel is added.
        layout: `"bjc"` for inputs `(batch, joints, channels)`, or, which is faster, `"jbc"` or
            `"jcb"`: a model turns once at its input and once at its output.
        kernel_initializer: Initializer for the kernels. Variance-scaling initializers take the
            fans of a single kernel, so that every scheme starts at the same scale; orthogonal ones
            make each kernel orthogonal.
        bias_initializer: Initializer for the bias.
        kernel_regularizer: Regularizer function applied to the kernels.
        bias_regularizer: Regularizer function applied to the bias.
        kernel_constraint: Constraint function applied to the kernels, which it is given as
            `(channels, units, parts, *lead)`: an axis of 0 is the input's, as in `Dense`.
        bias_constraint: Constraint function applied to the bias.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Raises:
        InputError: If an argument is out of range, or the input does not have the skeleton's
            joints.

    Input shape:
        `(batch, joints, channels)`, in the order of `layout`.

    Output shape:
        `(batch, joints, units)`, in the order of `layout`.

    Weights:
        `kernel` `(parts, *lead, channels, units)`; `bias` `(units,)`; with a learned affinity
        `affinity_logits` `(edges + joints,)`, in the order of `Skeleton.edges`.

    Example:

    >>> layer = keras_wsgcn.GraphConv(64, "post_agg_decoupled")
    >>> layer(np.zeros((8, 16, 2), "float32")).shape
    (8, 16, 64)

    Reference:

    - [Liu et al., 2020](https://arxiv.org/abs/2007.06178), Eqs. 2 to 11
    """

    def __init__(
        self,
        units,
        scheme,
        skeleton="h36m_16",
        affinity="fixed",
        activation=None,
        use_bias=True,
        layout="bjc",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = check_integer("units", units, least=1)
        self.scheme = schemes.get(scheme)
        self.skeleton = skeletons.get(skeleton)
        self.affinity = check_choice("affinity", affinity, AFFINITIES)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.layout = check_choice("layout", layout, graph_ops.LAYOUTS)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    def build(self, input_shape):
        channels, self.input_spec = _check_input(self, input_shape)
        self.contraction = self.scheme.contraction(self.skeleton, channels, self.units)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.scheme.kernel_lead(self.skeleton), channels, self.units),
            initializer=per_kernel.initializer(self.kernel_initializer),
            regularizer=self.kernel_regularizer,
            constraint=per_kernel.constraint(self.kernel_constraint),
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        if self.affinity == "learned":
            self.affinity_logits = self.add_weight(
                name="affinity_logits",
                shape=(len(self.skeleton.edges),),
                initializer="ones",
                autocast=False,  # the softmax wants full precision
            )
        else:
            matrices = graph_ops.mixing_matrices(self.contraction, self.skeleton.affinity)
            if keras.backend.backend() == "torch":
                # A compiled backend takes the arrays as constants; torch runs eagerly, and would
                # copy them to the device at every call. But where Keras builds by shapes alone, as
                # within a subclassed model, tensors have no values.
                tensors = [ops.convert_to_tensor(m, self.compute_dtype) for m in matrices]
                matrices = matrices if any(t.is_meta for t in tensors) else tensors
            self._mixing = matrices
        self.built = True

    def call(self, inputs):
        if self.affinity == "learned":
            mixing = graph_ops.learned_mixing_matrices(self.contraction, self.affinity_logits)
            mixing = [ops.cast(matrix, self.compute_dtype) for matrix in mixing]
        else:
            mixing = [ops.convert_to_tensor(m, self.compute_dtype) for m in self._mixing]
        inner = "jcb" if self.layout == "jcb" else "jbc"
        x = graph_ops.turn(inputs, self.layout, inner)
        kernel = ops.convert_to_tensor(self.kernel)
        x = graph_ops.graph_conv(x, kernel, mixing, self.contraction, inner)
        if self.bias is not None:
            x = x + graph_ops.along_channels(ops.convert_to_tensor(self.bias), inner)
        if self.activation is not None:  # it may be one over the channels, as softmax is
            x, inner = self.activation(graph_ops.turn(x, inner, "jbc")), "jbc"
        return graph_ops.turn(x, inner, self.layout)

    def compute_output_shape(self, input_shape):
        _check_input(self, input_shape)
        shape = list(input_shape)
        shape[self.layout.index("c")] = self.units
        return tuple(shape)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "units": self.units,
                "scheme": schemes.serialize(self.scheme),
                "skeleton": skeletons.serialize(self.skeleton),
                "affinity": self.affinity,
                "activation": keras.activations.serialize(self.activation),
                "use_bias": self.use_bias,
                "layout": self.layout,
                "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
                "bias_initializer": keras.initializers.serialize(self.bias_initializer),
                "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
                "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
                "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
                "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            }
        )
        return config


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation; of three axes by fewer passes."""

    def call(self, inputs, training=None, mask=None):
        layout = {1: "jcb", 2: "jbc", -1: "jbc"}.get(self.axis)
        usual = (
            len(inputs.shape) == 3
            # A step of TensorFlow's with the channels last takes 0.96 of the time by Keras's own.
            and (layout == "jcb" or keras.backend.backend() != "tensorflow")
            and self.variable_dtype == "float32"
            and self.center
            and self.scale
            and not (self.renorm or self.synchronized or mask is not None)
        )
        if not (usual and layout and training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = graph_ops.batch_norm(
            inputs,
            ops.convert_to_tensor(self.gamma),
            ops.convert_to_tensor(self.beta),
            self.epsilon,
            layout,
        )
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + new * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class GraphNonLocal(keras.layers.Layer):
    """Non-local block over the joints, in the concatenation form, with a residual connection.

    With `theta`, `phi` and `g` linear maps to half of the channels, `phi` and `g` max-pooled over
    the skeleton's `pooling_groups`, and `N` the number of pooled positions,

        f_ij = relu(w . [theta(x_i), phi(x_j)]) / N
        y_i  = x_i + batch_norm(W (sum over j of f_ij * g(x_j)))

    The scale of the normalisation starts at zero, so that a new block changes nothing.

    Args:
        skeleton: Name of a skeleton, or a `Skeleton`.
        layout: `"bjc"` for inputs `(batch, joints, channels)`, or `"jbc"`, or `"jcb"`.
        momentum: Momentum of the batch normalisation.
        epsilon: Added to the variance by the batch normalisation.
        kernel_initializer: Initializer for the kernels.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Raises:
        InputError: If the input does not have the skeleton's joints, or has a single channel.

    Input shape:
        `(batch, joints, channels)`, in the order of `layout`.

    Output shape:
        That of the input.

    Example:

    >>> layer = keras_wsgcn.GraphNonLocal()
    >>> layer(np.zeros((8, 16, 64), "float32")).shape
    (8, 16, 64)

    Reference:

    - [Wang et al., 2018](https://arxiv.org/abs/1711.07971)
    - [Liu et al., 2020](https://arxiv.org/abs/2007.06178), Tables 5 to 7
    """

    def __init__(
        self,
        skeleton="h36m_16",
        layout="bjc",
        momentum=0.9,
        epsilon=1e-5,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skeleton = skeletons.get(skeleton)
        self.layout = check_choice("layout", layout, graph_ops.LAYOUTS)
        self.momentum = momentum
        self.epsilon = epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        channels, self.input_spec = _check_input(self, input_shape)
        if channels < 2:
            raise InputError(
                "`inputs` must have at least 2 channels, of which the block takes half. "
                f"Received: inputs.shape={tuple(input_shape)}"
            )
        inner = channels // 2
        self.theta, self.phi, self.g = (self._linear(inner, n) for n in ("theta", "phi", "g"))
        self.output_map = self._linear(channels, "output_map")
        self.normalization = BatchNormalization(
            momentum=self.momentum,
            epsilon=self.epsilon,
            gamma_initializer="zeros",
            name="normalization",
            dtype=self.dtype_policy,
        )
        # One vector over [theta, phi], kept as its two halves.
        self.pair_kernel = self.add_weight(
            name="pair_kernel",
            shape=(2, inner),
            initializer=keras.initializers.GlorotUniform(input_axes=(0, 1), output_axes=()),
        )
        for linear in (self.theta, self.phi, self.g):
            linear.build((None, channels))
        self.output_map.build((None, inner))
        self.normalization.build((None, None, channels))
        for part in (self.theta, self.phi, self.g, self.output_map, self.normalization):
            part.trainable = self.trainable  # a frozen block comes out of a file as one
        self.built = True

    def call(self, inputs, training=None):
        x = graph_ops.turn(inputs, self.layout, "jbc")
        by_target, by_source = ops.unstack(ops.convert_to_tensor(self.pair_kernel), 2, axis=0)
        # theta is only ever summed with its half of the vector: one column does for its kernel.
        column = ops.matmul(self.theta.kernel, by_target[:, None])
        theta = ops.matmul(x, column)[..., 0] + ops.sum(self.theta.bias * by_target)
        kernel, bias = (
            ops.concatenate([getattr(self.phi, name), getattr(self.g, name)], axis=-1)
            for name in ("kernel", "bias")
        )
        phi, g = ops.split(self._pool(ops.matmul(x, kernel) + bias), 2, axis=-1)
        phi = ops.sum(phi * by_source, axis=-1)
        positions = len(self.skeleton.pooling_groups) or self.skeleton.num_joints
        weights = ops.relu(theta[:, None] + phi[None, :]) / positions
        # Under torch Keras multiplies matrices of float64 in float32.
        weights, g = (ops.cast(tensor, self.compute_dtype) for tensor in (weights, g))
        y = self.output_map(ops.einsum("ijb,jbc->ibc", weights, g))
        x = x + self.normalization(y, training=training)
        return graph_ops.turn(x, "jbc", self.layout)

    def compute_output_shape(self, input_shape):
        _check_input(self, input_shape)
        return tuple(input_shape)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "skeleton": skeletons.serialize(self.skeleton),
                "layout": self.layout,
                "momentum": self.momentum,
                "epsilon": self.epsilon,
                "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            }
        )
        return config

    def _linear(self, units: int, name: str) -> keras.layers.Layer:
        # One for each map, as Keras has it: an initializer that draws twice repeats itself.
        initializer = self.kernel_initializer
        if isinstance(initializer, keras.initializers.Initializer):  # it may be a function
            initializer = initializer.__class__.from_config(initializer.get_config())
        return _LinearMap(units, kernel_initializer=initializer, name=name, dtype=self.dtype_policy)

    def _pool(self, x):
        """Maximum over each pooling group: `(joints, batch, channels)` to `(groups, ...)`."""
        groups = self.skeleton.pooling_groups
        if not groups:
            return x
        # Stacked, not gathered: a gather's gradient is a scatter, which a GPU does in any order, or
        # in one order slowly (JAX, H100: 3.2 instead of 1.8 ms for a whole step).
        joints = ops.unstack(x, self.skeleton.num_joints, axis=0)
        size = max(len(group) for group in groups)
        # A short group repeats its first joint, which leaves its maximum as it is.
        members = [[(*group, *group[:1] * size)[k] for group in groups] for k in range(size)]
        return functools.reduce(
            ops.maximum, [ops.stack([joints[member] for member in row]) for row in members]
        )


class _LinearMap(keras.layers.Dense):
    """A linear map of a block, which reads its kernel itself."""

    def quantize(self, *args, **kwargs):
        raise NotImplementedError(f"{self.path} stays as it is: its block reads the kernel.")


@keras.saving.register_keras_serializable(package="keras_wsgcn")
class Turn(keras.layers.Layer):
    """Turns tensors from one order of their axes into another.

    Args:
        source: `"bjc"` for inputs `(batch, joints, channels)`, or `"jbc"`, or `"jcb"`.
        target: The order of the output.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Input shape:
        `(batch, joints, channels)`, in the order of `source`.

    Output shape:
        The same axes in the order of `target`.
    """

    def __init__(self, source, target, **kwargs):
        super().__init__(**kwargs)
        self.source = check_choice("source", source, graph_ops.LAYOUTS)
        self.target = check_choice("target", target, graph_ops.LAYOUTS)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def call(self, inputs):
        return graph_ops.turn(inputs, self.source, self.target)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[axis] for axis in graph_ops.turned(self.source, self.target))

    def get_config(self):
        return {**super().get_config(), "source": self.source, "target": self.target}


def _check_input(layer, input_shape) -> tuple[int, keras.layers.InputSpec]:
    """The channels of an input with the right joints, and what other inputs must be like."""
    shape, joints = tuple(input_shape), layer.skeleton.num_joints
    at_joints, at_channels = map(layer.layout.index, "jc")
    if len(shape) != 3 or shape[at_joints] != joints or not shape[at_channels]:
        wanted = graph_ops.LAYOUTS[layer.layout]
        raise InputError(
            f"`inputs` must have the shape {wanted} with the {joints} joints of skeleton "
            f"{layer.skeleton.name!r}. Received: inputs.shape={shape}"
        )
    axes = {at_joints: joints, at_channels: shape[at_channels]}
    return shape[at_channels], keras.layers.InputSpec(ndim=3, axes=axes)
