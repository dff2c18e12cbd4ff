"""`voxinstruct convert ...`: training runs and other programs' weights to ours, and ours back."""

import argparse
import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError, InputError

__all__ = ["export_run", "run"]

PORTS = {
    "mt5": "mT5 encoder: a Hugging Face folder",
    "hubert": "HuBERT: a Hugging Face folder or a fairseq checkpoint",
    "encodec": "EnCodec at 24 kHz: a Hugging Face folder or the original file; with --vocos for its sound",
    "mimi": "Mimi: a Hugging Face folder",
    "vocos": "Vocos: a folder with config.yaml",
    "mmaudio_vae": "MMAudio's audio autoencoder: v1-16.pth or v1-44.pth",
    "unison": "the transformer of UNISON's release: model.safetensors or its folder",
}
"""Each has `load_NAME(source)` and `export_NAME(module, folder)` in the room `interop`."""

PORT_OF = {"mel_vocos": "vocos", "mel_vae": "mmaudio_vae", "mmdit": "unison"}
"""Kind of part → its port, where that has another name."""

TRAINED_AGAINST = ("discriminator", "teacher", "target", "fake")
"""Parts that a codec or a student has beside it while it is trained, and never after."""

PAPER_LAYER = 9
"""Of HuBERT."""

EXAMPLE = """examples:
  a training run to weights
    voxinstruct convert runs/codec --out voice/codec
  a run of a denoiser, of Grad-TTS or of masked latents to a voice
    voxinstruct convert runs/instructaudio_small --out voices/instructaudio
  a run of a flow decoder or a bridge to a voice, with the AR model of the embedded voice or of another one
    voxinstruct convert runs/flow_decoder --out voices/lm_flow
  the release of VoxInstruct to a voice; all but --ar and --nar can be added later
    voxinstruct convert voxinstruct --ar ar_1800k.pyt --nar nar_1800k.pyt --tokenizer mt5-base/spiece.model \\
      --encodec encodec_24khz --vocos vocos-encodec-24khz --hubert hubert_base_ls960.pt \\
      --kmeans hubert_base_ls960_L9_km500.bin --out voice
  a single part
    voxinstruct convert encodec encodec_24khz --vocos vocos-encodec-24khz --out voice/codec
    voxinstruct convert mmaudio_vae v1-44.pth --scale 0.5 --out vae_of_unison
    voxinstruct convert kmeans hubert_base_ls960_L9_km500.bin --out voice/units
  back: a voice to the release's two files, weights to safetensors (and from there again), a part to its original form
    voxinstruct convert voice --to release --out released
    voxinstruct convert voice/ar --to safetensors --out ar_tensors
    voxinstruct convert voice/hubert --to original --out hubert_folder"""

DTYPES = ("float32", "bfloat16")
"""That any weights can be stored as."""

MODELS_OF_RUNS = {"style": "ar", "melody": "codec"}
"""What a run's weights are, where its kind does not say."""


def run(arguments: list[str]) -> int:
    """Converts what is named."""
    kind = arguments[0] if arguments else None
    if kind == "voxinstruct":
        return _convert_release(arguments[1:])
    if kind in (*PORTS, "kmeans"):
        return _convert_part(str(kind), arguments[1:])
    parser = _parser(
        "voxinstruct convert",
        "Turn a training run, or the weights of another program, into weights.",
        (*DTYPES, "int8"),
    )
    parser.add_argument("source", type=Path, help="a run, a weights folder, a voice, or what --to safetensors wrote")
    parser.add_argument("--to", choices=("safetensors", "release", "original"), help="the way back: see the examples")
    parser.add_argument("--card", type=Path, help="of a run: a MODEL_CARD.md to store with the weights")
    parser.add_argument(
        "--voice",
        type=Path,
        help="of a run of a flow: the voice whose AR model says the tokens (default: the embedded)",
    )
    options = parse(parser, arguments)
    if options.to is not None:
        return _export(options.source, options.out, options.to)
    if (options.source / "model.safetensors").is_file():
        if options.dtype not in DTYPES:
            raise ConfigError(f"--dtype {options.dtype} is for runs; give {' or '.join(DTYPES)}")
        from voxinstruct_jax.interop.folders import from_safetensors

        from_safetensors(options.source, options.out, dtype=options.dtype)
        print(f"{options.out}: weights")
        return 0
    kind = _kind_of_run(options.source)
    if options.voice is not None and kind != "codec_flow":
        raise ConfigError(f"--voice lends an AR model to a flow; {options.source} is a run of kind {kind!r}")
    if kind == "codec_flow":
        return _export_flow_voice(options)
    from voxinstruct_jax.cli.latent_voices import LATENT_EXPERIMENTS

    if kind in LATENT_EXPERIMENTS:
        return _export_latent_voice(options)
    step = export_run(options.source, options.out, dtype=options.dtype, card=options.card)
    print(f"{options.out}: weights of step {step}")
    return 0


