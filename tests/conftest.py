"""Strict mode for every test: no silent broadcasting, no warning unseen, one torch thread."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
import torch

jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)  # two test workers on two cores


@pytest.fixture
def x64():
    """JAX's 64-bit mode, for this test alone."""
    with jax.enable_x64(True):
        yield
