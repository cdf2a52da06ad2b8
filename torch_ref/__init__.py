"""torch_ref: the algorithm of jaxpg in plain PyTorch, file by file. Imports no jax."""

from torch_ref.algorithms import build
from torch_ref.config import Config, ConfigError
from torch_ref.learner import init, update
from torch_ref.noise import key, keys
from torch_ref.presets import preset
from torch_ref.training import train

__all__ = ["Config", "ConfigError", "build", "init", "key", "keys", "preset", "train", "update"]
