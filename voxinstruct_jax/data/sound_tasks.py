"""UNISON's tasks as a table: how target, source and instruction of an example are made from clips, on the spot.

Every recipe is a pure function of the clips that it draws and of a generator, so an example follows from (data, seed,
step, row). A task is a row of `TASKS`; a run names the tasks it takes. Read `TASKS`, then `synthesize`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.sounds import Sound

__all__ = ["TASKS", "ClipPool", "SoundExample", "SoundTask", "Speech", "to_level", "mix", "probabilities", "synthesize"]

TARGET_RMS = 0.1
FADE_S = 0.02
REFERENCE_S = 3.0
PEAK = 0.99
QUIET_RMS = 10 ** (-40 / 20)
"""Frames below this share of the loudest one do not count as sound when a level is measured."""
GAP_S = 0.5
SHORTEST_SEGMENT_S = 1.5

GENERATION, EDITING, REFERENCE = 0, 1, 2
"""Values of the task tag m."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """A clip of speech."""

    samples: Float32[np.ndarray, " sample"]
    transcript: str
    gender: str = ""
    """"male", "female", or not known."""
    instruction: str = ""
    """One way of asking for this clip; may be empty."""


@runtime_checkable
class ClipPool(Protocol):
    """Where clips come from; no longer than `num_samples`."""

    sample_rate: int
    """Of all clips, Hz."""

    def speech(self, random: np.random.Generator, num_samples: int) -> Speech: ...
    def speaker_pair(self, random: np.random.Generator, num_samples: int) -> tuple[Speech, Speech]:
        """Two different clips of one speaker."""
        ...

    def sound(self, random: np.random.Generator, num_samples: int) -> Sound: ...


@dataclass(frozen=True, kw_only=True)
class SoundExample:
    """One example, of a fixed length."""

    target: Float32[np.ndarray, " sample"]
    source: Float32[np.ndarray, " sample"]
    """What is edited or spoken like; zeros where there is nothing."""
    text: str
    tag: int
    """0 generation, 1 editing, 2 reference of a voice."""
    num_samples: int
    """Real samples of the target; zeros follow."""
    prefix_samples: int = 0
    """Of the reference: they are given, so they are no part of the loss."""
    transcript: str = ""
    """What is spoken, where that is all that is spoken."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What a recipe returns: source (None = none) and target, of any lengths and levels."""

    target: np.ndarray
    text: str
    source: np.ndarray | None = None
    prefix_samples: int = 0
    transcript: str = ""


Recipe = Callable[[ClipPool, np.random.Generator, int], _Made]
"""(clips, draws, samples that there is room for) → example."""


@dataclass(frozen=True, kw_only=True)
class SoundTask:
    """A row of the table."""

    recipe: Recipe
    tag: int
    share: float
    """Of examples in the second stage; the first has those tasks alone that generate, in the same proportions."""

    @property
    def generates(self) -> bool:
        return self.tag != EDITING


def synthesize(name: str, pool: ClipPool, random: np.random.Generator, num_samples: int) -> SoundExample:
    """Makes an example of a task.

    Source and target get one common gain where either would clip; anything else would teach a model to change levels.

    Args:
        name: Of `TASKS`.
        pool: Gives clips.
        random: All that is drawn follows from it.
        num_samples: Length of the example; what is shorter is followed by zeros.

    Raises:
        ConfigError: There is no such task.

    Source:
        UNISON, sections 3.3 and 3.6 and table 10.
    """
    task = _task(name)
    made = task.recipe(pool, random, num_samples)
    target, source = _fitted(made.target, num_samples), _fitted(made.source, num_samples)
    peak = max(float(np.abs(target).max()), float(np.abs(source).max()))
    gain = min(1.0, PEAK / max(peak, 1e-9))
    return SoundExample(
        target=(gain * target).astype(np.float32),
        source=(gain * source).astype(np.float32),
        text=made.text,
        tag=task.tag,
        num_samples=min(len(made.target), num_samples),
        prefix_samples=made.prefix_samples,
        transcript=made.transcript,
    )


