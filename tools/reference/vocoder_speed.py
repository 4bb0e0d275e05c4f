"""Speed of the HiFi-GAN generator in PyTorch eager, float32: the other side of our ratio.

    python tools/reference/vocoder_speed.py --threads N [--seconds 10] [--reps 5] [--versions v1,v2,v3]

Random weights, weight normalisation folded, no gradients. One JSON line a version: seconds of sound made in a second.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F

from vocoder_golden import V1, V2, V3, mel_input, state, weight


def forward(c, w, b, mel):
    def conv(name, x, dilation=1):
        return F.conv1d(x, w[name], b[name], padding=(w[name].shape[2] - 1) * dilation // 2, dilation=dilation)

    x = conv("conv_pre", mel)
    for i, (rate, kernel) in enumerate(zip(c["rates"], c["kernels"])):
        x = F.conv_transpose1d(F.leaky_relu(x, 0.1), w[f"ups.{i}"], b[f"ups.{i}"], stride=rate, padding=(kernel - rate) // 2)
        total = None
        for j, dilations in enumerate(c["dilations"]):
            y = x
            block = f"resblocks.{i * len(c['dilations']) + j}"
            for d, dilation in enumerate(dilations):
                if c["resblock"] == "1":
                    z = conv(f"{block}.convs1.{d}", F.leaky_relu(y, 0.1), dilation)
                    y = y + conv(f"{block}.convs2.{d}", F.leaky_relu(z, 0.1))
                else:
                    y = y + conv(f"{block}.convs.{d}", F.leaky_relu(y, 0.1), dilation)
            total = y if total is None else total + y
        x = total / len(c["dilations"])
    return torch.tanh(conv("conv_post", F.leaky_relu(x, 0.01)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--versions", default="v1,v2,v3")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    frames = round(args.seconds * 22050 / 256)
    for name in args.versions.split(","):
        c = {"v1": V1, "v2": V2, "v3": V3}[name]
        tensors = state(c, "folded")
        layers = [key[: -len(".weight")] for key in tensors if key.endswith(".weight")]
        w = {layer: weight(tensors, layer).float() for layer in layers}
        b = {layer: tensors[layer + ".bias"] for layer in layers}
        mel = mel_input(c, frames)[None]
        speeds = []
        with torch.inference_mode():
            forward(c, w, b, mel)
            for _ in range(args.reps):
                started = time.perf_counter()
                samples = forward(c, w, b, mel)
                speeds.append(samples.numel() / 22050 / (time.perf_counter() - started))
        speeds.sort()
        print(json.dumps({"version": name, "threads": args.threads, "torch": torch.__version__, "seconds": args.seconds,
                          "times_real_time": {"median": round(speeds[len(speeds) // 2], 2), "min": round(speeds[0], 2), "max": round(speeds[-1], 2)}}), flush=True)


if __name__ == "__main__":
    main()
