"""Golden values of primal-vocoder: the HiFi-GAN generator and its mel spectrogram in PyTorch, float64.

    python tools/reference/vocoder_golden.py --out primal-vocoder/tests/golden

The generator is stated here in a few lines, after the paper and the behaviour of the two implementations whose
checkpoints are read: the official one (zero padding) and SpeechBrain's (mirrored padding, `.conv.` in names). With
`--speechbrain` the statement is checked against the installed speechbrain package first. Weights of the full-sized
networks are not stored: they are functions of (name, index) that the tests compute too.
"""
import argparse
import hashlib
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

GOLDEN_RATIO = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def noise(name, count):
    """`count` numbers in -1..1, a function of the name and the index (FNV-1a, then SplitMix64's finaliser)."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_RATIO))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)).astype(np.float32)


V1 = dict(resblock="1", rates=[8, 8, 2, 2], kernels=[16, 16, 4, 4], channels=512, mels=80,
          block_kernels=[3, 7, 11], dilations=[[1, 3, 5]] * 3)
V2 = dict(V1, channels=128)
V3 = dict(resblock="2", rates=[8, 8, 4], kernels=[16, 16, 8], channels=256, mels=80,
          block_kernels=[3, 5, 7], dilations=[[1, 2], [2, 6], [3, 12]])
TINY_1 = dict(resblock="1", rates=[4, 3], kernels=[8, 7], channels=8, mels=5, block_kernels=[3, 5], dilations=[[1, 3, 2], [1, 2, 1]])
TINY_2 = dict(resblock="2", rates=[5, 2, 2], kernels=[5, 4, 4], channels=8, mels=5, block_kernels=[5, 3], dilations=[[1], [4, 2]])


def layers(c):
    """(name, shape of the weight, size of the bias, norm of a row of the weight) of every layer."""
    yield "conv_pre", (c["channels"], c["mels"], 7), c["channels"], 0.5
    for i, (rate, kernel) in enumerate(zip(c["rates"], c["kernels"])):
        n_in, n_out = c["channels"] >> i, c["channels"] >> (i + 1)
        yield f"ups.{i}", (n_in, n_out, kernel), n_out, 0.7 * math.sqrt(rate)
        for j, (k, dilations) in enumerate(zip(c["block_kernels"], c["dilations"])):
            for d in range(len(dilations)):
                for part in ["convs1", "convs2"] if c["resblock"] == "1" else ["convs"]:
                    yield f"resblocks.{i * len(c['block_kernels']) + j}.{part}.{d}", (n_out, n_out, k), n_out, 0.7
    yield "conv_post", (1, c["channels"] >> len(c["rates"]), 7), 1, 0.5


def state(c, form):
    """A state dict in one of the forms that checkpoints have; `norm` scales every row before its direction counts."""
    out = {}
    for name, shape, bias, norm in layers(c):
        v = noise(name + ".v", math.prod(shape)).reshape(shape)
        g = (np.float32(norm) * (np.float32(1) + np.float32(0.25) * noise(name + ".g", shape[0]))).reshape(-1, 1, 1)
        if form == "folded":
            out[name + ".weight"] = v * np.float32(norm * math.sqrt(3 / math.prod(shape[1:])))
        elif form == "parametrizations":
            out[name + ".parametrizations.weight.original0"] = g
            out[name + ".parametrizations.weight.original1"] = v
        else:
            out[name + ".weight_g"] = g
            out[name + ".weight_v"] = v
        out[name + ".bias"] = np.float32(0.1) * noise(name + ".b", bias)
    return {name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in out.items()}


def weight(tensors, name):
    if name + ".weight" in tensors:
        return tensors[name + ".weight"].double()
    parts = ["weight_g", "weight_v"] if name + ".weight_g" in tensors else ["parametrizations.weight.original0", "parametrizations.weight.original1"]
    g, v = (tensors[f"{name}.{part}"].double() for part in parts)
    return g * v / v.flatten(1).norm(dim=1).reshape(-1, 1, 1)


def generator(c, tensors, mel, reflect=False, grad=False):
    """The forward pass; gives the tensor behind every stage and the samples, in float64 for `grad`. mel: (bands, frames)."""
    def conv(name, x, dilation=1):
        w, b = weight(tensors, name), tensors[name + ".bias"].double()
        pad = (w.shape[2] - 1) * dilation // 2
        x = F.pad(x, (pad, pad), mode="reflect") if reflect else F.pad(x, (pad, pad))
        return F.conv1d(x, w, b, dilation=dilation)

    seen = {}
    x = seen["conv_pre"] = conv("conv_pre", mel.double()[None])
    for i, (rate, kernel) in enumerate(zip(c["rates"], c["kernels"])):
        w, b = weight(tensors, f"ups.{i}"), tensors[f"ups.{i}.bias"].double()
        x = seen[f"ups.{i}"] = F.conv_transpose1d(F.leaky_relu(x, 0.1), w, b, stride=rate, padding=(kernel - rate) // 2)
        total = 0
        for j, dilations in enumerate(c["dilations"]):
            y = x
            for d, dilation in enumerate(dilations):
                block = f"resblocks.{i * len(c['dilations']) + j}"
                if c["resblock"] == "1":
                    z = conv(f"{block}.convs1.{d}", F.leaky_relu(y, 0.1), dilation)
                    y = y + conv(f"{block}.convs2.{d}", F.leaky_relu(z, 0.1))
                else:
                    y = y + conv(f"{block}.convs.{d}", F.leaky_relu(y, 0.1), dilation)
            total = total + y
        x = seen[f"stage.{i}"] = total / len(c["dilations"])
    seen["samples"] = torch.tanh(conv("conv_post", F.leaky_relu(x, 0.01)))
    if grad:
        return {name: value[0] for name, value in seen.items()}
    return {name: value[0].float().contiguous() for name, value in seen.items()}


def mel_input(c, frames):
    """Log-mel values between -11 and 1."""
    return torch.from_numpy(noise("mel", c["mels"] * frames).reshape(c["mels"], frames) * np.float32(6) - np.float32(5))


def mel_spectrogram(samples):
    """The official convention: 1024 samples, hop 256, not centred, magnitude, 80 Slaney bands to 8 kHz, log."""
    n_fft, hop, rate = 1024, 256, 22050
    pad = (n_fft - hop) // 2
    x = F.pad(samples.double()[None, None], (pad, pad), mode="reflect")[0]
    spectrum = torch.stft(x, n_fft, hop, n_fft, torch.hann_window(n_fft, dtype=torch.float64), center=False, return_complex=True)[0]
    magnitude = torch.sqrt(spectrum.real ** 2 + spectrum.imag ** 2 + 1e-9)

    def mel_to_hz(m):
        return np.where(m < 15, m * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (m - 15)))

    top = 15 + 27 * math.log(8000 / 1000) / math.log(6.4)
    edges = mel_to_hz(np.linspace(0, top, 82))
    hz = np.arange(n_fft // 2 + 1) * rate / n_fft
    up = (hz[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hz[None]) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.log(torch.clamp(torch.from_numpy(bank) @ magnitude, min=1e-5)).float()


def speechbrain_names(tensors):
    """SpeechBrain wraps every convolution: `conv_pre.conv.weight_g`."""
    out = {}
    for name, value in tensors.items():
        layer, part = name.rsplit(".", 1) if "parametrizations" not in name else name.split(".parametrizations", 1)
        out[f"{layer}.conv.{part}" if "parametrizations" not in name else f"{layer}.conv.parametrizations{part}"] = value
    return out


def check_speechbrain(c, tensors, mel, ours):
    from speechbrain.lobes.models.HifiGAN import HifiganGenerator
    net = HifiganGenerator(c["mels"], 1, c["resblock"], c["dilations"], c["block_kernels"], c["kernels"], c["channels"], c["rates"]).double()
    net.remove_weight_norm()
    names = [name for name, _, _, _ in layers(c)]
    wrapped = {f"{name}.conv.weight": weight(tensors, name) for name in names}
    wrapped |= {f"{name}.conv.bias": tensors[name + ".bias"].double() for name in names}
    net.load_state_dict(wrapped)
    theirs = net.inference(mel.double()[None])[0].detach()
    print("largest difference from speechbrain", (theirs - ours).abs().max().item())
    assert theirs.shape == ours.shape and (theirs - ours).abs().max() < 1e-6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--speechbrain", action="store_true", help="check the statement against the installed package")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    golden = {}
    for name, c, form, frames in [("v1", V1, "norm", 12), ("v2", V2, "parametrizations", 12), ("v3", V3, "folded", 12)]:
        mel = mel_input(c, frames)
        golden[name] = generator(c, state(c, form), mel)["samples"]
        print(name, "samples", golden[name].shape, "std", golden[name].std().item())
    for name, c, form, reflect in [("tiny1", TINY_1, "norm", False), ("tiny2", TINY_2, "norm", False), ("mirrored", TINY_1, "parametrizations", True)]:
        mel = mel_input(c, 9)
        tensors = state(c, form)
        if reflect:
            mel = F.pad(mel[None], (5, 5), mode="replicate")[0]
        seen = generator(c, tensors, mel, reflect)
        print(name, {key: (list(value.shape), round(value.std().item(), 3)) for key, value in seen.items()})
        golden |= {f"{name}.{key}": value for key, value in seen.items()}
        if reflect:
            if args.speechbrain:
                check_speechbrain(c, tensors, mel_input(c, 9), seen["samples"])
            torch.save(speechbrain_names(tensors), args.out / "tiny_speechbrain.ckpt")
        elif name == "tiny1":
            torch.save({"generator": tensors}, args.out / "tiny_official.pth")
    samples = noise("samples", 6000) * np.float32(0.5)
    samples[3000:] *= np.float32(1e-3)
    golden["mel"] = mel_spectrogram(torch.from_numpy(samples))
    save_file(golden, args.out / "vocoder.safetensors")

    version = torch.__version__.split("+")[0]
    rows = []
    for path in sorted(args.out.iterdir()):
        if path.suffix in [".safetensors", ".pth", ".ckpt"]:
            data = path.read_bytes()
            rows.append(f'[[file]]\nname = "{path.name}"\nsha256 = "{hashlib.sha256(data).hexdigest()}"\nbytes = {len(data)}\n'
                        f'origin = "tools/reference/vocoder_golden.py, PyTorch {version}, float64 on the CPU"\n'
                        f'command = "python tools/reference/vocoder_golden.py --out primal-vocoder/tests/golden"\n')
    (args.out / "MANIFEST.toml").write_text("# Golden values of the tests: where each file comes from.\n\n" + "\n".join(rows))
    print(json.dumps({path.name: path.stat().st_size for path in args.out.iterdir()}))


if __name__ == "__main__":
    main()
