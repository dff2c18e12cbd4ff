"""Makes the golden arrays of the ports again, by the original programs.

Run: python tests/golden/make_golden.py {hubert,mt5,encodec,vocos} OUT.npz [--seed N]

Needs torch and transformers, for `vocos` also vocos and encodec; not this package. Without `--seed`, weights and inputs
are those of the stored file, so that its other arrays must come out again to rounding; with it, they are new.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import originals
import torch

FOLDER = Path(__file__).parent
SHORT = (1, 2, 319, 320, 321, 640, 960, 1000)


def main():
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", choices=PORTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, help="new weights and inputs instead of the stored ones")
    options = parser.parse_args()
    stored = {}
    if options.seed is None:
        with np.load(FOLDER / f"{options.port}_tiny.npz") as arrays:
            stored = dict(arrays)
    with torch.no_grad():
        arrays = PORTS[options.port](stored, np.random.default_rng(options.seed), options.seed or 0)
    np.savez(options.out, **{name: _to_numpy(array) for name, array in arrays.items()})
    return 0


def make_hubert(stored, random, seed):
    """HuBERT: every part, every layer, and the units of one of them."""
    sizes = _sizes(stored)
    model = _restore(originals.hubert(seed, **sizes), stored, "w/")
    wave = _input(stored, "wave_16k", lambda: random.standard_normal((2, 6000)))
    conv_features = model.feature_extractor(wave)
    projected = model.feature_projection(conv_features.transpose(1, 2))
    hidden = model(wave, output_hidden_states=True).hidden_states
    frames = hidden[2].flatten(0, 1).numpy()
    noise = 0.3 * frames.std() * random.standard_normal((50, frames.shape[1]))
    centroids = _input(stored, "kmeans_centroids", lambda: frames[random.integers(0, len(frames), 50)] + noise)
    return {
        **_state(model, "w/"),
        "wave_16k": wave,
        "conv_features": conv_features,
        "feature_projection": projected,
        "pos_conv": model.encoder.pos_conv_embed(projected),
        "pos_conv_folded_weight": model.encoder.pos_conv_embed.conv.weight,
        **{f"hidden_{layer}": values for layer, values in enumerate(hidden)},
        "kmeans_centroids": centroids,
        "kmeans_labels_hidden2": torch.cdist(hidden[2].double(), centroids.double()[None]).argmin(-1),
        **_settings(model.config, list(sizes) or HUBERT_SIZES),
    }


def make_mt5(stored, random, seed):
    """mT5's encoder with a padded row, and its relative positions."""
    sizes = _sizes(stored)
    model = _restore(originals.mt5(seed, **sizes), stored, "w/")
    mask = np.ones((2, 200))
    mask[1, 37:] = 0
    mask = _input(stored, "attention_mask", lambda: mask, torch.long)
    ids = _input(stored, "input_ids", lambda: random.integers(2, model.config.vocab_size, (2, 200)), torch.long)
    hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    attention = model.encoder.block[0].layer[0].SelfAttention
    distances = torch.arange(-200, 201)
    buckets = attention._relative_position_bucket(
        distances,
        bidirectional=True,
        num_buckets=model.config.relative_attention_num_buckets,
        max_distance=model.config.relative_attention_max_distance,
    )
    bias = attention.compute_bias(200, 200)[0]
    return {
        **_state(model, "w/"),
        "input_ids": ids,
        "attention_mask": mask,
        "last_hidden_state": hidden.last_hidden_state,
        **{f"hidden_{layer}": values for layer, values in enumerate(hidden.hidden_states)},
        "relative_positions": distances,
        "relative_buckets": buckets,
        "position_bias_first_row": bias[:, 0],
        "position_bias_last_row": bias[:, -1],
        **_settings(model.config, list(sizes) or MT5_SIZES),
    }


def make_encodec(stored, random, seed):
    """EnCodec: latents, codes and waveform, and clips shorter than its padding."""
    sizes = {name: value for name, value in _sizes(stored).items() if name != "n_q_total"}
    model = _restore(originals.encodec(seed, **sizes), stored, "w_hf/")
    wave = _input(stored, "wave_24k", lambda: 0.3 * random.standard_normal((2, 1, 4870)))
    codes = model.encode(wave, bandwidth=3.0).audio_codes[0]
    quantized = model.quantizer.decode(codes.transpose(0, 1))
    state = _state(model, "w_hf/", skip=("embed_avg", "cluster_size", "inited"))
    found = {
        **state,
        "w_fb_names": np.array([_original_name(name.removeprefix("w_hf/")) for name in state]),
        "wave_24k": wave,
        "encoder_out": model.encoder(wave),
        "codes_bandwidth3": codes,
        "quantized": quantized,
        "decoded": model.decoder(quantized),
        "encoder_conv0_folded": model.encoder.layers[0].conv.weight,
        "decoder_convtr3_folded": model.decoder.layers[3].conv.weight,
    }
    for length in SHORT:
        name = f"short/{length}"
        clip = _input(stored, f"{name}/wave", lambda length=length: 0.3 * random.standard_normal((1, 1, length)))
        codes = model.encode(clip, bandwidth=3.0).audio_codes[0]
        found |= {f"{name}/wave": clip, f"{name}/codes": codes, f"{name}/encoder_out": model.encoder(clip)}
    settings = _settings(model.config, ["num_filters", "hidden_size", "codebook_size"])
    settings["config_names"] = np.append(settings["config_names"], "n_q_total")
    settings["config_values"] = np.append(settings["config_values"], model.config.num_quantizers)
    return found | settings


