"""Instruction-to-speech codec language model in JAX.

Example:
    >>> import voxinstruct_jax as vox
    >>> voice = vox.load()
    >>> audio = voice.synthesize('A cheerful girl says quickly: "We won!"', seed=7)
    >>> audio.save("won.wav")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxinstruct_jax.decoding.profile import EngineProfile
    from voxinstruct_jax.guidance import Guidance
    from voxinstruct_jax.utterance import Audio, Utterance
    from voxinstruct_jax.voice import Voice
    from voxinstruct_jax.voices import load

__all__ = ["Audio", "EngineProfile", "Guidance", "Utterance", "Voice", "__version__", "load"]

__version__ = "0.1.0"

_HOMES = {
    "Audio": "utterance",
    "EngineProfile": "decoding.profile",
    "Guidance": "guidance",
    "Utterance": "utterance",
    "Voice": "voice",
    "load": "voices",
}


def __getattr__(name: str) -> Any:
    """Imports public names when they are first used: `import voxinstruct_jax` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'voxinstruct_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"voxinstruct_jax.{_HOMES[name]}"), name)