def _export_latent_voice(options: argparse.Namespace) -> int:
    """Writes the voice of a model of latents, or of a student of one; a vocoder that lies in the folder stays."""
    from voxinstruct_jax.cli.latent_voices import LATENT_EXPERIMENTS, latent_voice_config
    from voxinstruct_jax.config import from_dict
    from voxinstruct_jax.latent_voice import KIND
    from voxinstruct_jax.voice_folder import write_voice_settings

    settings = json.loads((options.source / "config.json").read_text())
    config = latent_voice_config(from_dict(LATENT_EXPERIMENTS[_kind_of_run(options.source)], settings))
    step = export_run(options.source, options.out / "denoiser", dtype=options.dtype, card=options.card)
    write_voice_settings(options.out, KIND, config)
    print(f"{options.out}: voice of step {step}")
    return 0


def _export_flow_voice(options: argparse.Namespace) -> int:
    """Writes the voice of a flow behind the AR model of another voice, which is copied."""
    from voxinstruct_jax.checkpoints.weights import read_settings
    from voxinstruct_jax.config import fingerprint, from_dict
    from voxinstruct_jax.flow_voice import KIND, FlowVoiceConfig, check_flow
    from voxinstruct_jax.judges.bins import carry_bins
    from voxinstruct_jax.models.ar import ARConfig
    from voxinstruct_jax.training.codec_flow import CodecFlowExperiment
    from voxinstruct_jax.voice_folder import (
        VoiceConfig,
        codes_fingerprint,
        embedded_release,
        load_codec,
        read_voice_settings,
        write_voice_settings,
    )

    lender = options.voice or embedded_release()
    kind, values = read_voice_settings(lender)
    if kind:
        raise InputError(f"{lender}: a voice of kind {kind!r} lends no AR model; give one of the codec language model")
    experiment = from_dict(CodecFlowExperiment, json.loads((options.source / "config.json").read_text()))
    check_flow(lender, from_dict(ARConfig, read_settings(lender / "ar")["model"]), experiment.model)
    trained_on = json.loads((options.source / "run.json").read_text())["codec"]
    if trained_on != fingerprint(codes_fingerprint(load_codec(lender / "codec"))):
        raise InputError(
            f"{options.source}: trained on latents of another codec than that of {lender}; give its --voice"
        )
    config = FlowVoiceConfig(language_model=from_dict(VoiceConfig, values), diffusion=experiment.diffusion)
    step = export_run(options.source, options.out / "flow", dtype=options.dtype, card=options.card)
    partial = options.out / ".ar.partial"
    for folder in (partial, options.out / "ar"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lender / "ar", partial).replace(options.out / "ar")
    carry_bins(lender, options.out)
    write_voice_settings(options.out, KIND, config)
    print(f"{options.out}: voice of step {step}")
    return 0


def _kind_of_run(source: Path) -> str:
    if not (source / "run.json").is_file():
        raise InputError(
            f"{source}: no training run here (it has no run.json); for weights of another program say which: "
            f"convert {{voxinstruct, {', '.join(PORTS)}, kmeans}} ..., see --help"
        )
    return str(json.loads((source / "run.json").read_text())["kind"])


