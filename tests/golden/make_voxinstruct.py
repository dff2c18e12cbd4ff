"""Makes `voxinstruct_tiny.npz` again: networks, objectives and loops of the VoxInstruct release, written with PyTorch.

Run: python tests/golden/make_voxinstruct.py OUT.npz [--seed N]

Needs torch, transformers and peft; not this package. Without `--seed`, weights, data and random draws (masks, sampled
tokens) are those of the stored file, so that its other arrays must come out again to rounding wherever there is no
padding; with it, they are new. Layouts and rules follow the release's program, its faults included.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import originals
import torch
from torch.nn import functional

STORED = Path(__file__).parent / "voxinstruct_tiny.npz"
SIZES = originals.RELEASE_SIZES
SEMANTIC, ACOUSTIC = 1 + SIZES["num_languages"], 1 + SIZES["num_languages"] + SIZES["num_semantic"]
BOS = ACOUSTIC + SIZES["codebook_size"]
EOS1, EOS2 = BOS + 1, BOS + 2
SLOTS, CODEBOOKS = SIZES["text_slots"], SIZES["num_codebooks"]
GUIDANCE = {"gamma": 1.5, "alpha": 3.0, "beta": 1.5}
MAX_SAMPLED = 24
HIDDEN = -1e5
CONDITIONS = {"cond": {}, "text_free": {"text_free": True}, "st_free": {"semantic_free": True}}


def main():
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, help="new weights, data and draws instead of the stored ones")
    options = parser.parse_args()
    stored = {}
    if options.seed is None:
        with np.load(STORED) as arrays:
            stored = {name: torch.tensor(array) for name, array in arrays.items() if array.dtype.kind != "U"}
    torch.manual_seed(options.seed or 0)
    ar, nar = originals.release(options.seed or 0)
    for name, network in (("ar", ar), ("nar", nar)):
        prefix = f"{name}/w/"
        if stored:
            weights = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            network.load_state_dict(weights)
        for key, weight in network.named_parameters():
            weight.requires_grad_("t5_model" not in key or "lora_" in key)
    found = {**_weights("ar", ar), **_weights("nar", nar), **make_data(stored), **_settings(ar)}
    data = {name.removeprefix("data/"): value for name, value in found.items() if name.startswith("data/")}
    found |= make_ar(ar, data, stored)
    found |= make_filter(stored)
    found |= make_nar(nar, data, stored)
    with torch.no_grad():
        for number in (0, 1):
            found |= make_loop(number, ar, nar, data, stored)
    np.savez(options.out, **{name: _to_numpy(value) for name, value in found.items()})
    return 0


def make_data(stored):
    """Two clips with the padding of one batch."""
    found, rows = {}, []
    for number, (units, frames, text) in enumerate([(4, 5, 4), (6, 9, 7)]):
        semantic = _draw(stored, f"data/raw_semantic_{number}", lambda n=units: _integers(SIZES["num_semantic"], n))
        codes = _draw(
            stored, f"data/raw_acoustic_{number}", lambda n=frames: _integers(SIZES["codebook_size"], CODEBOOKS, n)
        )
        found |= {f"data/raw_semantic_{number}": semantic, f"data/raw_acoustic_{number}": codes}
        rows.append((_sequence(number, semantic, codes + ACOUSTIC), len(torch.unique_consecutive(semantic)) + 3, text))
    width = max(sequence.shape[1] for sequence, _, _ in rows)
    full = torch.stack([functional.pad(sequence, (0, width - sequence.shape[1])) for sequence, _, _ in rows])
    lengths = torch.tensor([sequence.shape[1] for sequence, _, _ in rows])
    starts = torch.tensor([start for _, start, _ in rows])
    place = torch.arange(width)
    text_lens = torch.tensor([text for _, _, text in rows])
    valid, in_text = place < lengths[:, None], torch.arange(SLOTS) < text_lens[:, None]
    drawn = torch.where(torch.arange(SLOTS) == text_lens[:, None] - 1, 1, 2 + _integers(38, 2, SLOTS)) * in_text
    return {
        **found,
        "data/text_ids": stored.get("data/text_ids", drawn),
        "data/text_lens": text_lens,
        "data/seqs": full[:, 0],
        "data/seq_lens": lengths,
        "data/full_seqs": full.transpose(1, 2),
        "data/segment_ids": torch.where(place < starts[:, None], 1, 2) * valid,
        "data/text_attn_mask": in_text.float(),
        "data/seq_attn_mask": valid.float(),
    }


def make_ar(ar, data, stored):
    """Logits, losses and gradients of the three conditions, and last logits of prefixes."""
    places = _places(data, data["seqs"])
    target, valid = places[2][:, 1:], data["seq_attn_mask"][:, 1:]
    found = {"ar/t5_last_hidden": ar.t5_model(input_ids=places[0], attention_mask=places[1]).last_hidden_state}
    for name, free in CONDITIONS.items():
        logits = ar(*places, **free)
        loss, accuracy = _loss(logits[:, :-1], target, valid)
        found |= {f"ar/{name}/logits": logits, f"ar/{name}/loss": loss, f"ar/{name}/acc_top1_top10": accuracy}
        if name == "cond":
            found |= _gradients(ar, loss, "ar/cond", stored)
    row, lengths = 1, [8, 9, 10, 11]
    for name, free in CONDITIONS.items():
        prefixes = [[part[row : row + 1] for part in places[:2]] for _ in lengths]
        last = [
            ar(*text, *(part[row : row + 1, :length] for part in places[2:]), **free)[0, -1]
            for text, length in zip(prefixes, lengths, strict=True)
        ]
        found[f"ar/decode_{'base' if name == 'cond' else name}/logits"] = torch.stack(last)
    return {**found, "ar/decode/prefix_lengths": torch.tensor(lengths), "ar/decode/row": torch.tensor(row)}


def make_filter(stored):
    """The filter of top-k, top-p and temperature."""
    logits = _draw(stored, "filter/logits_in", lambda: 3 * torch.randn(4, EOS2 + 1))
    filtered = {k: torch.stack([_filter(row, k) for row in logits]) for k in (5, 50)}
    return {"filter/logits_in": logits, **{f"filter/out_k{k}_p0.95_t0.8": value for k, value in filtered.items()}}


def make_nar(nar, data, stored):
    """Training passes, with the release's blank row of the codebook asked for, and iterative decoding."""
    places = _places(data, data["full_seqs"].transpose(1, 2))
    found = {"nar/t5_last_hidden": nar.t5_model(input_ids=places[0], attention_mask=places[1]).last_hidden_state}
    for number in range(3):
        name = f"nar/train{number}"
        draws = _masks(data, number) if not stored else {}
        draws = {key: stored.get(f"{name}/{key}", draws.get(key)) for key in DRAWS}
        found |= {f"{name}/{key}": value for key, value in draws.items()}
        found |= _train_nar(nar, places, data, name, draws, stored)
    for number, (prompt, steps) in enumerate([(0, 4), (3, 8)]):
        row, name = 1, f"nar/predict{number}"
        one = [part[row : row + 1] for part in places]
        start = int((one[3] == 1).sum()) + prompt
        one[2] = torch.where(
            (torch.arange(one[2].shape[2]) < start) | (torch.arange(CODEBOOKS) == 0)[:, None], one[2], 0
        )
        with torch.no_grad():
            filled, logits, revealed = _predict(nar, one, start, steps)
        found |= {
            f"{name}/x_in": one[2],
            f"{name}/segment_ids": one[3],
            f"{name}/prompt_len": torch.tensor(prompt),
            f"{name}/iter_step": torch.tensor(steps),
            f"{name}/row": torch.tensor(row),
            f"{name}/logits_all_calls": torch.cat(logits),
            f"{name}/x_after_each_codebook": torch.cat(filled),
            f"{name}/revealed_per_step": torch.tensor(revealed),
        }
    return found


