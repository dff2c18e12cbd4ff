"""Metrics of the sound itself: pitch, levels, pauses, rates; against a reference recording; and what it cost to make.

Source:
    Formulas stand in the protocols; those of pairs in `evaluation.pairs` and `evaluation.reconstruction`.
"""

import numpy as np

from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.score import Findings, Metric, Score, plain_metric
from voxinstruct_jax.evaluation.stages import SOUND
from voxinstruct_jax.judges.transcripts import Unit, error_counts, tokens

__all__ = ["sound_metrics"]

UNHEARD_WER = 0.2
"""Above it nobody knows how many of the words were spoken, so a rate of them means nothing."""


def sound_metrics() -> list[Metric]:
    """Prosody, pairs, compute."""
    return [*_pitch(), *_levels_and_rates(), *_pairs(), *_reconstruction(), *_speed()]


def _pitch() -> list[Metric]:
    rows = (
        ("f0.median", "Hz", "median_hz", "median of voiced frames"),
        ("f0.mean", "Hz", "mean_hz", "mean of voiced frames"),
        ("f0.sd", "Hz", "sd_hz", "standard deviation"),
        ("f0.sd_st", "st", "sd_st", "standard deviation about the median"),
        ("f0.span_st", "st", "span_st", "from the 5th to the 95th percentile"),
        ("f0.slope", "st/s", "slope_st_s", "of a line through voiced frames"),
        ("f0.voiced", "fraction", "voiced", "frames of confidence > .5"),
    )
    return [
        plain_metric(name, unit, "pitch", key, f"swift-f0, 60 to 500 Hz, 16 ms: {what}")
        for name, unit, key, what in rows
    ]


def _levels_and_rates() -> list[Metric]:
    rows = (
        ("energy.active", "dBFS", "active_db", "mean level of 25 ms frames within 40 dB of the loudest"),
        ("energy.peak", "dBFS", "peak_db", "largest sample"),
        ("energy.range", "dB", "range_db", "5th to 95th percentile of active frames"),
        ("pause.count", "pauses", "pauses", "quiet (40 dB below the loudest) of over .2 s"),
        ("pause.mean", "s", "pause_mean_s", "as pause.count"),
        ("pause.longest", "s", "pause_longest_s", "as pause.count"),
        ("length.duration", "s", "whole_s", "of the file"),
        ("length.leading_silence", "s", "leading_s", "before the first active frame"),
        ("length.trailing_silence", "s", "trailing_s", "behind the last active frame"),
    )
    rates = [
        _rate("rate.active", "active_s", "time from the first to the last active frame"),
        _rate("rate.net", "net_s", "the same without pauses of over .2 s"),
    ]
    return [*(plain_metric(name, unit, SOUND, key, what) for name, unit, key, what in rows), *rates]


def _rate(name: str, key: str, over: str) -> Metric:
    """Words (English) or characters (Mandarin) a second."""

    def measure(item: Item, findings: Findings) -> Score:
        unit: Unit = "word" if item.language == "en" else "character"
        said, seconds = tokens(item.transcript, unit), findings[SOUND][key]
        heard = findings.get("asr", {}).get("heard")
        if not said or seconds <= 0:
            return Score(status="void", reason="no words, or no sound above silence")
        if heard is not None and error_counts(item.transcript, heard, item.language, unit).rate > UNHEARD_WER:
            return Score(status="void", reason="over a fifth of the words were not heard")
        return Score(n=float(len(said)), d=seconds)

    return Metric(
        id=name,
        unit="words/s EN, characters/s ZH",
        better="",
        protocol=f"tokens of the transcript over {over}; void where WER > .2",
        stage=SOUND,
        measure=measure,
        applies=lambda item: item.language in ("en", "zh"),
    )


# --- against a reference ---------------------------------------------------------------------------------------------


def _with_reference(item: Item) -> bool:
    return item.reference_audio is not None