def probabilities(names: tuple[str, ...], *, generation_only: bool) -> dict[str, float]:
    """Share of each task of a run; they sum to 1.

    Args:
        names: Tasks that the run takes.
        generation_only: First stage of the curriculum; a run without tasks that generate has none.

    Raises:
        ConfigError: A task is unknown, or there are none.
    """
    if not names:
        raise ConfigError(f"tasks: none is given; take some of {', '.join(TASKS)}")
    every = {name: _task(name).share for name in names}
    shares = {name: share for name, share in every.items() if generation_only and TASKS[name].generates} or every
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def mix(
    base: Float[np.ndarray, " sample"],
    event: Float[np.ndarray, " short"],
    ratio_db: float,
    random: np.random.Generator,
    sample_rate: int,
) -> tuple[Float[np.ndarray, " longer"], Float[np.ndarray, " longer"]]:
    """Levels two sounds and lays the second somewhere into the first.

    Args:
        base: Stays where it is; silence follows where the event is longer.
        event: All of it is heard.
        ratio_db: Of the base's level over the event's.
        random: Draws the place.
        sample_rate: Hz, for the fades.

    Returns:
        The base at its level, and the event alone in its place; their sum is the mix.
    """
    base, event = to_level(_as_long_as(base, event)), to_level(event) * 10 ** (-ratio_db / 20)
    event = _faded(event, sample_rate)
    placed = np.zeros(len(base))
    offset = int(random.integers(len(base) - len(event) + 1))
    placed[offset : offset + len(event)] = event
    return base, placed


def to_level(samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " sample"]:
    """Brings what is not quiet to the root mean square that all sounds of the tasks have, references included."""
    return samples * (TARGET_RMS / max(_rms(samples), 1e-9))


def _task(name: str) -> SoundTask:
    if name not in TASKS:
        raise ConfigError(f"tasks: {name!r} is none of {', '.join(TASKS)}")
    return TASKS[name]


def _fitted(samples: np.ndarray | None, num_samples: int) -> np.ndarray:
    fitted = np.zeros(num_samples)
    if samples is not None:
        fitted[: len(samples)] = samples[:num_samples]
    return fitted