def make_loop(number, ar, nar, data, stored):
    """A whole run: guided sampling with the release's range masks, then iterative decoding."""
    name = f"loop{number}"
    language, found = torch.tensor(number), {}
    text = stored.get(f"{name}/text_ids", data["text_ids"][1, : data["text_lens"][1]])
    padded = functional.pad(text, (0, SLOTS - len(text)))[None].long()
    begin, prompt = [BOS, 1 + number], torch.zeros(CODEBOOKS, 0, dtype=torch.long)
    if number == 1:
        units = _draw(stored, f"{name}/prompt_semantic_raw", lambda: _integers(SIZES["num_semantic"], 3))
        codes = _draw(stored, f"{name}/prompt_acoustic_raw", lambda: _integers(SIZES["codebook_size"], CODEBOOKS, 4))
        found |= {f"{name}/prompt_semantic_raw": units, f"{name}/prompt_acoustic_raw": codes}
        begin += (units + SEMANTIC).tolist()
        prompt = codes.long() + ACOUSTIC
    sampled, probabilities, ids, segments = [], [], list(begin), [1] * len(begin)
    acoustic = False
    for step in range(len(stored[f"{name}/sampled"]) if stored else MAX_SAMPLED):
        logits = _guided(ar, padded, ids, segments, acoustic)
        probabilities.append(_filter(logits, 50 if acoustic else 5).softmax(-1))
        token = int(stored[f"{name}/sampled"][step] if stored else torch.multinomial(probabilities[-1], 1))
        if not stored and step == MAX_SAMPLED - 6 and not acoustic:
            token = EOS1  # a run of new weights may never end its first stage
        if not stored and step == MAX_SAMPLED - 1:
            token = EOS2
        sampled.append(token)
        ids, segments = [*ids, token], [*segments, 2 if acoustic else 1]
        if token == EOS1:
            acoustic = True
            ids, segments = [*ids, *prompt[0].tolist()], [*segments, *[2] * prompt.shape[1]]
        if token == EOS2:
            break
    segments = torch.tensor([segments])
    start, end = int((segments == 1).sum()), int((segments == 1).sum()) + prompt.shape[1]
    rows = torch.tensor(ids)[None, None].repeat(1, CODEBOOKS, 1)
    rows[0, :, start:end] = prompt
    rows[0, 1:, end:] = 0
    filled, _, _ = _predict(nar, [padded, (padded > 0).long(), rows, segments], end, 4)
    return {
        **found,
        f"{name}/lang_id_raw": language,
        f"{name}/text_ids": text,
        f"{name}/probs": torch.stack(probabilities),
        f"{name}/sampled": torch.tensor(sampled),
        f"{name}/nar_in": rows,
        f"{name}/nar_out": filled[-1],
        f"{name}/segment_ids": segments,
        f"{name}/codes_to_vocoder": (filled[-1][0, :, end:-1] - ACOUSTIC).clamp(0, SIZES["codebook_size"] - 1),
        f"{name}/guidance_gamma_alpha_beta": torch.tensor(list(GUIDANCE.values())),
        f"{name}/nar_iter_steps": torch.tensor(4),
    }


