#!/usr/bin/env python3
"""Experiments on the consensus rule, on a character model small enough to repeat often.

Each option is one way in which an implementation may differ: how a ballot is counted, which statistics a
vote is normalised by, how a step is cut into pieces, how the rates fall. The data order depends on the seed
alone, so two runs of one seed see the same batches. Validation windows are fixed.

  python rule_research.py --text tinyshakespeare.txt --steps 1500 --seed 1 --out runs.jsonl
Prints the validation loss as it goes and one JSON object with every option and the final loss at the end.
"""
import argparse
import json
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

HALF_GRID = [1 / 13, 1 / 11, 1 / 7, 1 / 5, 1 / 3, 1 / 2, 1.0]
GRID = torch.tensor([-v for v in reversed(HALF_GRID)] + [0.0] + HALF_GRID)
MIDPOINTS = (GRID[1:] + GRID[:-1]) / 2
FULL_BALLOT = 127
QUANTUM = 0.5 / FULL_BALLOT  # weight value of one vote, in units of the row scale: the largest gap is a full ballot
NO_NEIGHBOUR = torch.tensor([1e9])
THRESHOLD_UP = torch.cat([(GRID[1:] - GRID[:-1]) / QUANTUM, NO_NEIGHBOUR])
THRESHOLD_DOWN = torch.cat([NO_NEIGHBOUR, (GRID[1:] - GRID[:-1]) / QUANTUM])
TINY = 1e-20


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    corpus = Corpus(args)
    model = Gpt(args, corpus.vocab)
    matrices = [m for m in model.modules() if isinstance(m, GridMatrix)]
    vote_rng = torch.Generator().manual_seed(args.seed + 1_000_000)
    optimizer = float_optimizer(args, model, matrices)
    start = time.time()
    for step in range(args.steps):
        vote_rate = rate(args, step, args.vote_final, args.vote_cooldown)
        float_rate = rate(args, step, args.float_final, args.float_cooldown)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * float_rate
        optimizer.zero_grad(set_to_none=True)
        tokens, targets = corpus.train_batch()
        for x, y in zip(tokens.chunk(args.pieces), targets.chunk(args.pieces)):
            loss = model(x, y)
            loss.backward()
            for matrix in matrices:
                matrix.cast(vote_rate, vote_rng)
        for parameter in model.parameters():
            parameter.grad.div_(args.pieces)
        if args.grad_clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        for matrix in matrices:
            matrix.count(vote_rate, vote_rng)
        if step % 100 == 99:
            print(f"step {step + 1} train {loss.item():.3f}", flush=True)
        if step % 500 == 499 and step + 1 < args.steps:
            print(f"step {step + 1} val {corpus.validate(model):.4f} {time.time() - start:.0f} s", flush=True)
    options = {k: v for k, v in vars(args).items() if k not in ("text", "out", "threads")}
    result = {"val": round(corpus.validate(model), 4), "seconds": round(time.time() - start), **options}
    if matrices and args.pieces > 1:
        result["corrections"] = [round(float(m.correction().mean()), 3) for m in matrices]
    print(json.dumps(result), flush=True)
    if args.out:
        with open(args.out, "a") as file:
            file.write(json.dumps(result) + "\n")


def rate(args, step, final, cooldown):
    """Linear warm-up, cosine to `final`, times a linear fall to zero over the last `cooldown` of the run."""
    warm = min(1.0, (step + 1) / args.warmup)
    cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
    tail = cooldown * args.steps
    return warm * cosine * (min(1.0, (args.steps - step) / tail) if tail > 0 else 1.0)


