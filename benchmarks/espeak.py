"""Speech whose word times and emphasis are known exactly: espeak-ng by ctypes. A tool of benchmarks only (GPL-3)."""

import ctypes
from importlib import import_module

import numpy as np

RATE = 22_050
VOICES = {"en": b"en-us", "zh": b"cmn"}
SYNCHRONOUS, TEXT, SSML = 2, 1, 0x10
LIST_END, WORD = 0, 1


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("identifier", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """One speaker; equal sequences of calls in a fresh process give equal speech."""

    def __init__(self) -> None:
        files = import_module("espeakng_loader")
        self._library = ctypes.CDLL(files.get_library_path())
        self._library.espeak_Initialize(SYNCHRONOUS, 0, files.get_data_path().encode(), 0)
        self._pieces: list[np.ndarray] = []
        self._words: list[float] = []
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, language: str, *, ssml: bool = False) -> tuple[np.ndarray, list[float]]:
        """Returns samples at `RATE` and the start of each word (in Mandarin of each character), s."""
        self._pieces, self._words = [], []
        self._library.espeak_SetVoiceByName(VOICES[language])
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, TEXT | (SSML if ssml else 0), None, None)
        return np.concatenate([np.zeros(0), *self._pieces]) / 32768, self._words

    def _collect(self, wave, count: int, events) -> int:  # noqa: ANN001 - ctypes pointers
        if wave and count:
            self._pieces.append(np.ctypeslib.as_array(wave, (count,)).astype(np.float64))
        place = 0
        while events[place].type != LIST_END:
            if events[place].type == WORD:
                self._words.append(events[place].audio_position / 1000)
            place += 1
        return 0
