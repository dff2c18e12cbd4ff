"""The PyTorch side of `reference.py`: a worker that builds a part when it is first asked for and times one call a line.

It reads names of parts from standard input and answers each with its seconds by the clock and of processor time.
Networks are those of transformers and vocos, with random weights; the language models are called as the VoxInstruct
release does, one branch after another.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not take the cores from the other side

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))
import originals


def main() -> int:
    """Answers until the input ends."""
    sizes = json.loads(sys.argv[1])
    torch.set_num_threads(sizes["threads"])
    name, call = "", lambda: None
    with torch.inference_mode():
        for line in sys.stdin:
            if line.strip() != name:
                name, call = line.strip(), lambda: None  # the old part is freed before the new one is made
                call = PARTS[name](sizes)
                call()
            clock, processor = time.perf_counter(), time.process_time()
            call()
            print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]), flush=True)
    return 0


def make_llama(sizes: dict) -> transformers.LlamaModel:
    """The blocks of both language models."""
    config = transformers.LlamaConfig(
        vocab_size=8,  # its own table is never used
        hidden_size=sizes["model_dim"],
        intermediate_size=sizes["ffn_dim"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
    )
    return transformers.LlamaModel(config).eval()


def make_ar(sizes: dict, branches: int) -> Callable[[], object]:
    """Steps of the AR model: each branch has a cache of its own and is run alone."""
    model, dim, vocab = make_llama(sizes), sizes["model_dim"], sizes["vocab"]
    table, parts = torch.nn.Embedding(vocab, dim), torch.nn.Embedding(3, dim)
    head = torch.nn.Linear(dim, vocab, bias=False)
    caches = [transformers.DynamicCache() for _ in range(branches)]
    for cache in caches:
        model(inputs_embeds=0.02 * torch.randn(1, sizes["context"], dim), past_key_values=cache, use_cache=True)

    def call() -> None:
        token, part = torch.tensor([[5]]), torch.tensor([[2]])
        for _ in range(sizes["steps"]):
            logits = []
            for cache in caches:
                x = table(token) + parts(part)
                logits.append(head(model(inputs_embeds=x, past_key_values=cache, use_cache=True).last_hidden_state))
            token = sum(logits).argmax(-1)
        for cache in caches:
            cache.crop(sizes["context"])

    return call


def make_nar(sizes: dict) -> Callable[[], object]:
    """One pass of the NAR model over text slots and audio, seen both ways."""
    model, dim, time_width = make_llama(sizes), sizes["model_dim"], sizes["text_slots"] + sizes["nar_width"]
    tables = [torch.nn.Embedding(sizes["vocab"], dim) for _ in range(8)]
    head = torch.nn.Linear(dim, sizes["codebook_size"] + 3, bias=False)
    text = torch.randn(1, sizes["text_slots"], dim)
    tokens = torch.randint(0, sizes["vocab"], (8, 1, sizes["nar_width"]))
    seen = torch.zeros(1, 1, time_width, time_width)

    def call() -> None:
        audio = sum(table(row) for table, row in zip(tables, tokens, strict=True))
        hidden = model(inputs_embeds=torch.cat([text, audio], dim=1), attention_mask=seen, use_cache=False)
        head(hidden.last_hidden_state[:, sizes["text_slots"] :]).softmax(-1).max(-1)

    return call


def make_codec(sizes: dict) -> torch.nn.Module:
    """EnCodec at 24 kHz."""
    form = {} if sizes["small"] else {"num_filters": 32, "hidden_size": 128, "codebook_size": 1024}
    return originals.encodec(**form, target_bandwidths=[1.5, 3.0, 6.0, 12.0, 24.0])


def make_encodec(sizes: dict) -> Callable[[], object]:
    """Encoding at 6 kbit/s."""
    model = make_codec(sizes)
    samples = 0.1 * torch.randn(1, 1, 24_000 * sizes["seconds"])
    bandwidth = 3.0 if sizes["small"] else 6.0  # eight codebooks either way
    return lambda: model.encode(samples, bandwidth=bandwidth)


def make_decoder(sizes: dict) -> Callable[[], object]:
    """Eight codebooks to waveform."""
    model = make_codec(sizes)
    codes = torch.randint(0, model.config.codebook_size, (1, 1, 8, 75 * sizes["seconds"]))
    return lambda: model.decode(codes, [None])


def make_vocos(sizes: dict) -> Callable[[], object]:
    """Codes to waveform."""
    form = {"input_channels": 128, "dim": 384, "intermediate_dim": 1152, "num_layers": 8}
    tables = {"codebook_size": 32, "stack_size": 8} if sizes["small"] else {"codebook_size": 1024, "stack_size": 16}
    model = originals.vocos(**tables, **({"num_layers": 2} if sizes["small"] else form))
    codes = torch.randint(0, tables["codebook_size"], (8, 75 * sizes["seconds"]))
    bandwidth = torch.tensor([2])
    return lambda: model.decode(model.codes_to_features(codes), bandwidth_id=bandwidth)


def make_hubert(sizes: dict) -> Callable[[], object]:
    """The ninth layer; the blocks above it are left out."""
    form = {
        "hidden_size": 768,
        "num_hidden_layers": 9,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "conv_dim": [512] * 7,
        "num_conv_pos_embedding_groups": 16,
    }
    model = originals.hubert(**({} if sizes["small"] else form))
    samples = 0.1 * torch.randn(1, 16_000 * sizes["seconds"])
    return lambda: model(samples)


PARTS = {
    "AR step, semantic": lambda sizes: make_ar(sizes, 2),
    "AR step, acoustic": lambda sizes: make_ar(sizes, 3),
    "NAR pass": make_nar,
    "EnCodec encode": make_encodec,
    "EnCodec decode": make_decoder,
    "Vocos": make_vocos,
    "HuBERT": make_hubert,
}

if __name__ == "__main__":
    sys.exit(main())
