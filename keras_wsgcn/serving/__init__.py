"""TensorFlow Serving: its configuration, clients for it, and a stand-in to try them on."""

from keras_wsgcn.serving.client import ServingError, connect
from keras_wsgcn.serving.config import docker_command, served_models, write_config

__all__ = ["ServingError", "connect", "docker_command", "served_models", "write_config"]
