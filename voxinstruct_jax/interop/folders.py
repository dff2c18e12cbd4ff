"""Our own weights folders: made from imported modules, and to safetensors and back."""

import dataclasses
import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from voxinstruct_jax.checkpoints.weights import load_weights, save_weights, share_weights
from voxinstruct_jax.checkpoints.weights import read_settings as read_weights_settings
from voxinstruct_jax.config import InputError, from_dict, to_dict
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.interop.tensors import read_settings, read_tensors, write_safetensors
from voxinstruct_jax.interop.voxinstruct import Release, ReleaseAR, ReleaseConfig, ReleaseNAR
from voxinstruct_jax.layers.parameter import FrozenParam
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.voice_folder import VoiceConfig, load_part

__all__ = [
    "RELEASE_SETTINGS",
    "from_safetensors",
    "kind_of",
    "open_part",
    "open_voxinstruct",
    "to_safetensors",
    "write_pair",
    "write_part",
    "write_voxinstruct",
]

WEIGHTS = "model.safetensors"
SETTINGS = "config.json"
RELEASE_SETTINGS = "release.json"
RELEASE_STEPS = 8
"""MaskGIT passes a codebook in the released program."""
RELEASE_TOKENS = 2048
"""Longest sequence that the release was trained on."""
TEXT_ENCODER = "text_encoder"
UNUSED = "unused.safetensors"
"""In a voice folder made from the release: tensors of its files that nothing reads, for the way back."""

PARTS = {
    "mt5": ("text.encoder", "TextEncoder"),
    "hubert": ("audio.hubert", "Hubert"),
    "encodec": ("audio.encodec", "Encodec"),
    "mimi": ("audio.mimi", "Mimi"),
    "vocos": ("audio.published_vocos", "CodeVocos"),
    "mel_vocos": ("audio.published_vocos", "MelVocos"),
    "mel_vae": ("audio.mel_vae", "MelVAE"),
    "mmdit": ("models.mmdit", "MMDiT"),
}
"""Home and class of each kind of part; its settings are the class of that name and `Config`."""


def write_part(folder: Path, kind: str, module: Any, *, source: str, dtype: str = "float32") -> None:
    """Writes a module as a weights folder that `voice.load_part` opens.

    Args:
        folder: Target; it appears whole or not at all.
        kind: What the folder holds: ar, nar, encodec ...
        module: With the settings that it was built from as `config`.
        source: Where the weights come from, for the card.
        dtype: How floating weights are stored: "float32" or "bfloat16".
    """
    weights = nnx.to_pure_dict(nnx.state(module))
    save_weights(folder, weights, _settings(kind, to_dict(module.config)), card=_card(kind, source), dtype=dtype)


def kind_of(module: Any) -> str:
    """Returns the kind of `PARTS` that a module is."""
    return next(kind for kind, (_, name) in PARTS.items() if name == type(module).__name__)


def write_pair(folder: Path, encodec: Any, vocos: Any, *, source: str, dtype: str = "float32") -> None:
    """Writes EnCodec and the Vocos that turns its codes into sound as one codec (kind `encodec_vocos`)."""
    weights = {name: nnx.to_pure_dict(nnx.state(part)) for name, part in (("encodec", encodec), ("vocos", vocos))}
    model = {"encodec": to_dict(encodec.config), "vocos": to_dict(vocos.config)}
    save_weights(folder, weights, _settings("encodec_vocos", model), card=_card("encodec_vocos", source), dtype=dtype)


def open_part(folder: Path) -> tuple[str, Any]:
    """Opens what `write_part` wrote; returns its kind and the module.

    Raises:
        InputError: The folder is missing or damaged, or holds another kind of model.
    """
    kind = str(read_weights_settings(folder).get("kind"))
    if kind not in PARTS:
        raise InputError(f"{folder}: holds {kind}, expected one of {', '.join(PARTS)}")
    home, name = PARTS[kind]
    module = importlib.import_module(f"voxinstruct_jax.{home}")
    part = load_part(folder, getattr(module, f"{name}Config"), getattr(module, name))
    return kind, nnx.merge(part.graph, part.state)


