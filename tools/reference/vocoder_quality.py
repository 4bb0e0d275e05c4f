"""Quality of vocoders on real mel spectrograms: PESQ (wide band), STOI, DNSMOS and pitch of sounds that went through `primal vocode`.

    pip install pesq pystoi speechmos soundfile scipy librosa
    python tools/reference/vocoder_quality.py --primal PRIMAL --wavs DIR [--held-out 16] [--vocoder griffin-lim --vocoder DIR ...]

The sounds are those that `primal vocoder-train --held-out N` holds out of the folder. One JSON line a vocoder, and one for the
sounds themselves. Pitch is pYIN's: the median distance from the source in cents where both are voiced, the share of frames more than
50 cents off, and the share of all frames that are voiced in both or in neither.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

import librosa
import numpy as np
import soundfile
from pesq import pesq
from pystoi import stoi
from scipy.signal import resample_poly
from speechmos import dnsmos


def held_out(folder, count):
    files = sorted(folder.rglob("*.wav"))
    share = [-(-index * count // len(files)) for index in range(len(files) + 1)]
    return [path for path, a, b in zip(files, share, share[1:]) if b > a]


def at_16_khz(path):
    samples, rate = soundfile.read(path)
    assert rate == 22050
    return np.clip(resample_poly(samples, 320, 441), -1, 1)


def pitch(samples):
    frequency, voiced, _ = librosa.pyin(samples, fmin=60, fmax=300, sr=16000)
    return frequency, voiced


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--primal", required=True)
    parser.add_argument("--wavs", type=pathlib.Path, required=True)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--vocoder", action="append", default=[])
    args = parser.parse_args()
    files = held_out(args.wavs, args.held_out)
    sources = [at_16_khz(path) for path in files]
    pitches = [pitch(source) for source in sources]
    mos = [dnsmos.run(source, 16000)["ovrl_mos"] for source in sources]
    print(json.dumps({"vocoder": "none", "sounds": len(files), "dnsmos": round(float(np.mean(mos)), 3)}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "x.wav"
        for vocoder in args.vocoder:
            rows, cents, agreed = [], [], []
            for path, source, (of_source, voiced) in zip(files, sources, pitches):
                subprocess.run([args.primal, "vocode", "--wav", path, "--vocoder", vocoder, "--output", out], check=True, stderr=subprocess.DEVNULL)
                made = at_16_khz(out)
                source = source[:len(made)]
                rows.append((pesq(16000, source, made, "wb"), stoi(source, made, 16000), dnsmos.run(made, 16000)["ovrl_mos"]))
                of_made, also = pitch(made)
                frames = min(len(voiced), len(also))
                both = voiced[:frames] & also[:frames]
                cents.append(np.abs(1200 * np.log2(of_made[:frames] / of_source[:frames])[both]))
                agreed.append(voiced[:frames] == also[:frames])
            cents = np.concatenate(cents)
            means = [*np.mean(rows, axis=0), np.median(cents), np.mean(cents > 50), np.mean(np.concatenate(agreed))]
            keys = ["pesq", "stoi", "dnsmos", "cents_off", "beyond_50_cents", "voicing_agrees"]
            print(json.dumps({"vocoder": pathlib.Path(vocoder).name} | {key: round(float(mean), 3) for key, mean in zip(keys, means)}), flush=True)


if __name__ == "__main__":
    main()