DRAWS = ("layer_index", "keep_mask", "prompt_mask", "mask_ratio")


def _sequence(language, semantic, acoustic):
    """All codebooks of a clip: BOS, language, semantic ids, EOS1, codes, EOS2."""
    units = (torch.unique_consecutive(semantic) + SEMANTIC).tolist()
    head = torch.tensor([BOS, language + 1, *units, EOS1]).repeat(CODEBOOKS, 1)
    return torch.cat([head, acoustic.long(), torch.full((CODEBOOKS, 1), EOS2)], dim=1)


def _places(data, ids):
    """The arguments that every network takes."""
    return [data["text_ids"].long(), data["text_attn_mask"].long(), ids.long(), data["segment_ids"].long()]


def _loss(logits, target, valid):
    """Mean cross-entropy of the valid places, and how often the target is the best and among the ten best."""
    losses = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    best = logits.topk(10, dim=-1).indices == target[..., None]
    hits = [(best[..., :k].any(-1) * valid).sum() / valid.sum() for k in (1, 10)]
    return (losses * valid).sum() / valid.sum(), torch.stack(hits)


def _gradients(network, loss, name, stored):
    """Those that the stored file names, or all if there is none, and their norm."""
    network.zero_grad()
    loss.backward(retain_graph=True)
    grads = {key: weight.grad for key, weight in network.named_parameters() if weight.grad is not None}
    for key in grads:
        if "embed_tokens" in key:
            grads[key][0] = 0  # the row of padding does not train
    norm = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()
    chosen = [key for key in grads if not stored or f"{name}/grad/{key}" in stored]
    return {**{f"{name}/grad/{key}": grads[key] for key in chosen}, f"{name}/grad_l2_all": norm}


def _masks(data, number):
    """Codebooks, prompts (none in the first pass) and kept places at random."""
    segments, valid = data["segment_ids"], data["seq_attn_mask"].bool()
    rows, width = segments.shape
    starts, lengths = (segments == 1).sum(1), (segments == 2).sum(1)
    begin = starts + (torch.rand(rows) * lengths * (number > 0)).long()
    ratio = torch.cos(math.pi / 2 * torch.rand(rows))
    target = valid & (torch.arange(width) >= begin[:, None])
    count = ((starts + lengths - begin) * ratio).long().clamp(1)
    order = torch.where(target, torch.rand(rows, width), 2.0).argsort(1).argsort(1)
    return {
        "layer_index": torch.randint(1, CODEBOOKS, (rows,)),
        "keep_mask": ~(target & (order < count[:, None])),
        "prompt_mask": torch.arange(width) < begin[:, None],
        "mask_ratio": ratio,
    }