def make_vocos(stored, random, seed):
    """Vocos for codes: its parts, two bandwidths, both paddings, and the inverse transform alone."""
    names = dict(zip(stored.get("config_names", []), map(int, stored.get("config_values", [])), strict=True))
    codebook_size, stack_size = names.get("codebook_bins", 32), names.get("num_q", 32)
    tables = {"codebook_size": codebook_size, "stack_size": stack_size}
    sizes = {name: names[name] for name in VOCOS_SIZES[:5] if name in names}
    model = _restore(originals.vocos(seed, **tables, **sizes), stored, "w/")
    center = originals.vocos(seed, padding="center", **tables, **sizes)
    center.load_state_dict(model.state_dict())
    codes = _input(stored, "codes", lambda: random.integers(0, codebook_size, (8, 23)), torch.long)
    batched = _input(stored, "codes_batched", lambda: random.integers(0, codebook_size, (8, 2, 23)), torch.long)
    real, imaginary = (
        _input(stored, f"istft_in_{part}", lambda: random.standard_normal((1, 641, 9))) for part in ("real", "imag")
    )
    features, bandwidth = model.codes_to_features(codes), torch.tensor([2])
    hidden = model.backbone(features, bandwidth_id=bandwidth)
    spectra = torch.complex(real, imaginary)
    sizes = {**sizes, "n_fft": 1280, "hop_length": 320, "codebook_bins": codebook_size, "num_q": stack_size}
    return {
        **_state(model, "w/"),
        "codes": codes,
        "features": features,
        "backbone_out": hidden,
        "head_out": model.head.out(hidden),
        "wave_bandwidth_id2": model.decode(features, bandwidth_id=bandwidth),
        "wave_bandwidth_id0": model.decode(features, bandwidth_id=torch.tensor([0])),
        "wave_center": center.decode(features, bandwidth_id=bandwidth),
        "codes_batched": batched,
        "features_batched": model.codes_to_features(batched),
        "istft_in_real": real,
        "istft_in_imag": imaginary,
        "istft_same_out": model.head.istft(spectra),
        "istft_center_out": center.head.istft(spectra),
        "config_names": np.array(VOCOS_SIZES),
        "config_values": np.array([{**VOCOS_USUAL, **sizes}[name] for name in VOCOS_SIZES]),
    }


PORTS = {"hubert": make_hubert, "mt5": make_mt5, "encodec": make_encodec, "vocos": make_vocos}
HUBERT_SIZES = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
]
MT5_SIZES = [
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
]
VOCOS_USUAL = {
    "input_channels": 16,
    "dim": 32,
    "intermediate_dim": 96,
    "num_layers": 3,
    "adanorm_num_embeddings": 4,
}
VOCOS_SIZES = [*VOCOS_USUAL, "n_fft", "hop_length", "codebook_bins", "num_q"]


def _sizes(stored):
    """Settings of the stored file, whole numbers as such."""
    values = stored.get("config_values", np.zeros(0))
    return {
        str(name): float(value) if value % 1 else int(value)
        for name, value in zip(stored.get("config_names", []), values, strict=True)
    }


def _settings(config, names):
    values = np.array([getattr(config, name) for name in names])
    return {"config_names": np.array(names), "config_values": values}


def _restore(model, stored, prefix):
    """The stored weights; statistics of codebooks are not stored and not needed."""
    if stored:
        weights = {name.removeprefix(prefix): torch.tensor(stored[name]) for name in stored if name.startswith(prefix)}
        missing, extra = model.load_state_dict(weights, strict=False)
        assert not extra, extra
        assert all(name.rpartition(".")[2] in ("embed_avg", "cluster_size", "inited") for name in missing), missing
    return model


def _state(model, prefix, skip=()):
    return {f"{prefix}{name}": value for name, value in model.state_dict().items() if not name.endswith(skip or "\0")}


def _input(stored, name, draw, dtype=torch.float32):
    return torch.tensor(stored[name] if stored else draw(), dtype=dtype)


def _original_name(name):
    """EnCodec's own name of a key of transformers."""
    upsampling = name.startswith("decoder.") and ".block." not in name and ".shortcut." not in name
    upsampling = upsampling and name.split(".")[2] in ("3", "6", "9", "12")
    conv = "convtr.convtr" if upsampling else "conv.conv"
    for theirs, ours in (
        ("encoder.layers.", "encoder.model."),
        ("decoder.layers.", "decoder.model."),
        (".conv.", f".{conv}."),
        ("quantizer.layers.", "quantizer.vq.layers."),
        (".codebook.", "._codebook."),
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        name = name.replace(theirs, ours)
    return name


def _to_numpy(array):
    """As stored: float32, int32 and text."""
    array = array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    return array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype))


if __name__ == "__main__":
    sys.exit(main())