def _pairs() -> list[Metric]:
    path = "along the warping path of mcd.vox"
    rows = (
        ("mcd.vox", "dB", "mcd_db", "lower", "10/ln10 sqrt2 mean|c-c'|, WORLD at 16 kHz, 5 ms, c1-c24, warp .42, "
         "envelope floored at -60 dB, exact DTW, frames within 40 dB of the loudest"),
        ("mcd.path_ratio", "ratio", "path_ratio", "lower", "steps of that path over frames of the longer clip"),
        ("f0.rmse_hz", "Hz", "rmse_hz", "lower", f"{path}, both voiced"),
        ("f0.rmse_cents", "cents", "rmse_cents", "lower", f"{path}, both voiced"),
        ("f0.correlation", "correlation", "correlation", "higher", f"of log F0 {path}, both voiced"),
        ("f0.gpe20", "fraction", "gpe20", "lower", f"off by over 20 % {path}, both voiced"),
        ("f0.vde", "fraction", "vde", "lower", f"voicing differs {path}"),
        ("f0.ffe", "fraction", "ffe", "lower", f"gross pitch or voicing error {path}"),
        ("length.ratio", "ratio", "ratio", "", "duration over that of the reference"),
    )  # fmt: skip
    found = [
        plain_metric(name, unit, "pair", key, what, better=better, applies=_with_reference)
        for name, unit, key, better, what in rows
    ]
    log = Metric(
        id="length.log_ratio",
        unit="ln",
        better="lower",
        protocol="|ln| of length.ratio",
        stage="pair",
        measure=lambda item, findings: Score(n=abs(float(np.log(max(findings["pair"]["ratio"], 1e-6))))),
        applies=_with_reference,
    )
    return [*found, log]


def _reconstruction() -> list[Metric]:
    rows = (
        ("stoi", "0-1", "higher", "STOI, pystoi"),
        ("estoi", "0-1", "higher", "extended STOI, pystoi"),
        ("mel_l1", "ln", "lower", "mean |ln M - ln M'|, 80 mel magnitudes, 1024/256"),
        ("spectral_convergence", "ratio", "lower", "|R-E|/|R| over three resolutions"),
        ("log_magnitude", "ln", "lower", "mean |ln R - ln E| over three resolutions"),
        ("lsd", "log10", "lower", "log-spectral distance, 2048/512"),
        ("si_sdr", "dB", "higher", "scale-invariant SDR; means nothing for generative decoders"),
    )
    where = "; 16 kHz, same length, aligned by up to 50 ms"
    found = [
        plain_metric(
            f"reconstruction.{name}", unit, "reconstruction", name, what + where, better=better, applies=_with_reference
        )
        for name, unit, better, what in rows
    ]
    pesq = plain_metric(
        "reconstruction.pesq_wb",
        "MOS-LQO",
        "pesq",
        "wb",
        f"PESQ wide band{where}",
        better="higher",
        applies=_with_reference,
    )
    return [*found, pesq]


# --- compute ---------------------------------------------------------------------------------------------------------


def _speed() -> list[Metric]:
    def rtf(item: Item, findings: Findings) -> Score:
        assert item.synthesis_s is not None
        return Score(n=item.synthesis_s, d=findings[SOUND]["whole_s"])

    def throughput(item: Item, findings: Findings) -> Score:
        assert item.synthesis_s is not None
        return Score(n=findings[SOUND]["whole_s"], d=item.synthesis_s)

    def predicted(item: Item, findings: Findings) -> Score:
        return Score(n=float(item.language_predicted == item.language))

    return [
        Metric(
            id="language.predicted",
            unit="accuracy",
            better="higher",
            protocol="language that the system chose = that of the words",
            stage=SOUND,
            measure=predicted,
            applies=lambda item: item.language_predicted is not None,
            worst=0.0,
        ),
        Metric(
            id="rtf",
            unit="s/s",
            better="lower",
            protocol="synthesis seconds over audio seconds, as the results have them; compile time may be in it",
            stage=SOUND,
            measure=rtf,
            applies=lambda item: item.synthesis_s is not None,
        ),
        Metric(
            id="throughput.worker",
            unit="s/s",
            better="higher",
            protocol="audio seconds over synthesis seconds: what one worker makes",
            stage=SOUND,
            measure=throughput,
            applies=lambda item: item.synthesis_s is not None,
        ),
    ]
