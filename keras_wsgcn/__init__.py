"""Weight sharing in graph networks for lifting 2D human poses to 3D, in Keras 3."""

from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.errors import InputError
from keras_wsgcn.layers import GraphConv, GraphNonLocal
from keras_wsgcn.models import build_model
from keras_wsgcn.saving import load_model, save_model
from keras_wsgcn.schemes import SCHEMES, Scheme
from keras_wsgcn.skeletons import Skeleton

__version__ = "0.1.0"

__all__ = [
    "SCHEMES",
    "GraphConv",
    "GraphNonLocal",
    "InputError",
    "Scheme",
    "Skeleton",
    "build_model",
    "count_flops",
    "count_params",
    "load_model",
    "save_model",
    "solve_channels",
]
