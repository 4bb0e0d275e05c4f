#!/usr/bin/env python3
"""Training speed of the shakespeare-char model in PyTorch eager on the CPU, float32 weights.

The model of preset `shakespeare-char`: 4 layers, 4 heads, 128 wide, feed-forward 512, context 64, batch 12,
65 characters, LayerNorm before each part, no biases, learned positions, GELU (tanh), head of its own.
A step draws a batch, runs forward, backward, the gradient clip and AdamW, as the training loop does.

  python char_speed.py --threads 2
Prints one JSON line: tokens_per_s (median over the repetitions), min, max, threads, torch, step_ms.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

LAYERS, HEADS, WIDTH, FF_WIDTH, CONTEXT, BATCH, VOCAB = 4, 4, 128, 512, 64, 12, 65


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = Gpt()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=args.fused)
    text = torch.randint(VOCAB, (1_000_000,))  # contents do not matter for the time
    offsets = torch.arange(CONTEXT + 1)

    def step():
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1))
        window = text[starts + offsets]
        loss = model(window[:, :-1], window[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(args.steps):
        step()  # warm-up
    seconds = []
    for _ in range(args.reps):
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        seconds.append((time.perf_counter() - start) / args.steps)
    speeds = [BATCH * CONTEXT / s for s in seconds]
    print(json.dumps({
        "tokens_per_s": round(statistics.median(speeds), 1),
        "min": round(min(speeds), 1),
        "max": round(max(speeds), 1),
        "threads": args.threads,
        "torch": torch.__version__,
        "step_ms": round(1e3 * statistics.median(seconds), 3),
        "fused_adamw": args.fused,
        "reps": args.reps,
        "steps_per_rep": args.steps,
    }))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, FF_WIDTH, bias=False)
        self.down = nn.Linear(FF_WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, time_, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, time_, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, time_, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_embedding = nn.Embedding(VOCAB, WIDTH)
        self.pos_embedding = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens, targets):
        x = self.tok_embedding(tokens) + self.pos_embedding.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=7, help="timed repetitions")
    parser.add_argument("--steps", type=int, default=50, help="steps a repetition")
    parser.add_argument("--fused", action="store_true", help="the fused AdamW kernel instead of the default loop")
    return parser.parse_args()


if __name__ == "__main__":
    main()
