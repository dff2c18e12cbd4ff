"""The original programs of the ports, small and with random weights; needs torch and transformers.

Shared by `make_golden.py`, which stores what they compute, and by the live tests in `tests/parity`.
"""

import importlib.machinery
import sys
import types

import torch
import transformers


def randomize(module, seed):
    """Random values for every weight, none of them at a default that would hide a fault (zero biases, unit norms)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("weight.original0"):  # lengths of weight norms; a signal must not fade on its way
                weight.copy_(1.5 + 0.3 * noise)
            elif weight.squeeze().ndim < 2:  # biases and norms
                weight += 0.1 * noise
            else:
                weight.copy_(1.3 * noise / weight[0].numel() ** 0.5)
    return module.eval()


def hubert(seed=0, **sizes):
    """HuBERT, in its base form unless the sizes say otherwise."""
    usual = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 4,
    }
    return randomize(transformers.HubertModel(transformers.HubertConfig(**{**usual, **sizes})), seed)


def mt5(seed=0, **sizes):
    """The encoder of mT5."""
    usual = {"vocab_size": 60, "d_model": 48, "d_kv": 8, "d_ff": 96, "num_layers": 3, "num_heads": 4}
    module = randomize(transformers.MT5EncoderModel(transformers.MT5Config(**{**usual, **sizes})), seed)
    with torch.no_grad():
        module.shared.weight *= module.config.d_model**0.5
    return module


def encodec(seed=0, **sizes):
    """EnCodec at 24 kHz; its codebooks get finer as they should, so that every one of them matters."""
    usual = {"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "target_bandwidths": [1.5, 3.0, 6.0, 12.0]}
    usual |= {"codebook_dim": {**usual, **sizes}["hidden_size"]}
    module = randomize(transformers.EncodecModel(transformers.EncodecConfig(**{**usual, **sizes})), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        spread = module.encoder(torch.randn(1, 1, 9600, generator=generator)).std()
        for depth, layer in enumerate(module.quantizer.layers):
            noise = torch.randn(layer.codebook.embed.shape, generator=generator)
            layer.codebook.embed.copy_(noise * spread * 0.8**depth)
    return module


def mimi(seed=0, **sizes):
    """Mimi; its codebooks are stored as sums of members."""
    usual = {
        "hidden_size": 32,
        "num_filters": 4,
        "codebook_size": 16,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 48,
        "upsample_groups": 32,
        "attn_implementation": "eager",
    }
    module = randomize(transformers.MimiModel(transformers.MimiConfig(**{**usual, **sizes})), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("embed_sum"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("cluster_usage"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


def vocos(seed=0, *, codebook_size=32, stack_size=32, padding="same", **sizes):
    """Vocos for EnCodec codes, without the EnCodec that it would load; one magnitude bin is clipped."""
    heads, models, extractors, pretrained = import_vocos()
    usual = {"input_channels": 16, "dim": 32, "intermediate_dim": 96, "num_layers": 3, "adanorm_num_embeddings": 4}
    sizes = {**usual, **sizes}

    class TableOfCodes(extractors.EncodecFeatures):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.encodec = types.SimpleNamespace(quantizer=types.SimpleNamespace(bins=codebook_size))
            self.codebook_weights = torch.nn.Parameter(torch.zeros(stack_size * codebook_size, sizes["input_channels"]))

    head = heads.ISTFTHead(dim=sizes["dim"], n_fft=1280, hop_length=320, padding=padding)
    module = randomize(pretrained.Vocos(TableOfCodes(), models.VocosBackbone(**sizes), head), seed)
    with torch.no_grad():
        module.head.out.bias[7] += 6.0
    return module


def import_vocos():
    """Returns vocos' modules heads, models, feature_extractors and pretrained.

    It imports torchaudio for mel spectrograms and mel scales, which are not used here; where no torchaudio fits the
    installed torch, empty modules stand in.
    """
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        for name in ("torchaudio", "torchaudio.functional", "torchaudio.functional.functional"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules["torchaudio.functional.functional"].__dict__.update(_hz_to_mel=None, _mel_to_hz=None)
    from vocos import feature_extractors, heads, models, pretrained

    return heads, models, feature_extractors, pretrained


RELEASE_SIZES = {
    "num_languages": 2,
    "num_semantic": 20,
    "codebook_size": 32,
    "num_codebooks": 8,
    "text_slots": 12,
    "dim": 64,
    "ffn_dim": 128,
    "num_layers": 2,
    "num_heads": 4,
    "lora_rank": 4,
    "lora_alpha": 8,
}


class ReleaseNetwork(torch.nn.Module):
    """What the two networks of the VoxInstruct release share; attribute names are those of its files."""

    def __init__(self, sizes):
        super().__init__()
        import peft

        self.text_slots = sizes["text_slots"]
        encoder = mt5(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        adapters = peft.LoraConfig(r=sizes["lora_rank"], lora_alpha=sizes["lora_alpha"], target_modules=["q", "v"])
        self.t5_model = peft.get_peft_model(encoder, adapters)
        self.first_code = 1 + sizes["num_languages"] + sizes["num_semantic"]
        self.num_ids = self.first_code + sizes["codebook_size"] + 3
        self.config = transformers.LlamaConfig(
            vocab_size=self.num_ids,
            hidden_size=sizes["dim"],
            intermediate_size=sizes["ffn_dim"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=sizes["num_heads"],
            max_position_embeddings=256,
            attn_implementation="eager",
        )
        self.embed_segments = torch.nn.Embedding(3, sizes["dim"])
        self.prompt_fc = torch.nn.Linear(32, sizes["dim"])

    def inputs(self, text_ids, text_mask, audio, segment_ids, text_free):
        """Text rows (zero at padding, or throughout) and audio rows, each with its segment's row added."""
        encoded = self.t5_model(input_ids=text_ids, attention_mask=text_mask).last_hidden_state
        text = self.prompt_fc(encoded) * text_mask[..., None] * (not text_free)
        segments = torch.cat([torch.zeros_like(text_ids), segment_ids], dim=1)
        return torch.cat([text, audio], dim=1) + self.embed_segments(segments)


