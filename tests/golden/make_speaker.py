"""Makes `speaker.npz`: what Resemblyzer 0.1.4's voice encoder and librosa's mel spectrogram give on drawn input.

Run where torch, librosa and webrtcvad are installed:
    python tests/golden/make_speaker.py FOLDER_OF_RESEMBLYZER tests/golden/speaker.npz
"""

import sys

import numpy as np


def drawn_mels() -> np.ndarray:
    return np.random.default_rng(7).gamma(0.3, 0.02, (3, 160, 40)).astype(np.float32)


def drawn_samples() -> np.ndarray:
    return np.random.default_rng(8).normal(scale=0.1, size=8000).astype(np.float32)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import librosa
    import torch
    from resemblyzer import VoiceEncoder

    with torch.no_grad():
        embeddings = VoiceEncoder("cpu")(torch.from_numpy(drawn_mels())).numpy()
    mels = librosa.feature.melspectrogram(y=drawn_samples(), sr=16_000, n_fft=400, hop_length=160, n_mels=40).T
    np.savez(sys.argv[2], embeddings=embeddings, mels=mels.astype(np.float32))
