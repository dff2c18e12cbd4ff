"""The PyTorch side of `train.py`: a worker that takes some train steps a line of input and answers with the seconds."""

import json
import math
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not take the cores from the other side

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm attention with rotary positions and a gated feed-forward, no biases."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(dim, eps=1e-6) for _ in range(2)])
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(dim, ffn_dim, bias=False) for _ in range(2))
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        query, key, value = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(turn(query, rotary), turn(key, rotary), value, is_causal=True)
        x = x + self.output(y.transpose(1, 2).flatten(-2))
        y = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


def turn(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotates halves of each head."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = rotary
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Model(nn.Module):
    """Blocks, a norm and a head."""

    def __init__(self, sizes: dict) -> None:
        super().__init__()
        dim, heads = sizes["model_dim"], sizes["num_heads"]
        self.blocks = nn.ModuleList([Block(dim, heads, sizes["ffn_dim"]) for _ in range(sizes["num_layers"])])
        self.norm, self.head = nn.RMSNorm(dim, eps=1e-6), nn.Linear(dim, sizes["vocab"], bias=False)
        half = dim // heads // 2
        angles = torch.arange(sizes["time"])[:, None] * torch.exp(-math.log(1e4) * torch.arange(half) / half)
        self.register_buffer("rotary", torch.stack([angles.cos(), angles.sin()]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, self.rotary)
        return self.head(self.norm(x))


def main() -> int:
    """Answers until the input ends."""
    sizes = json.loads(sys.argv[1])
    torch.set_num_threads(sizes["threads"])
    model = Model(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    x = torch.randn(sizes["rows"], sizes["time"], sizes["model_dim"])
    targets = torch.randint(0, sizes["vocab"], (sizes["rows"], sizes["time"]))

    def steps() -> None:
        for _ in range(sizes["steps"]):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(x).flatten(0, 1), targets.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    steps()
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        steps()
        print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
