import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from voxinstruct_jax.audio.spectrogram import MelConfig, istft, log_mel, mel_filters, stft
from voxinstruct_jax.config import ConfigError

spectrogram = jax.jit(log_mel, static_argnums=1)
SLANEY_LOG_STEP = math.log(6.4) / 27


def slaney_mel(hz):
    """15 mel at 1 kHz, linear below; 27 mel for each factor of 6.4 above."""
    return hz / 1000 * 15 if hz < 1000 else 15 + math.log(hz / 1000) / SLANEY_LOG_STEP


def slaney_hz(mel):
    return mel * 1000 / 15 if mel < 15 else 1000 * math.exp((mel - 15) * SLANEY_LOG_STEP)


@functools.partial(jax.jit, static_argnums=(1, 2))
def there_and_back(samples, n_fft, hop_length):
    spectra = stft(samples, n_fft, hop_length)
    return spectra, istft(spectra, n_fft, hop_length)


@hypothesis.given(
    hops=st.sampled_from([4, 7]), sizes=st.sampled_from([(64, 16), (100, 20), (32, 20)]), seed=st.integers(0, 99)
)
def test_istft_undoes_stft(hops, sizes, seed):
    n_fft, hop_length = sizes
    samples = np.random.default_rng(seed).uniform(-1, 1, (2, hops * hop_length)).astype(np.float32)
    spectra, again = there_and_back(samples, n_fft, hop_length)
    assert spectra.shape == (2, hops, n_fft // 2 + 1)
    np.testing.assert_allclose(again, samples, atol=2e-4)


def test_stft_is_the_windowed_fourier_sum_of_the_padded_signal():
    random, n_fft, hop_length = np.random.default_rng(0), 16, 4
    samples = random.standard_normal(20).astype(np.float32)
    padded = np.r_[samples[6:0:-1], samples, samples[-2:-8:-1]]  # (16 - 4) / 2 = 6, mirrored without the edge
    window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    frame, bin_ = 3, 5
    part = padded[frame * hop_length : frame * hop_length + n_fft] * window
    expected = np.sum(part * np.exp(-2j * np.pi * bin_ * np.arange(n_fft) / n_fft))
    found = stft(jnp.asarray(samples[None]), n_fft, hop_length)
    assert found.shape == (1, 5, 9)
    np.testing.assert_allclose(complex(found[0, frame, bin_]), expected, atol=1e-4)


@pytest.mark.parametrize("hz", [200.0, 1000.0, 3500.0, 9000.0])
def test_a_pure_tone_is_loudest_in_the_band_whose_centre_is_nearest_in_mel(hz):
    config = MelConfig()
    tone = np.sin(2 * np.pi * hz * np.arange(4800) / config.sample_rate).astype(np.float32)
    mel = spectrogram(jnp.asarray(tone[None]), config)
    assert mel.shape == (1, 20, 100)
    spacing = slaney_mel(12_000) / 101
    assert abs(int(mel[0, 10].argmax()) - (slaney_mel(hz) / spacing - 1)) < 1


def test_log_mel_of_silence_is_the_floor_and_doubling_the_level_adds_log_2():
    config = MelConfig(num_mels=20)
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, (1, 2400)).astype(np.float32)
    np.testing.assert_allclose(spectrogram(jnp.zeros((1, 480)), config), math.log(1e-5), rtol=1e-6)
    quiet, loud = spectrogram(jnp.asarray(noise), config), spectrogram(jnp.asarray(2 * noise), config)
    np.testing.assert_allclose(loud - quiet, math.log(2), atol=1e-4)


def test_mel_filters_are_triangles_on_the_slaney_scale():
    # 15 bands from 0 to 1000 Hz = 15 mel + 1: edges lie 15 / 16 mel = 62.5 Hz apart, as do the bins of n_fft 64
    config = MelConfig(sample_rate=4000, num_mels=15, n_fft=64, hop_length=16, f_max=1000.0)
    filters = mel_filters(config)
    assert filters.shape == (33, 15)
    expected = np.zeros((33, 15))
    expected[np.arange(1, 16), np.arange(15)] = 2 / 125  # height of a triangle of base 125 Hz and area 1
    np.testing.assert_allclose(filters, expected, atol=1e-7)


def test_mel_bands_above_1_khz_grow_by_a_constant_factor():
    config = MelConfig(num_mels=40, n_fft=4096, hop_length=256)
    bins = np.linspace(0, 12_000, 2049)
    centres = [slaney_hz(slaney_mel(12_000) * (i + 1) / 41) for i in range(40)]
    peaks = bins[mel_filters(config).argmax(axis=0)]
    np.testing.assert_allclose(peaks, centres, atol=12_000 / 2048)
    assert slaney_hz(42) == pytest.approx(6400)  # 15 + 27 mel: a factor of 6.4 above 1 kHz
    areas = mel_filters(config).sum(axis=0) * 12_000 / 2048
    np.testing.assert_allclose(areas, 1, rtol=0.02)


def test_bands_beyond_half_the_sample_rate_are_refused():
    with pytest.raises(ConfigError, match=r"f_max 12000\.0 must lie between f_min and half of sample_rate 16000"):
        MelConfig(sample_rate=16_000)
    with pytest.raises(ConfigError, match="n_fft 1023 minus hop_length 240 must be even"):
        MelConfig(n_fft=1023)
