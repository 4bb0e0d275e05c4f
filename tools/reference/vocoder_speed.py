"""Speed of the HiFi-GAN generator in PyTorch eager, float32: the other side of our ratio.

    python tools/reference/vocoder_speed.py --threads N [--seconds 10] [--reps 5] [--versions v1,v2,v3] [--primal PRIMAL]

Random weights, weight normalisation folded, no gradients. One JSON line a version: seconds of sound made in a second. With
`--primal` every repetition is followed by one of that program, a process of its own, and `ratio` is ours to PyTorch's in turns.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile
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


def write_folder(folder, name, c, tensors, mel):
    """The same weights and mel spectrogram as files that `primal vocode` reads."""
    from safetensors.torch import save_file
    keys = dict(resblock=c["resblock"], upsample_rates=c["rates"], upsample_kernel_sizes=c["kernels"], upsample_initial_channel=c["channels"],
                resblock_kernel_sizes=c["block_kernels"], resblock_dilation_sizes=c["dilations"])
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(keys))
    save_file(tensors, folder / name / "generator.safetensors")
    save_file({"mel": mel.contiguous()}, folder / f"{name}.safetensors")


def ours(primal, folder, name, threads):
    """Times real time of one run of `primal vocode`, loading and writing not counted."""
    command = [primal, "vocode", "--json", "--threads", str(threads), "--vocoder", folder / name, "--mel", folder / f"{name}.safetensors", "--output", folder / "x.wav"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["times_real_time"]


def spread(speeds):
    speeds = sorted(speeds)
    return {"median": round(speeds[len(speeds) // 2], 2), "min": round(speeds[0], 2), "max": round(speeds[-1], 2)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--versions", default="v1,v2,v3")
    parser.add_argument("--primal", help="a primal binary, to run in turns with PyTorch on the same weights and mel spectrogram")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    frames = round(args.seconds * 22050 / 256)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.versions.split(","):
            c = {"v1": V1, "v2": V2, "v3": V3}[name]
            tensors = state(c, "folded")
            layers = [key[: -len(".weight")] for key in tensors if key.endswith(".weight")]
            w = {layer: weight(tensors, layer).float() for layer in layers}
            b = {layer: tensors[layer + ".bias"] for layer in layers}
            mel = mel_input(c, frames)
            if args.primal:
                write_folder(pathlib.Path(folder), name, c, tensors, mel)
            speeds, own = [], []
            with torch.inference_mode():
                forward(c, w, b, mel[None])
                for _ in range(args.reps):
                    started = time.perf_counter()
                    samples = forward(c, w, b, mel[None])
                    speeds.append(samples.numel() / 22050 / (time.perf_counter() - started))
                    if args.primal:
                        time.sleep(0.2)
                        own.append(ours(args.primal, pathlib.Path(folder), name, args.threads))
            row = {"version": name, "threads": args.threads, "seconds": args.seconds, "torch": torch.__version__, "times_real_time": spread(speeds)}
            if own:
                ratios = [a / b for a, b in zip(own, speeds)]
                row |= {"primal": spread(own), "ratio": spread(ratios)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
