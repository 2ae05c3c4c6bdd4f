"""Models for other runtimes: SavedModel for TensorFlow Serving, ONNX, LiteRT and OpenVINO."""

from keras_wsgcn.exporting.exports import TOLERANCE_M, Export, ExportError, export
from keras_wsgcn.exporting.folding import inference_model
from keras_wsgcn.exporting.formats import FORMATS, SIGNATURES, open_exported

__all__ = [
    "FORMATS",
    "SIGNATURES",
    "TOLERANCE_M",
    "Export",
    "ExportError",
    "export",
    "inference_model",
    "open_exported",
]
