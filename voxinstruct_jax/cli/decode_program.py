"""The AR loop as `plan` compiles it: requests of the paper's default guidance, all of one length."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from voxinstruct_jax.decoding.autoregressive import decode_ar
from voxinstruct_jax.decoding.requests import ARRequest, Capacity, Limits, batch_requests
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.guidance import Guidance, needed_branches
from voxinstruct_jax.layers.dense import cast_kernels
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.llama import init_cache
from voxinstruct_jax.training.plan_decode import DecodeProgram
from voxinstruct_jax.vocabulary import build_prompt

__all__ = ["TEXT_SLOTS", "decode_program"]

TEXT_SLOTS = 256
FRAMES = 800
"""Room for frames, and as many semantic tokens: 10.7 s at 75 Hz."""


def decode_program(config: ARConfig, requests: int) -> DecodeProgram:
    """Returns the program that decodes a batch of requests, as shapes.

    Args:
        config: Of the model; kernels are kept in the type that it computes in, as a voice is loaded for serving.
        requests: At once; each runs as three rows, one a branch of guidance.
    """
    branches = needed_branches(Guidance())
    graph, state = nnx.split(nnx.eval_shape(functools.partial(_model, config)))
    capacity = Capacity(semantic=FRAMES, acoustic=FRAMES)
    batch = jax.eval_shape(functools.partial(_batch, config, branches, requests))

    def run(state: Any, batch: Any) -> Any:
        model = nnx.merge(graph, state)
        return decode_ar(model, batch, branches=branches, sampling=SamplingConfig(), capacity=capacity)

    rows, slots = requests * len(branches), TEXT_SLOTS + 2 + 2 * FRAMES + 2
    cache = jax.eval_shape(lambda: init_cache(config.backbone, rows, slots, dtype=config.dtype))
    plain = nnx.to_pure_dict(state)
    return DecodeProgram(
        run=run,
        arguments=(state, batch),
        requests=requests,
        slots=slots,
        weight_bytes=_bytes({name: plain[name] for name in ("backbone", "head")}),
        cache_bytes=_bytes(cache),
    )


def _model(config: ARConfig) -> ARModel:
    model = ARModel(config, rngs=nnx.Rngs(0))
    cast_kernels(model, config.dtype)
    return model


def _batch(config: ARConfig, branches: Any, requests: int) -> Any:
    limits = Limits(min_semantic=1, max_semantic=FRAMES, min_acoustic=1, max_acoustic=FRAMES, max_total=4 * FRAMES)
    none = np.zeros(0, np.int32)
    request = ARRequest(
        text_tokens=np.ones((TEXT_SLOTS, len(config.text_encoder.channel_sizes)), np.int32),
        prompt=build_prompt(config.vocabulary, None, none, np.zeros((config.vocabulary.num_codebooks, 0), np.int32)),
        guidance=Guidance(),
        limits=limits,
        seed=0,
    )
    return batch_requests([request] * requests, branches, text_width=TEXT_SLOTS)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