class ReleaseAR(ReleaseNetwork):
    """Causal over text slots and audio; right padding needs no mask."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self.model = transformers.LlamaForCausalLM(self.config)
        self.embed_tokens = torch.nn.Embedding(self.num_ids, sizes["dim"])

    def forward(self, text_ids, text_mask, seqs, segment_ids, *, text_free=False, semantic_free=False):
        ids = torch.where((segment_ids == 1) & semantic_free, 0, seqs)
        inputs = self.inputs(text_ids, text_mask, self.embed_tokens(ids), segment_ids, text_free)
        return self.model(inputs_embeds=inputs).logits[:, self.text_slots :]


class ReleaseNAR(ReleaseNetwork):
    """Sees text slots and audio both ways, but no audio padding."""

    def __init__(self, sizes):
        super().__init__(sizes)
        tables = [torch.nn.Embedding(self.num_ids, sizes["dim"]) for _ in range(sizes["num_codebooks"])]
        heads = [torch.nn.Linear(sizes["dim"], sizes["codebook_size"] + 3, bias=False) for _ in range(len(tables) - 1)]
        self.model = transformers.LlamaModel(self.config)
        self.all_embed_tokens, self.out_proj = torch.nn.ModuleList(tables), torch.nn.ModuleList(heads)
        self.embed_res = torch.nn.Embedding(len(heads), sizes["dim"])

    def forward(self, text_ids, text_mask, rows, segment_ids, codebook):
        audio = sum(table(rows[:, q]) for q, table in enumerate(self.all_embed_tokens))
        audio = audio + self.embed_res.weight[codebook - 1]
        inputs = self.inputs(text_ids, text_mask, audio, segment_ids, text_free=False)
        seen = torch.cat([torch.ones_like(text_ids), segment_ids], dim=1) > 0
        mask = torch.where(seen[:, None, None], 0.0, torch.finfo(torch.float32).min)
        mask = mask.expand(-1, 1, inputs.shape[1], -1)
        hidden = self.model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
        return self.out_proj[codebook - 1](hidden[:, self.text_slots :])


def release(seed=0, **sizes):
    """Both networks of VoxInstruct, in the form of its files: sizes of the language models, frozen mT5, adapters."""
    sizes = {**RELEASE_SIZES, **sizes}
    ar, nar = randomize(ReleaseAR(sizes), seed), randomize(ReleaseNAR(sizes), seed + 1)
    with torch.no_grad():
        for table in (ar.embed_tokens, *nar.all_embed_tokens):
            table.weight[0] = 0
    return ar, nar