def _train_nar(nar, places, data, name, draws, stored):
    """Row q is visible in the prompt only: the mask of kept places then chooses where the loss counts."""
    text_ids, text_mask, ids, segments = places
    codebook, keep, prompt = draws["layer_index"].long(), draws["keep_mask"], draws["prompt_mask"]
    number = torch.arange(CODEBOOKS)[None, :, None]
    visible = (number < codebook[:, None, None]) | (
        prompt[:, None] & (keep[:, None] | (number != codebook[:, None, None]))
    )
    rows = torch.where(visible, ids, 0)
    logits = torch.cat(
        [
            nar(text_ids[i : i + 1], text_mask[i : i + 1], rows[i : i + 1], segments[i : i + 1], int(codebook[i]))
            for i in range(len(rows))
        ]
    )
    target = (ids[torch.arange(len(ids)), codebook] - ACOUSTIC).clamp(0)
    counted = data["seq_attn_mask"] * ~keep
    loss, accuracy = _loss(logits, target, counted)
    found = {
        f"{name}/logits": logits,
        f"{name}/target": target,
        f"{name}/target_mask": counted,
        f"{name}/loss": loss,
        f"{name}/acc_top1_top10": accuracy,
        f"{name}/act_mask_ratio": counted.sum(1) / (segments == 2).sum(1),
    }
    return found | (_gradients(nar, loss, name, stored) if name.endswith("2") else {})


def _predict(nar, places, start, steps):
    """Fills codebook after codebook, the surest places first; nothing is taken back."""
    text_ids, text_mask, rows, segments = places
    rows, filled, all_logits, revealed = rows.clone(), [], [], []
    total = rows.shape[2] - start
    for codebook in range(1, CODEBOOKS):
        open_places, before, revealed = torch.arange(rows.shape[2]) >= start, 0, []
        for step in range(steps):
            count = math.ceil(total * (1 - math.cos(math.pi / 2 * (step + 1) / steps)) - before)
            logits = nar(text_ids, text_mask, rows, segments, codebook)
            confidence = logits[0].softmax(-1).max(-1).values * open_places
            chosen = confidence.sort(descending=True).indices[:count]
            rows[0, codebook, chosen] = logits[0, chosen].argmax(-1) + ACOUSTIC
            open_places[chosen] = False
            before += count
            revealed.append(count)
            all_logits.append(logits)
        filled.append(rows.clone())
    return filled, all_logits, revealed


def _guided(ar, text_ids, ids, segments, acoustic):
    """Mixed logits of the last place, under the release's masks of range, which are off by two."""
    places = [text_ids, (text_ids > 0).long(), torch.tensor([ids]), torch.tensor([segments])]
    cond, text_free = (ar(*places, **CONDITIONS[name])[0, -1] for name in ("cond", "text_free"))
    if not acoustic:
        logits = text_free + GUIDANCE["gamma"] * (cond - text_free)
        logits[SIZES["num_semantic"] + 1 : EOS1] = HIDDEN
        logits[EOS2] = HIDDEN
        return logits
    semantic_free = ar(*places, **CONDITIONS["st_free"])[0, -1]
    guided = text_free + GUIDANCE["alpha"] * (cond - text_free)
    logits = semantic_free + GUIDANCE["beta"] * (guided - semantic_free)
    logits[: SIZES["num_semantic"] + 1] = HIDDEN
    logits[BOS : EOS1 + 1] = HIDDEN
    return logits


def _filter(logits, top_k, top_p=0.95, temperature=0.8):
    """Top-k, then top-p at temperature 1, then the temperature; the token that crosses top-p stays."""
    logits = logits.clone()
    logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = HIDDEN
    ordered, order = logits.sort(descending=True)
    above = ordered.softmax(-1).cumsum(-1) > top_p
    above = functional.pad(above[:-1], (1, 0))
    logits[order[above]] = HIDDEN
    return logits / temperature


def _draw(stored, name, draw):
    return stored[name] if stored else draw()


def _integers(high, *shape):
    return torch.randint(0, high, shape)


def _weights(name, network):
    return {f"{name}/w/{key}": value for key, value in network.state_dict().items()}


def _settings(ar):
    """Sizes, in the words of the release's settings and of mT5's."""
    config = {
        "lang_num": SIZES["num_languages"],
        "st_token_num": SIZES["num_semantic"],
        "at_token_num": SIZES["codebook_size"],
        "at_res_num": CODEBOOKS,
        "bos_id": BOS,
        "eos_id": EOS1,
        "mt5_out_dim": ar.prompt_fc.in_features,
        "lora_r": SIZES["lora_rank"],
        "lora_alpha": SIZES["lora_alpha"],
        "max_text_len": SLOTS,
        "max_len": 48,
        "num_layers": SIZES["num_layers"],
        "num_heads": SIZES["num_heads"],
        "hidden_dim": SIZES["dim"],
        "ffn_inner_dim": SIZES["ffn_dim"],
    }
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets")
    names = (*names, "relative_attention_max_distance", "tie_word_embeddings")
    return {
        "config/names": np.array(list(config)),
        "config/values": np.array(list(config.values())),
        "config/mt5_names": np.array(names),
        "config/mt5_values": np.array([int(getattr(ar.t5_model.config, name)) for name in names]),
    }


def _to_numpy(value):
    """As stored: float32, int32, bool and text."""
    array = value.detach().numpy() if isinstance(value, torch.Tensor) else value
    return array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype))


if __name__ == "__main__":
    sys.exit(main())