def export_run(source: Path, out: Path, *, dtype: str, card: Path | None = None) -> int:
    """Writes the newest whole state of a run as a weights folder; returns its step.

    Raises:
        InputError: The folder holds no run, or no whole state.
    """
    from voxinstruct_jax.audio.codec import ENCODER_PARTS
    from voxinstruct_jax.checkpoints.run import RunStore
    from voxinstruct_jax.checkpoints.weights import merge_trees, save_weights

    kind = _kind_of_run(source)
    settings = json.loads((source / "config.json").read_text())
    store = RunStore(source / "states")
    steps = store.whole_steps()
    if not steps:
        raise InputError(f"{source}: no whole state saved yet; train on")
    state = store.restore_arrays(steps[0])
    store.close()
    kind = MODELS_OF_RUNS.get(kind, kind)
    text = card.read_text() if card else f"# {kind}\n\nExported from step {steps[0]} of a training run.\n"
    weights: Any = merge_trees(state.get("ema") or state["params"], state["rest"])
    for part in TRAINED_AGAINST:
        weights.pop(part, None)
    described = {name: settings[name] for name in ("model", "latents", "diffusion") if name in settings}
    exact = ENCODER_PARTS if kind == "codec" else ()  # shards hold the codes that it makes
    save_weights(out, weights, {"kind": kind, **described, "step": steps[0]}, card=text, dtype=dtype, exact=exact)
    return steps[0]


def _parser(name: str, description: str, dtypes: Sequence[str] = DTYPES) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        name, description=description, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="how weights are stored")
    return parser


def _convert_part(kind: str, arguments: list[str]) -> int:
    """Converts one model of another program to a weights folder."""
    described = PORTS.get(kind, "k-means of scikit-learn: a joblib file, or a .npy of centroids")
    parser = _parser(f"voxinstruct convert {kind}", f"From {described}.")
    parser.add_argument("source", type=Path, help="folder or file")
    if kind == "encodec":
        parser.add_argument("--vocos", type=Path, help="a Vocos folder, to turn the codes into sound")
    if kind == "kmeans":
        parser.add_argument("--layer", type=int, default=PAPER_LAYER, help="of HuBERT (default: 9, the paper's)")
    if kind == "mmaudio_vae":
        parser.add_argument("--scale", type=float, default=1.0, help="of the latents (default: 1; UNISON's are of 0.5)")
    options = parse(parser, arguments)
    if kind == "kmeans":
        _write_units(options.source, options.out, options.layer)
    elif kind == "encodec":
        _write_codec(options.source, options.vocos, options.out, options.dtype)
    elif kind == "mmaudio_vae":
        _write_port(kind, options.source, options.out, options.dtype, scale=options.scale)
    else:
        _write_port(kind, options.source, options.out, options.dtype)
    print(f"{options.out}: {kind}")
    return 0


def _port(kind: str) -> Any:
    return importlib.import_module(f"voxinstruct_jax.interop.{kind}")


def _write_port(kind: str, source: Path, out: Path, dtype: str, **settings: float) -> None:
    from voxinstruct_jax.interop.folders import kind_of, write_part

    module = getattr(_port(kind), f"load_{kind}")(source, **settings)
    if kind == "mt5":
        module = module.encoder
    write_part(out, kind_of(module), module, source=source.name, dtype=dtype)


def _write_codec(encodec: Path, vocos: Path | None, out: Path, dtype: str) -> None:
    """EnCodec alone, or with Vocos in place of its decoder."""
    if vocos is None:
        return _write_port("encodec", encodec, out, dtype)
    from voxinstruct_jax.interop.folders import write_pair

    pair = (_port("encodec").load_encodec(encodec), _port("vocos").load_vocos(vocos))
    return write_pair(out, *pair, source=f"{encodec.name} and {vocos.name}", dtype=dtype)


def _write_units(source: Path, out: Path, layer: int) -> None:
    from voxinstruct_jax.audio.semantic import FEATURE_RATE
    from voxinstruct_jax.checkpoints.weights import save_weights
    from voxinstruct_jax.interop.tensors import read_centroids

    centroids = read_centroids(source)
    settings = {"kind": "units", "source": f"hubert-{centroids.shape[1]}-layer{layer}", "frame_rate": FEATURE_RATE}
    card = f"# units\n\nK-means centroids converted from {source.name}.\n"
    save_weights(out, {"centroids": centroids}, settings, card=card)