def float_optimizer(args, model, matrices):
    scales = [m.scale for m in matrices]
    chosen = {id(p) for p in scales}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    decayed, plain = [p for p in rest if p.dim() > 1], [p for p in rest if p.dim() == 1]
    groups = [{"params": plain, "lr": args.lr, "weight_decay": 0.1 if args.decay_norms else 0.0}]
    if decayed:
        groups.append({"params": decayed, "lr": args.lr, "weight_decay": 0.1})
    if scales:
        groups.append({"params": scales, "lr": args.lr * args.scale_lr_ratio, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


class GridMatrix(nn.Module):
    """A matrix of codes with a scale a row, moved by votes."""

    def __init__(self, args, n_in, n_out, std):
        super().__init__()
        self.args = args
        weight = torch.randn(n_out, n_in) * std
        scale = torch.full((n_out, 1), args.scale_per_std * std)
        self.scale = nn.Parameter(scale)
        self.codes = nearest(weight / scale)
        self.ballot = torch.zeros(n_out, n_in)
        self.votes = torch.zeros(n_out, n_in)
        self.row_sq = Running(args.stat_decay, torch.zeros(n_out, 1))
        self.column_sq = Running(args.stat_decay, torch.zeros(1, n_in))
        shape = (n_out, 1) if args.correction == "row" else (1, 1)
        self.sum_sq = Running(args.correction_decay, torch.zeros(shape))     # of the summed votes, rounding noise removed
        self.piece_sq = Running(args.correction_decay, torch.zeros(shape))   # of the pieces' own votes, times pieces
        self.piece_rows, self.piece_columns, self.rounding, self.vote_sq = [], [], 0.0, 0.0

    def dense(self):
        self.values = GRID[self.codes].requires_grad_(True)
        return self.values * self.scale

    @torch.no_grad()
    def cast(self, vote_rate, rng):
        args, grad = self.args, self.values.grad
        row, column = grad.pow(2).mean(1, keepdim=True), grad.pow(2).mean(0, keepdim=True)
        self.piece_rows.append(row)
        self.piece_columns.append(column)
        if args.stats == "current":
            row_sq, column_sq = self.row_sq.peek(row), self.column_sq.peek(column)
        elif args.stats == "lagged":    # the row is known when it votes, the column sums only after the last row
            row_sq = self.row_sq.peek(row)
            column_sq = self.column_sq.value() if self.column_sq.count else torch.ones_like(column)
        else:                           # summed: means of the squared mean gradient, estimated from the votes
            first = self.row_sq.count == 0
            row_sq = row / args.pieces if first else self.row_sq.value()
            column_sq = column if first else self.column_sq.value()
        if args.row_max:
            row_sq = torch.maximum(row_sq, row)
        correction = self.correction()
        column_share = (column_sq / (column_sq.mean() + TINY)).clamp_min(args.min_column)
        sigma_sq = row_sq * column_share * correction
        self.unit = (args.eta * vote_rate / (QUANTUM * args.pieces)) / (sigma_sq + TINY).sqrt()
        u = -grad * self.unit
        if args.clip > 0:
            limit = args.clip * args.eta * vote_rate / (QUANTUM * args.pieces) / correction.sqrt()
            u = u.clamp(-limit, limit)
        fine = 2 ** args.vote_fraction_bits
        self.votes += torch.floor(u * fine + torch.rand(u.shape, generator=rng)) / fine
        fraction = (u.abs() * fine).frac()
        rounding = fraction * (1 - fraction) / fine ** 2
        dims = 1 if args.correction == "row" else (0, 1)
        if args.stats == "summed":
            self.rounding = self.rounding + rounding
        else:
            self.rounding = self.rounding + rounding.sum(dims, keepdim=True)
            self.vote_sq = self.vote_sq + u.pow(2).sum(dims, keepdim=True)

    def correction(self):
        """Second moment of the mean gradient as a fraction of a piece's own."""
        if self.args.correction in ("none", "fixed") or self.args.pieces == 1 or not self.sum_sq.count:
            floor = 1.0 if self.args.correction == "none" else 1.0 / self.args.pieces
            return torch.full_like(self.sum_sq.total, floor)
        return (self.sum_sq.total / (self.piece_sq.total + TINY)).clamp(1 / self.args.pieces, 1.0)

    @torch.no_grad()
    def count(self, vote_rate, rng):
        args = self.args
        if args.stats == "summed":      # votes back to gradients: a vote is worth 1 / (unit · pieces)
            mean_sq = (self.votes.pow(2) - self.rounding) / (self.unit * args.pieces).pow(2)
            self.row_sq.push(mean_sq.mean(1, keepdim=True).clamp_min(0))
            self.column_sq.push(mean_sq.mean(0, keepdim=True).clamp_min(0))
        else:
            self.row_sq.push(sum(self.piece_rows) / args.pieces)
            self.column_sq.push(sum(self.piece_columns) / args.pieces)
            dims = 1 if args.correction == "row" else (0, 1)
            self.sum_sq.push(self.votes.pow(2).sum(dims, keepdim=True) - self.rounding)
            self.piece_sq.push(self.vote_sq * args.pieces)
        self.piece_rows, self.piece_columns, self.rounding, self.vote_sq = [], [], 0.0, 0.0
        if args.vote_fraction_bits:
            self.votes = torch.floor(self.votes + torch.rand(self.votes.shape, generator=rng))
        noise = torch.rand(self.ballot.shape, generator=rng)
        leak = vote_rate / args.tau
        if args.count == "prototype":   # leak, add, real thresholds, round what is left
            leaked = torch.floor(self.ballot * (1 - leak) + noise)
            ballot = (leaked + self.votes).clamp(-FULL_BALLOT, FULL_BALLOT)
            up, down = THRESHOLD_UP, THRESHOLD_DOWN
        else:                           # add, leak, integer thresholds
            ballot = (self.ballot + self.votes).clamp(-FULL_BALLOT, FULL_BALLOT)
            ballot -= ballot.sign() * torch.floor(ballot.abs() * leak + noise)
            up, down = THRESHOLD_UP.round(), THRESHOLD_DOWN.round()
        threshold = torch.where(ballot > 0, up[self.codes], down[self.codes])
        flip = ballot.sign() * (ballot.abs() >= threshold.clamp(max=1e9))
        self.ballot = torch.where(flip != 0, ballot - flip * threshold, ballot).round()
        self.codes = self.codes + flip.long()
        self.votes.zero_()


class Running:
    """A running mean that is right from the first value on."""

    def __init__(self, decay, zero):
        self.decay, self.total, self.count = decay, zero, 0

    def peek(self, value):
        """The mean as it would be with `value`, which is not kept."""
        return (self.total * self.decay + value * (1 - self.decay)) / (1 - self.decay ** (self.count + 1))

    def push(self, value):
        self.total, self.count = self.total * self.decay + value * (1 - self.decay), self.count + 1

    def value(self):
        return self.total / (1 - self.decay ** self.count)


class Linear(nn.Module):
    def __init__(self, args, n_in, n_out, std):
        super().__init__()
        if args.rule == "consensus":
            self.grid = GridMatrix(args, n_in, n_out, std)
        else:
            self.weight = nn.Parameter(torch.randn(n_out, n_in) * std)

    def dense(self):
        return self.grid.dense() if hasattr(self, "grid") else self.weight

    def forward(self, x):
        return F.linear(x, self.dense())


class Embedding(Linear):
    def __init__(self, args, n, width):
        super().__init__(args, width, n, args.embedding_std)

    def forward(self, ids):
        return F.embedding(ids, self.dense())


class Block(nn.Module):
    def __init__(self, args):
        super().__init__()
        width, small = args.width, args.init_std / math.sqrt(2 * args.layers)
        self.heads = args.heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.attention_out = Linear(args, width, 3 * width, args.init_std), Linear(args, width, width, small)
        self.up, self.down = Linear(args, width, 4 * width, args.init_std), Linear(args, 4 * width, width, small)

    def forward(self, x):
        batch, steps, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, steps, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, steps, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, args, vocab):
        super().__init__()
        self.tok_embedding = Embedding(args, vocab, args.width)
        self.pos_embedding = Embedding(args, args.context, args.width)
        self.blocks = nn.ModuleList(Block(args) for _ in range(args.layers))
        self.norm, self.head = nn.LayerNorm(args.width, bias=False), Linear(args, args.width, vocab, args.init_std)

    def forward(self, tokens, targets):
        x = self.tok_embedding(tokens) + self.pos_embedding(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


class Corpus:
    """Characters of one file: the first nine tenths train, windows of the rest validate."""

    def __init__(self, args):
        text = open(args.text).read()
        chars = sorted(set(text))
        index = {c: i for i, c in enumerate(chars)}
        data = torch.tensor([index[c] for c in text])
        cut = int(0.9 * len(data))
        self.vocab, self.train, self.val = len(chars), data[:cut], data[cut:]
        self.batch, self.context = args.batch, args.context
        self.rng = torch.Generator().manual_seed(args.seed)

    def train_batch(self):
        return self.sample(self.train, self.batch, self.rng)

    @torch.no_grad()
    def validate(self, model, batches=10):
        rng = torch.Generator().manual_seed(7)
        return sum(model(*self.sample(self.val, 64, rng)).item() for _ in range(batches)) / batches

    def sample(self, data, count, rng):
        starts = torch.randint(len(data) - self.context - 1, (count, 1), generator=rng)
        window = data[starts + torch.arange(self.context + 1)]
        return window[:, :-1], window[:, 1:]


def nearest(x):
    return torch.bucketize(x, MIDPOINTS)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", required=True)
    add("--out", help="append the result to this JSONL file")
    add("--rule", choices=["consensus", "adamw"], default="consensus")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--steps", type=int, default=1500)
    add("--batch", type=int, default=12)
    add("--layers", type=int, default=2)
    add("--heads", type=int, default=4)
    add("--width", type=int, default=96)
    add("--context", type=int, default=64)
    add("--init-std", type=float, default=0.05)
    add("--embedding-std", type=float, default=0.02)
    add("--scale-per-std", type=float, default=3.5)
    add("--eta", type=float, default=0.04)
    add("--tau", type=float, default=1000)
    add("--stat-decay", type=float, default=0.95)
    add("--lr", type=float, default=3e-3)
    add("--scale-lr-ratio", type=float, default=0.1)
    add("--grad-clip", type=float, default=1.0)
    add("--decay-norms", action="store_true", help="weight decay of the norm weights too, as in the prototype")
    add("--warmup", type=int, default=100)
    add("--vote-final", type=float, default=0.1)
    add("--vote-cooldown", type=float, default=0.0)
    add("--float-final", type=float, default=0.1)
    add("--float-cooldown", type=float, default=0.0)
    add("--count", choices=["prototype", "engine"], default="engine")
    add("--stats", choices=["current", "lagged", "summed"], default="lagged",
        help="current: with this batch's rows and columns; lagged: columns one step late; "
             "summed: of the mean gradient, estimated from the summed votes")
    add("--row-max", action="store_true", help="a row's own mean square when it exceeds the running mean")
    add("--min-column", type=float, default=0.0, help="least column statistic, as a fraction of their mean")
    add("--clip", type=float, default=0.0, help="clip a piece's gradient to this many of its own sigma; 0 is off")
    add("--pieces", type=int, default=1, help="micro-batches that a step's batch is cut into")
    add("--vote-fraction-bits", type=int, default=0,
        help="pieces vote in 2^-bits of a vote, and the sum is rounded to whole votes once a step")
    add("--correction", choices=["none", "fixed", "matrix", "row"], default="matrix",
        help="variance of the mean gradient as a fraction of a piece's: 1, 1/pieces, or measured from the votes")
    add("--correction-decay", type=float, default=0.95)
    args = parser.parse_args()
    if args.batch % args.pieces:
        parser.error("--pieces must divide --batch")
    return args


if __name__ == "__main__":
    main()