def write_voxinstruct(folder: Path, release: Release, rules: DecodingRules, *, dtype: str = "float32") -> None:
    """Writes both networks of the release into a voice folder: `ar/`, `nar/`, and what the way back needs.

    The frozen weights of mT5 are stored once, in `text_encoder/`, where both networks have the same.

    `release.json` holds the `ReleaseConfig`, `voice.json` how the voice is decoded: by these rules, otherwise as the
    released program.
    """
    networks = {"ar": release.ar.model, "nar": release.nar.model}
    shared = _write_shared_encoder(folder / TEXT_ENCODER, networks, dtype)
    for name, model in networks.items():
        state = nnx.state(model, nnx.Not(FrozenParam)) if shared else nnx.state(model)
        settings = {**_settings(name, to_dict(model.config)), **shared}
        card = _card(name, f"the VoxInstruct release, {name}")
        save_weights(folder / name, nnx.to_pure_dict(state), settings, card=card, dtype=dtype)
    if not shared:
        shutil.rmtree(folder / TEXT_ENCODER, ignore_errors=True)  # of an older voice in this place
    unused = {f"{name}/{key}": array for name, table in release.unused.items() for key, array in table.items()}
    write_safetensors(folder / UNUSED, unused)
    settings = {"release": to_dict(release.config), "rules": to_dict(rules)}
    (folder / RELEASE_SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
    voice = VoiceConfig(
        sampling=SamplingConfig.release(),
        num_steps=(RELEASE_STEPS,) * (release.nar.model.config.vocabulary.num_codebooks - 1),
        text_slots=release.config.text_slots,
        max_tokens=RELEASE_TOKENS,
        rules=rules,
    )
    (folder / "voice.json").write_text(json.dumps(to_dict(voice), indent=1) + "\n")


def open_voxinstruct(folder: Path) -> Release:
    """Opens what `write_voxinstruct` wrote.

    A voice that was trained here opens as well, if its text encoder is an mT5, as the release's.

    Raises:
        InputError: A part is missing or damaged, or its text has several channels.
    """
    shared: dict[Path, Any] = {}
    ar = load_part(folder / "ar", ARConfig, ARModel, shared)
    nar = load_part(folder / "nar", NARConfig, NARModel, shared)
    if len(ar.config.text_encoder.channel_sizes) > 1:
        raise InputError(f"{folder}: its text has several channels, which the release's files have no place for")
    settings = folder / RELEASE_SETTINGS
    if settings.is_file():
        config = from_dict(ReleaseConfig, json.loads(settings.read_text())["release"])
    else:
        config = ReleaseConfig(
            languages=ar.config.vocabulary.languages,
            num_semantic=ar.config.vocabulary.num_semantic,
            num_heads=ar.config.backbone.num_heads,
            lora_alpha=ar.config.text_encoder.lora_alpha,
        )
    unused: dict[str, dict[str, np.ndarray]] = {"ar": {}, "nar": {}}
    if (folder / UNUSED).is_file():
        for key, array in read_tensors(folder / UNUSED).items():
            name, _, rest = key.partition("/")
            unused[name][rest] = array
    slots = config.text_slots
    return Release(
        ReleaseAR(nnx.merge(ar.graph, ar.state), slots),
        ReleaseNAR(nnx.merge(nar.graph, nar.state), slots),
        config,
        unused,
    )


def to_safetensors(source: Path, out: Path) -> None:
    """Writes a weights folder as `model.safetensors`, keys parted by points, and `config.json`; all values are float32.

    Raises:
        InputError: The source is missing, damaged or no weights folder.
    """
    settings, arrays = load_weights(source)
    del settings["arrays"]
    out.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    tensors = {".".join(str(entry.key) for entry in path): np.asarray(array) for path, array in leaves}
    write_safetensors(out / WEIGHTS, tensors)
    (out / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def from_safetensors(source: Path, out: Path, *, dtype: str = "float32") -> None:
    """Undoes `to_safetensors`.

    Raises:
        InputError: The source is missing, damaged or not written by `to_safetensors`.
    """
    settings = read_settings(source)
    if "kind" not in settings or "format_version" not in settings:
        raise InputError(
            f"{source}: not written by `convert --to safetensors`; name what it is: convert mt5 {source} ..."
        )
    weights: dict[str | int, Any] = {}
    for key, array in read_tensors(source / WEIGHTS).items():
        *parents, last = (int(name) if name.isdigit() else name for name in key.split("."))
        place = weights
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = array
    card = f"# {settings['kind']}\n\nConverted from safetensors.\n"
    save_weights(out, weights, settings, card=card, dtype=dtype)


def _write_shared_encoder(folder: Path, networks: Mapping[str, ARModel | NARModel], dtype: str) -> dict[str, Any]:
    """Writes the frozen text encoder if it is the same in all networks; returns the setting that refers to it."""
    encoders = [model.text.encoder for model in networks.values()]
    first, *others = (nnx.to_flat_state(nnx.state(encoder, FrozenParam)) for encoder in encoders)
    plain = [dataclasses.replace(encoder.config, lora_rank=0) for encoder in encoders]
    same = plain[1:] == plain[:-1] and all(
        np.array_equal(one.get_value(), other.get_value())
        for rest in others
        for (_, one), (_, other) in zip(first, rest, strict=True)
    )
    if not len(first) or not same:
        return {}
    weights = nnx.to_pure_dict(nnx.state(encoders[0], FrozenParam))
    card = _card("mt5", "the VoxInstruct release, the frozen text encoder of both networks")
    save_weights(folder, weights, _settings("mt5", to_dict(plain[0])), card=card, dtype=dtype)
    return {"shared": share_weights(folder, ("text", "encoder"))}


def _settings(kind: str, model: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "model": model, "step": None}


def _card(kind: str, source: str) -> str:
    return f"# {kind}\n\nConverted from {source}. Its licence and terms of use are those of the source.\n"
