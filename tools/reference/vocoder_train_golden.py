"""Golden values of primal-vocoder's training: losses and gradients in PyTorch, float64.

    python tools/reference/vocoder_train_golden.py --out primal-vocoder/tests/golden/train

The networks are stated here with torch.nn.functional and differentiated by autograd: two tiny generators under the mel and the
multi-resolution STFT loss, and HiFi-GAN's discriminators, 128 channels wide, under least-squares and feature matching losses.
Weights are functions of (name, index) that the tests compute too. Of a gradient, its norm and its product with such numbers are
kept, a pair a tensor.
"""
import argparse
import hashlib
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vocoder_golden import TINY_1, TINY_2, generator, layers, mel_input, noise, state

SAMPLES = 2400
WIDTH = 128
PERIODS = [2, 3, 5, 7, 11]


def bank(n_fft, rate=22050, bands=80):
    def mel_to_hz(m):
        return np.where(m < 15, m * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (m - 15)))

    top = 15 + 27 * math.log(rate / 2 / 1000) / math.log(6.4)
    edges = mel_to_hz(np.linspace(0, top, bands + 2))
    hz = np.arange(n_fft // 2 + 1) * rate / n_fft
    up = (hz[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hz[None]) / (edges[2:] - edges[1:-1])[:, None]
    return torch.from_numpy(np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None])


def magnitudes(x, n_fft, hop, win, pad, epsilon):
    x = F.pad(x[None, None], (pad, pad), mode="reflect")[0]
    window = torch.hann_window(win, dtype=torch.float64)
    s = torch.stft(x, n_fft, hop, win, window, center=False, return_complex=True)[0]
    return torch.sqrt(s.real ** 2 + s.imag ** 2 + epsilon)


def spectral_losses(y, x, hop, bands):
    def log_mel(x):
        return torch.log(torch.clamp(bank(1024, bands=bands) @ magnitudes(x, 1024, hop, 1024, (1024 - hop) // 2, 1e-9), min=1e-5))

    mel = F.l1_loss(log_mel(x), log_mel(y))
    stft = 0
    for n_fft, hop, win in [(512, 50, 240), (1024, 120, 600), (2048, 240, 1200)]:
        a, b = (magnitudes(s, n_fft, hop, win, n_fft // 2, 1e-7) for s in [x, y])
        stft = stft + (torch.norm(b - a) / torch.norm(b) + F.l1_loss(torch.log(a), torch.log(b))) / 3
    return mel, stft


def judge_shapes():
    """(discriminator, period or None, halvings, [(c_in, c_out, kernel, stride, groups)])"""
    for p in PERIODS:
        widths = [1, WIDTH // 32, WIDTH // 8, WIDTH // 2, WIDTH, WIDTH]
        rows = [(a, b, 5, 3 if i < 4 else 1, 1) for i, (a, b) in enumerate(zip(widths, widths[1:]))]
        yield f"mpd.{p}", p, 0, rows + [(WIDTH, 1, 3, 1, 1)]
    for s in range(3):
        rows, c = [], 1
        for part, kernel, stride, groups in [(8, 15, 1, 1), (8, 41, 2, 4), (4, 41, 2, 16), (2, 41, 4, 16), (1, 41, 4, 16), (1, 41, 1, 16), (1, 5, 1, 1)]:
            rows.append((c, WIDTH // part, kernel, stride, groups))
            c = WIDTH // part
        yield f"msd.{s}", None, s, rows + [(c, 1, 3, 1, 1)]


def judge_weights():
    out = {}
    for name, _, _, rows in judge_shapes():
        for i, (c_in, c_out, kernel, _, groups) in enumerate(rows):
            shape = (c_out, c_in // groups, kernel)
            scale = np.float32(1.5 / math.sqrt(shape[1] * kernel))
            layer = f"{name}.convs.{i}"
            out[layer + ".weight"] = torch.from_numpy(noise(layer + ".w", math.prod(shape)).reshape(shape) * scale).double()
            out[layer + ".bias"] = torch.from_numpy(noise(layer + ".b", c_out) * np.float32(0.1)).double()
    return out


def judge(w, x):
    """The features of every discriminator, the last of each its judgement."""
    scales = [x[None, None]]
    for _ in range(2):
        scales.append(F.avg_pool1d(scales[-1], 4, 2, 2))
    seen = []
    for name, p, s, rows in judge_shapes():
        x, features = scales[s], []
        if p:
            x = F.pad(x, (0, -x.shape[2] % p), mode="reflect")
            x = x.reshape(1, 1, -1, p)
        for i, (_, _, kernel, stride, groups) in enumerate(rows):
            weight, bias = (w[f"{name}.convs.{i}.{part}"] for part in ["weight", "bias"])
            if p:
                x = F.conv2d(x, weight[..., None], bias, stride=(stride, 1), padding=((kernel - 1) // 2, 0))
            else:
                x = F.conv1d(x, weight, bias, stride=stride, padding=(kernel - 1) // 2, groups=groups)
            if i + 1 < len(rows):
                x = F.leaky_relu(x, 0.1)
            features.append(x)
        seen.append(features)
    return seen


def pair(name, gradient):
    """The norm of a gradient and its product with numbers of its name."""
    direction = torch.from_numpy(noise(name + ".d", gradient.numel())).double()
    return torch.stack([gradient.norm(), gradient.flatten() @ direction])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    golden = {}
    target = torch.from_numpy(noise("target", SAMPLES) * np.float32(0.5)).double()

    for name, c, hop in [("tiny1", TINY_1, 12), ("tiny2", TINY_2, 20)]:
        tensors = {key: value.double().requires_grad_() for key, value in state(c, "folded").items()}
        samples = generator(c, tensors, mel_input(c, SAMPLES // hop), grad=True)["samples"][0]
        mel, stft = spectral_losses(target, samples, hop, c["mels"])
        samples.retain_grad()
        (45 * mel + 2 * stft).backward()
        golden[f"{name}.losses"] = torch.stack([mel, stft]).detach()
        golden[f"{name}.d_sound"] = samples.grad
        for layer, *_ in layers(c):
            for part in ["weight", "bias"]:
                golden[f"{name}.{layer}.{part}"] = pair(f"{layer}.{part}", tensors[f"{layer}.{part}"].grad)

    w = {key: value.requires_grad_() for key, value in judge_weights().items()}
    sound = torch.from_numpy(noise("sound", SAMPLES) * np.float32(0.5)).double().requires_grad_()
    real, fake = judge(w, target), judge(w, sound)
    loss = sum(((1 - r[-1]) ** 2).mean() + (f[-1] ** 2).mean() for r, f in zip(real, fake))
    gradients = torch.autograd.grad(loss, list(w.values()), retain_graph=True)
    golden["judges.loss"] = loss.detach()[None]
    for key, gradient in zip(w, gradients):
        golden[f"judges.{key}"] = pair(key, gradient)
    adversarial = sum(((1 - f[-1]) ** 2).mean() for f in fake)
    features = sum((a - b).abs().mean() for r, f in zip(real, fake) for a, b in zip(r, f))
    golden["deceive.losses"] = torch.stack([adversarial, features]).detach()
    golden["deceive.d_sound"] = torch.autograd.grad(adversarial + 2 * features, sound)[0]

    path = args.out / "train.safetensors"
    save_file({key: value.detach().float().contiguous() for key, value in golden.items()}, path)
    data, version = path.read_bytes(), torch.__version__.split("+")[0]
    (args.out / "MANIFEST.toml").write_text(
        "# Golden values of the tests: where each file comes from.\n\n"
        f'[[file]]\nname = "{path.name}"\nsha256 = "{hashlib.sha256(data).hexdigest()}"\nbytes = {len(data)}\n'
        f'origin = "tools/reference/vocoder_train_golden.py, PyTorch {version}, float64 on the CPU"\n'
        'command = "python tools/reference/vocoder_train_golden.py --out primal-vocoder/tests/golden/train"\n')
    print({key: value.tolist() for key, value in golden.items() if "loss" in key}, len(data), "bytes")


if __name__ == "__main__":
    main()