def _convert_release(arguments: list[str]) -> int:
    """Makes a voice folder of the release's files, and of the other parts as far as they are given."""
    from voxinstruct_jax.decoding.rules import DecodingRules
    from voxinstruct_jax.interop.folders import write_voxinstruct
    from voxinstruct_jax.interop.voxinstruct import ReleaseConfig, load_voxinstruct

    options = parse(_release_parser(), arguments)
    config = ReleaseConfig(
        languages=tuple(options.languages.split(",")),
        num_semantic=options.num_semantic,
        num_heads=options.num_heads,
        lora_alpha=options.lora_alpha,
        text_slots=options.text_slots,
    )
    if options.vocos is not None and options.encodec is None:
        raise ConfigError("--vocos turns EnCodec's codes into sound: give --encodec, too")
    release = load_voxinstruct(options.ar, options.nar, config)
    rules = DecodingRules.faithful() if options.rules == "faithful" else DecodingRules.fixed()
    write_voxinstruct(options.out, release, rules, dtype=options.dtype)
    del release  # two gigabytes that the other parts may need
    written = ["ar", "nar"]
    if options.tokenizer is not None:
        _write_tokenizer(options.tokenizer, options.out / "text")
        written.append("text")
    if options.encodec is not None:
        _write_codec(options.encodec, options.vocos, options.out / "codec", options.dtype)
        written.append("codec")
    if options.hubert is not None:
        _write_port("hubert", options.hubert, options.out / "hubert", options.dtype)
        written.append("hubert")
    if options.kmeans is not None:
        _write_units(options.kmeans, options.out / "units", options.hubert_layer)
        written.append("units")
    print(f"{options.out}: {', '.join(written)}")
    return 0


def _release_parser() -> argparse.ArgumentParser:
    parser = _parser("voxinstruct convert voxinstruct", "The release of VoxInstruct to a voice folder.")
    parser.add_argument("--ar", type=Path, required=True, help="ar_1800k.pyt")
    parser.add_argument("--nar", type=Path, required=True, help="nar_1800k.pyt")
    parser.add_argument("--tokenizer", type=Path, help="google/mt5-base: spiece.model or tokenizer.json, or its folder")
    parser.add_argument("--encodec", type=Path, help="EnCodec at 24 kHz")
    parser.add_argument("--vocos", type=Path, help="Vocos for its codes")
    parser.add_argument("--hubert", type=Path, help="HuBERT base, for voice prompts")
    parser.add_argument("--kmeans", type=Path, help="its 500 units")
    parser.add_argument(
        "--rules",
        choices=("faithful", "fixed"),
        default="faithful",
        help="decode as the release, or with faults mended",
    )
    sizes = parser.add_argument_group("what the shapes don't tell (defaults: the release)")
    sizes.add_argument("--languages", default="en,zh")
    sizes.add_argument("--num-semantic", type=int, default=500)
    sizes.add_argument("--num-heads", type=int, default=16)
    sizes.add_argument("--lora-alpha", type=float, default=16.0)
    sizes.add_argument("--hubert-layer", type=int, default=PAPER_LAYER, help="whose features --kmeans was fitted on")
    sizes.add_argument("--text-slots", type=int, default=512)
    return parser


def _write_tokenizer(source: Path, folder: Path) -> None:
    from voxinstruct_jax.text.subword import MODEL_FILES, SubwordTokenizer, find_model

    file = find_model(source)
    SubwordTokenizer(file)  # refuses what is no model
    name = MODEL_FILES[1] if file.read_bytes().lstrip()[:1] == b"{" else MODEL_FILES[0]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / name)
    for other in {*MODEL_FILES} - {name}:
        (folder / other).unlink(missing_ok=True)  # of an older conversion


def _export(source: Path, out: Path, form: str) -> int:
    if form == "safetensors":
        from voxinstruct_jax.interop.folders import to_safetensors

        to_safetensors(source, out)
    elif form == "release":
        from voxinstruct_jax.interop.folders import open_voxinstruct
        from voxinstruct_jax.interop.pytorch_files import write_pytorch
        from voxinstruct_jax.interop.voxinstruct import export_voxinstruct

        tables = export_voxinstruct(open_voxinstruct(source))
        out.mkdir(parents=True, exist_ok=True)
        for name, tensors in zip(("ar", "nar"), tables, strict=True):
            write_pytorch(out / f"{name}.pyt", {"model": tensors, "steps": 0})
    else:
        _export_original(source, out)
    print(f"{out}: {form}")
    return 0


def _export_original(source: Path, out: Path) -> None:
    from voxinstruct_jax.interop.folders import open_part

    kind, module = open_part(source)
    out.mkdir(parents=True, exist_ok=True)
    if kind == "mt5":
        module = _port("mt5").MT5(module)
    name = PORT_OF.get(kind, kind)
    getattr(_port(name), f"export_{name}")(module, out)
