"""Weight sharing in graph networks for lifting 2D human poses to 3D, in Keras 3."""

from keras_wsgcn.budget import count_flops, count_params, solve_channels
from keras_wsgcn.data.poses import PoseDataset, Splits
from keras_wsgcn.data.sources import load_splits
from keras_wsgcn.errors import InputError
from keras_wsgcn.evaluation import evaluate, headline, table_by
from keras_wsgcn.exporting import Export, ExportError, export, open_exported
from keras_wsgcn.layers import GraphConv, GraphNonLocal
from keras_wsgcn.metrics import MPJPE, PMPJPE, auc, mpjpe, n_mpjpe, p_mpjpe, pck
from keras_wsgcn.models import build_model
from keras_wsgcn.pretrained import load_pretrained
from keras_wsgcn.recipes import RECIPES, TrainConfig
from keras_wsgcn.saving import load_model, save_model
from keras_wsgcn.schemes import SCHEMES, Scheme
from keras_wsgcn.skeletons import Skeleton
from keras_wsgcn.training import DivergenceError, train, train_together

__version__ = "0.1.0"

__all__ = [
    "MPJPE",
    "PMPJPE",
    "RECIPES",
    "SCHEMES",
    "DivergenceError",
    "Export",
    "ExportError",
    "GraphConv",
    "GraphNonLocal",
    "InputError",
    "PoseDataset",
    "Scheme",
    "Skeleton",
    "Splits",
    "TrainConfig",
    "auc",
    "build_model",
    "count_flops",
    "count_params",
    "evaluate",
    "export",
    "headline",
    "load_model",
    "load_pretrained",
    "load_splits",
    "mpjpe",
    "n_mpjpe",
    "open_exported",
    "p_mpjpe",
    "pck",
    "save_model",
    "solve_channels",
    "table_by",
    "train",
    "train_together",
]