def _as_long_as(samples: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Lets silence follow up to the longest of the others."""
    return np.pad(samples, (0, max(0, *(len(other) - len(samples) for other in others))))


def _rms(samples: np.ndarray) -> float:
    size = max(1, min(len(samples), 480))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    power = np.square(frames).mean(1)
    loud: Bool[np.ndarray, " frame"] = power > power.max(initial=0.0) * QUIET_RMS**2
    return float(np.sqrt(power[loud].mean())) if loud.any() else 0.0


def _faded(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    size = min(round(FADE_S * sample_rate), len(samples) // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(size) + 0.5) / max(size, 1))
    faded = samples.copy()
    faded[:size] *= ramp
    faded[len(samples) - size :] *= ramp[::-1]
    return faded


def _pick(random: np.random.Generator, *forms: str) -> str:
    return forms[int(random.integers(len(forms)))]


def _voice(speech: Speech, random: np.random.Generator) -> str:
    if not speech.gender:
        return f'[Speech] A voice saying "{speech.transcript}"'
    form = _pick(random, "A {} voice saying", "A {} announcer says:", "A {} speaker says")
    return f'[Speech] {form.format(speech.gender)} "{speech.transcript}"'


def _tts(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    speech = pool.speech(random, room)
    return _Made(target=to_level(speech.samples), text=_voice(speech, random), transcript=speech.transcript)


def _instruct_tts(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    speech = pool.speech(random, room)
    # as recorded: an instruction may ask for a level
    text = speech.instruction or f'"{speech.transcript}"'
    return _Made(target=speech.samples, text=f"[Speech] {text}", transcript=speech.transcript)


def _zero_shot(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    """A speaker's clip, then another; the beginning is given and the whole is said."""
    first, second = pool.speaker_pair(random, room // 2)
    joined = np.concatenate([to_level(first.samples), to_level(second.samples)])
    given = min(round(REFERENCE_S * pool.sample_rate), len(first.samples))
    return _Made(
        target=joined,
        source=joined[:given],
        prefix_samples=given,
        text=f"[Speech with voice] {first.transcript}, {second.transcript}",
        transcript=f"{first.transcript} {second.transcript}",
    )


def _sound(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    sound = pool.sound(random, room)
    return _Made(target=to_level(sound.samples), text=f"[Audio] {sound.caption}")


def _sounds(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    base, event = pool.sound(random, room), pool.sound(random, room // 2)
    levelled, placed = mix(base.samples, event.samples, random.uniform(-5, 5), random, pool.sample_rate)
    return _Made(target=levelled + placed, text=f"[Audio] {base.caption} and {event.caption}")


def _speech_and_sound(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    sound, speech = pool.sound(random, room), pool.speech(random, room)
    levelled, placed = mix(sound.samples, speech.samples, -random.uniform(-3, 10), random, pool.sample_rate)
    text = f"{_voice(speech, random)} [Audio] {sound.caption}"
    return _Made(target=levelled + placed, text=text, transcript=speech.transcript)


def _timeline(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    """Two or three sounds, one after another with a pause, or overlapping."""
    seconds = room / pool.sample_rate
    count = max(1, min(int(random.integers(2, 4)), int((seconds + GAP_S) / (SHORTEST_SEGMENT_S + GAP_S))))
    # an overlap is at most half a segment, so that no more than two sound at once
    apart = GAP_S if random.random() < 0.7 else -min(random.uniform(1, 2), seconds / (count + 1))
    length = (seconds - apart * (count - 1)) / count
    target, words = np.zeros(room), []
    for number in range(count):
        start = round(number * (length + apart), 1)
        end = round(min(start + length, seconds), 1)
        first, last = round(start * pool.sample_rate), min(round(end * pool.sample_rate), room)
        sound = pool.sound(random, last - first)
        part = _faded(to_level(sound.samples), pool.sample_rate)
        target[first : first + len(part)] += part
        stop = start + len(part) / pool.sample_rate  # before the end where a clip is short
        words.append(f"From {start:.1f}s to {stop:.1f}s, {sound.caption}.")
    return _Made(target=target, text="[Audio] " + " ".join(words))


def _add(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    base, event, caption = _event(pool, random, room)
    form = _pick(random, "Add", "Mix in the sound of")
    return _Made(source=base, target=base + event, text=f"[Edit] [Audio] {form} {caption}")


def _remove(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    base, event, caption = _event(pool, random, room)
    form = _pick(random, "Remove", "Eliminate the sound of")
    return _Made(source=base + event, target=base, text=f"[Edit] [Audio] {form} {caption}")


def _event(pool: ClipPool, random: np.random.Generator, room: int) -> tuple[np.ndarray, np.ndarray, str]:
    base, event = pool.sound(random, room), pool.sound(random, room // 2)
    return *mix(base.samples, event.samples, random.uniform(-5, 5), random, pool.sample_rate), event.caption


def _replace(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    base, old, new = pool.sound(random, room), pool.sound(random, room // 2), pool.sound(random, room // 2)
    ratio, ground = random.uniform(-5, 5), _as_long_as(base.samples, old.samples, new.samples)
    levelled, before = mix(ground, old.samples, ratio, random, pool.sample_rate)
    _, after = mix(ground, new.samples, ratio, random, pool.sample_rate)
    text = f"[Edit] [Audio] Remove {old.caption}. [Edit] [Audio] Add {new.caption}."
    return _Made(source=levelled + before, target=levelled + after, text=text)


def _scene(pool: ClipPool, speech: Speech, random: np.random.Generator, room: int) -> tuple[np.ndarray, np.ndarray]:
    background = pool.sound(random, room).samples
    return mix(background, speech.samples, -random.uniform(5, 15), random, pool.sample_rate)


def _insert_speech(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    speech = pool.speech(random, room)
    background, placed = _scene(pool, speech, random, room)
    text = f'[Edit] [Speech] Add a voice saying "{speech.transcript}"'
    return _Made(source=background, target=background + placed, text=text, transcript=speech.transcript)


def _delete_speech(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    background, placed = _scene(pool, pool.speech(random, room), random, room)
    return _Made(source=background + placed, target=background, text="[Edit] [Speech] Remove the speech.")


def _rewrite_speech(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    """Other words of the same speaker, against the very same background."""
    old, new = pool.speaker_pair(random, room)
    form = _pick(random, "Change speech to", "Alter the spoken content to")
    return _respoken(pool, random, room, old, new, f'[Edit] [Speech] {form} "{new.transcript}"')


def _respoken(pool: ClipPool, random: np.random.Generator, room: int, old: Speech, new: Speech, text: str) -> _Made:
    background = _as_long_as(pool.sound(random, room).samples, old.samples, new.samples)
    ratio = -random.uniform(5, 15)
    levelled, before = mix(background, old.samples, ratio, random, pool.sample_rate)
    _, after = mix(background, new.samples, ratio, random, pool.sample_rate)
    return _Made(source=levelled + before, target=levelled + after, text=text, transcript=new.transcript)


def _replace_sound(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    """Another sound behind the very same speech."""
    speech, old, new = pool.speech(random, room), pool.sound(random, room), pool.sound(random, room)
    ground, ratio = _as_long_as(speech.samples, old.samples, new.samples), random.uniform(5, 15)
    levelled, before = mix(ground, old.samples, ratio, random, pool.sample_rate)
    _, after = mix(ground, new.samples, ratio, random, pool.sample_rate)
    text = f"[Edit] [Audio] Remove {old.caption}. [Edit] [Audio] Add {new.caption}."
    return _Made(source=levelled + before, target=levelled + after, text=text, transcript=speech.transcript)


def _replace_speech(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    """Other words of whatever speaker, against the very same background."""
    old, new = pool.speech(random, room), pool.speech(random, room)
    text = f'[Edit] [Speech] Remove the speech. [Edit] [Speech] Add a voice saying "{new.transcript}"'
    return _respoken(pool, random, room, old, new, text)


def _denoise(pool: ClipPool, random: np.random.Generator, room: int) -> _Made:
    speech = pool.speech(random, room)
    noise = pool.sound(random, len(speech.samples)).samples
    clean, placed = mix(speech.samples, noise, random.uniform(0, 20), random, pool.sample_rate)
    text = "[Edit] [Speech] Denoise the record."
    return _Made(source=clean + placed, target=clean, text=text, transcript=speech.transcript)


TASKS: dict[str, SoundTask] = {
    "tts": SoundTask(recipe=_tts, tag=GENERATION, share=0.15),
    "instruct_tts": SoundTask(recipe=_instruct_tts, tag=GENERATION, share=0.15),
    "zeroshotts": SoundTask(recipe=_zero_shot, tag=REFERENCE, share=0.25),
    "t2a_single": SoundTask(recipe=_sound, tag=GENERATION, share=0.10),
    "t2a_mix": SoundTask(recipe=_sounds, tag=GENERATION, share=0.08),
    "speech_audio_mix": SoundTask(recipe=_speech_and_sound, tag=GENERATION, share=0.08),
    "t2a_timeline": SoundTask(recipe=_timeline, tag=GENERATION, share=0.04),
    "edit_add": SoundTask(recipe=_add, tag=EDITING, share=0.04),
    "edit_remove": SoundTask(recipe=_remove, tag=EDITING, share=0.04),
    "edit_remove_add": SoundTask(recipe=_replace, tag=EDITING, share=0.03),
    "edit_speech_insert": SoundTask(recipe=_insert_speech, tag=EDITING, share=0.04),
    "speech_delete": SoundTask(recipe=_delete_speech, tag=EDITING, share=0.03),
    "edit_speech_content": SoundTask(recipe=_rewrite_speech, tag=EDITING, share=0.04),
    "denoise": SoundTask(recipe=_denoise, tag=EDITING, share=0.04),
    "edit_arsp": SoundTask(recipe=_replace_sound, tag=EDITING, share=0.02),
    "edit_srap": SoundTask(recipe=_replace_speech, tag=EDITING, share=0.02),
}
"""By the names of the authors' release, which the shares are from too; `instruct_tts`, which it does not have, weighs
as `tts`. `edit_arsp` and `edit_srap`, which the release names and does not describe, are read as "audio replaced,
speech preserved" and "speech replaced, audio preserved". Shares of the tasks that a run takes are brought to a sum of
1."""
