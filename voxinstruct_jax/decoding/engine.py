"""Many requests at once: continuous batching on the device, and the host that keeps it fed.

Requests wait by lane. One lane runs at a time: its free slots are refilled between chunks of steps (`decoding.slots`)
until nobody waits for it. Those that are done go on to batches of the NAR model and of the codec's decoder, which run
behind the AR stage; what comes out is given away at once. Every program has one static size, filled up with copies
whose results are thrown away. Where something else makes the sound, the AR stage runs alone (`say_many`). Read
`speak_many`, then `_Replica` and `_Finisher`.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32

from voxinstruct_jax.config import ConfigError, InputError, VoxError
from voxinstruct_jax.decoding.profile import EngineProfile, Lane, needed_context
from voxinstruct_jax.decoding.requests import ARBatch, ARResult, batch_requests
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.slots import DONE, SlotSizes, SlotState, advance, empty_slots, fill_slots
from voxinstruct_jax.decoding.stages import (
    CODE_BLOCK,
    ARStage,
    Clip,
    Loaded,
    Models,
    SpeechRequest,
    Spoken,
    choose_width,
    clip_intonation,
    decode_codes,
    fill_clips,
    frame_features,
    nar_clip,
    own_codes,
    read_spoken,
    stack_clips,
    stack_codes,
    stack_features,
    stack_intonations,
)
from voxinstruct_jax.guidance import Branch, needed_branches
from voxinstruct_jax.sharding.mesh import MESH_AXES, parameter_sharding

__all__ = ["Said", "Speech", "run_advance", "run_fill", "say_many", "speak_many"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speech:
    """What came of a request."""

    spoken: Spoken
    codes: Int32[np.ndarray, "codebook prompt_and_frame"]
    samples: Float32[np.ndarray, " sample"]
    """The voice prompt's included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """A request, and what the AR model said to it."""

    request: SpeechRequest
    spoken: Spoken


Result = tuple[int, Any]
"""Number of a request; what came of it (`Speech` or `Said`), or a `VoxError`."""
Requests = Iterable[tuple[int, SpeechRequest | VoxError]]
T = TypeVar("T")


def speak_many(models: Models, requests: Requests, profile: EngineProfile) -> Iterator[tuple[int, Speech | VoxError]]:
    """Speaks requests as they come.

    Args:
        models: What speaks.
        requests: Each with a number of its own; an error is passed on. Read `profile.look_ahead` ahead.
        profile: Sizes of the programs.

    Yields:
        Each number with what was spoken, or with why not, as soon as it is known.

    Raises:
        ConfigError: The machine has not the devices that the profile asks for.
    """
    places = [_Place(models, devices) for devices in _device_groups(profile)]
    yield from _run(models, requests, profile, places, _Finisher(places, models, profile))


def say_many(stage: ARStage, requests: Requests, profile: EngineProfile) -> Iterator[tuple[int, Said | VoxError]]:
    """Has the AR model say tokens to requests as they come; arguments and errors as of `speak_many`.

    Yields:
        Each number with its request and the tokens, or with why not, as soon as they are known.
    """
    places = [_Place(stage, devices) for devices in _device_groups(profile)]
    yield from _run(stage, requests, profile, places, _Collector())


@runtime_checkable
class _Behind(Protocol):
    """What stands behind the AR stage."""

    def add(self, entry: "_Entry", spoken: Spoken) -> None:
        """Takes a request over from it."""
        ...

    def ready(self, *, wait: bool = False) -> Iterator[Result]:
        """Gives away what is ready; with `wait`, everything to the last."""
        ...


def _run(
    stage: ARStage, requests: Requests, profile: EngineProfile, places: "list[_Place]", behind: _Behind
) -> Iterator[Result]:
    feed = _Feed(iter(requests), stage, profile)
    yield from feed.refused()
    while (lane := feed.next_lane()) is not None:
        yield from _run_lane(feed, [_Replica(place, stage, profile, lane) for place in places], behind)
    yield from behind.ready(wait=True)


def _run_lane(feed: "_Feed", replicas: list["_Replica"], behind: _Behind) -> Iterator[Result]:
    """Decodes until nobody waits for the lane any more; its memory is free when this is left."""
    while replicas[0].wanted(feed) or any(replica.busy for replica in replicas):
        for replica in replicas:
            replica.refill(feed)
            replica.advance()
        yield from behind.ready()
        for replica in replicas:
            for entry, spoken in replica.finished():
                behind.add(entry, spoken)
        feed.pull()
        yield from feed.refused()


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a prefill program is made for."""

    branches: tuple[Branch, ...]
    text_width: int
    prefix_width: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry:
    """A request under way."""

    place: int
    request: SpeechRequest
    kind: _Kind


class _Feed:
    """Requests that wait, by lane, in the order in which they came."""

    def __init__(
        self, requests: Iterator[tuple[int, SpeechRequest | VoxError]], stage: ARStage, profile: EngineProfile
    ) -> None:
        self._requests, self._stage, self._profile = requests, stage, profile
        self._waiting: dict[Lane, list[_Entry]] = {lane: [] for lane in profile.lanes}
        self._refused: list[tuple[int, VoxError]] = []
        self.pull()

    def pull(self) -> None:
        """Reads ahead as far as the profile allows, or up to a request that is refused."""
        while not self._refused and sum(map(len, self._waiting.values())) < self._profile.look_ahead:
            found = next(self._requests, None)
            if found is None:
                return
            place, request = found
            if isinstance(request, VoxError):
                self._refused.append((place, request))
            else:
                self._sort_in(place, request)

    def _sort_in(self, place: int, request: SpeechRequest) -> None:
        needed, longest = needed_context(request.ar), self._profile.lanes[-1].context
        if needed > longest:
            error = InputError(f"the request needs {needed} cache slots, the profile's longest lane has {longest}")
            self._refused.append((place, error))
            return
        kind = _Kind(
            branches=needed_branches(request.ar.guidance),
            text_width=choose_width(len(request.ar.text_tokens), self._stage.text_widths),
            prefix_width=2 + choose_width(len(request.ar.prompt.semantic_prefix) - 2, self._stage.prompt_widths),
        )
        lane = next(lane for lane in self._profile.lanes if lane.context >= needed)
        self._waiting[lane].append(_Entry(place, request, kind))

    def refused(self) -> Iterator[tuple[int, VoxError]]:
        """Gives away what cannot be spoken, and reads on."""
        while self._refused:
            yield self._refused.pop(0)
            self.pull()

    def next_lane(self) -> Lane | None:
        """The lane of the request that has waited longest; None if none waits."""
        first = {lane: entries[0].place for lane, entries in self._waiting.items() if entries}
        return min(first, key=lambda lane: first[lane]) if first else None

    def waiting(self, lane: Lane) -> list[_Entry]:
        """Those that wait for a lane and are of the same kind as the first of them."""
        entries = self._waiting[lane]
        return [entry for entry in entries if entry.kind == entries[0].kind]

    def take(self, lane: Lane, count: int) -> list[_Entry]:
        """Takes the first of `waiting`."""
        taken = self.waiting(lane)[:count]
        self._waiting[lane] = [entry for entry in self._waiting[lane] if entry not in taken]
        return taken


class _Place:
    """The models on one device, or on those that share them."""

    def __init__(self, stage: ARStage, devices: Sequence[Any] | None) -> None:
        """Brings the AR model there; None = where it is."""
        shape = (1, 1, len(devices or ()))
        self.mesh = Mesh(np.asarray(devices).reshape(shape), MESH_AXES) if devices is not None else None
        self.ar = self.bring(stage.ar)

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """Within it programs are compiled for this place's devices."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def empty(self, config: Any, sizes: SlotSizes, sampling: SamplingConfig, dtype: Any) -> SlotState:
        """A state without requests; keys and values are split by their heads."""
        if (mesh := self.mesh) is None:
            return _empty_slots(config, sizes, sampling, cache_dtype=dtype)

        def make_spread() -> SlotState:
            state = empty_slots(config, sizes, sampling, cache_dtype=dtype)
            by_heads = parameter_sharding(mesh, (None, "heads", None, None), state.cache.keys[0].shape)
            return dataclasses.replace(state, cache=jax.lax.with_sharding_constraint(state.cache, by_heads))

        return jax.jit(make_spread)()

    def bring(self, part: Loaded[T]) -> Loaded[T]:
        """Returns a model that lies in this place."""
        if self.mesh is None:
            return part
        mesh = self.mesh

        def put(variable: nnx.Variable) -> nnx.Variable:
            value = variable.get_value()
            names = variable.get_metadata().get("out_sharding")
            return variable.replace(jax.device_put(value, parameter_sharding(mesh, names, value.shape)))

        state = jax.tree.map(put, part.state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        return Loaded(part.graph, state, part.config)


def _device_groups(profile: EngineProfile) -> list[Sequence[Any] | None]:
    """The devices of each replica; None = the default one, with nothing to be brought anywhere."""
    devices = jax.local_devices()
    replicas = profile.replicas or len(devices) // profile.tensor
    if not replicas or replicas * profile.tensor > len(devices):
        raise ConfigError(
            f"profile: {max(replicas, 1)} replicas of {profile.tensor} devices each, but there are {len(devices)} here"
        )
    if replicas == profile.tensor == 1:
        return [None]
    return [devices[number * profile.tensor : (number + 1) * profile.tensor] for number in range(replicas)]


class _Replica:
    """The slots of one place, and who is in them."""

    def __init__(self, place: _Place, stage: ARStage, profile: EngineProfile, lane: Lane) -> None:
        self._place, self._stage, self._profile, self._lane = place, stage, profile, lane
        self._sizes = profile.lane_sizes(lane, stage)
        with place.on_mesh():
            self._state = place.empty(stage.ar.config, self._sizes, stage.sampling, profile.dtype(stage))
        self._entries: list[_Entry | None] = [None] * lane.slots
        self._rows: list[list[int]] = [[] for _ in range(lane.slots)]
        self._free_rows = list(range(lane.rows))
        self._reports: collections.deque[tuple[list[_Entry | None], tuple[Array, ARResult]]] = collections.deque()

    @property
    def busy(self) -> bool:
        """Whether any request is in a slot."""
        return any(entry is not None for entry in self._entries)

    def wanted(self, feed: _Feed) -> bool:
        """Whether anyone waits for this lane."""
        return bool(feed.waiting(self._lane))

    def refill(self, feed: _Feed) -> None:
        """Fills free slots by whole groups; a smaller one only where no more wait, or nothing else is under way."""
        while waiting := feed.waiting(self._lane):
            group = min(self._profile.group, len(waiting))
            rows = len(self._free_rows) // len(waiting[0].kind.branches)
            room = min(self._entries.count(None), rows, group)
            if not room or (room < group and self.busy):
                return
            self._fill(feed.take(self._lane, room))

    def _fill(self, entries: list[_Entry]) -> None:
        kind, size = entries[0].kind, self._profile.group
        free = [slot for slot, entry in enumerate(self._entries) if entry is None]
        slots = np.full(size, self._lane.slots, np.int32)
        rows = np.full((size, len(kind.branches)), self._lane.rows, np.int32)
        for number, (slot, entry) in enumerate(zip(free, entries, strict=False)):
            own = [self._free_rows.pop(0) for _ in kind.branches]
            self._entries[slot], self._rows[slot] = entry, own
            slots[number], rows[number] = slot, own
        batch = batch_requests(
            [entry.request.ar for entry in _filled_up(entries, size)],
            kind.branches,
            text_width=kind.text_width,
            prefix_width=kind.prefix_width,
            acoustic_prefix_width=self._sizes.acoustic_prefix,
        )
        ar = self._place.ar
        with self._place.on_mesh():
            self._state = run_fill(
                ar.graph, ar.state, self._state, batch, slots, rows, kind.branches, self._stage.rules
            )

    def advance(self) -> None:
        """Sends a chunk of steps on its way."""
        if not self.busy:
            return
        ar, stage = self._place.ar, self._stage
        with self._place.on_mesh():
            self._state, report = run_advance(
                ar.graph, ar.state, self._state, stage.sampling, stage.rules, self._profile.chunk_steps
            )
        self._reports.append((list(self._entries), report))

    def finished(self) -> Iterator[tuple[_Entry, Spoken]]:
        """Waits for the oldest chunk under way, if there are enough, and frees the slots that were done after it."""
        while len(self._reports) > self._profile.chunks_ahead:
            entries, (stage, result) = self._reports.popleft()
            ended = np.asarray(stage) == DONE
            found = [
                (slot, entry)
                for slot, entry in enumerate(entries)
                if entry is not None and ended[slot] and self._entries[slot] is entry
            ]
            if found:
                result = jax.device_get(result)
            for slot, entry in found:
                self._free_rows += self._rows[slot]
                self._entries[slot] = None
                num_text = len(entry.request.ar.text_tokens)
                yield entry, read_spoken(result, slot, num_text, self._stage.ar.config.vocabulary)


class _Collector:
    """Nothing behind the AR stage: what it said is given away as it is."""

    def __init__(self) -> None:
        self._said: list[Result] = []

    def add(self, entry: _Entry, spoken: Spoken) -> None:
        """Takes a request over from the AR stage."""
        self._said.append((entry.place, Said(request=entry.request, spoken=spoken)))

    def ready(self, *, wait: bool = False) -> Iterator[Result]:
        """Gives everything away."""
        while self._said:
            yield self._said.pop(0)


@dataclasses.dataclass(frozen=True)
class _Voiced:
    """A request whose AR tokens are there: a clip to fill, then codes to decode."""

    number: int
    """How many came before it."""
    entry: _Entry
    spoken: Spoken
    clip: Clip
    codes: Int32[np.ndarray, "codebook prompt_and_frame"] | None = None


class _Finisher:
    """The stages behind the AR model: batches that wait to be full, and batches under way."""

    def __init__(self, places: list[_Place], models: Models, profile: EngineProfile) -> None:
        brought = [(place, place.bring(models.nar), place.bring(models.codec)) for place in places]
        self._places, self._models, self._profile = itertools.cycle(brought), models, profile
        self._clips: dict[Any, list[_Voiced]] = {}
        self._codes: dict[Any, list[_Voiced]] = {}
        self._filling: collections.deque[tuple[list[_Voiced], Array]] = collections.deque()
        self._decoding: collections.deque[tuple[list[_Voiced], Array]] = collections.deque()
        self._failed: list[tuple[int, VoxError]] = []
        self._count = 0

    def add(self, entry: _Entry, spoken: Spoken) -> None:
        """Takes a request over from the AR stage."""
        try:
            clip = nar_clip(self._models, entry.request, spoken)
            width = choose_width(clip.slots, self._profile.nar_widths)
        except VoxError as error:
            self._failed.append((entry.place, error))
            return
        self._count += 1
        text_width = choose_width(len(clip.text_tokens), self._models.text_widths)
        self._clips.setdefault((text_width, width), []).append(_Voiced(self._count, entry, spoken, clip))

    def ready(self, *, wait: bool = False) -> Iterator[Result]:
        """Sends full batches on their way and gives away what is ready; with `wait`, everything to the last batch."""
        while self._failed:
            yield self._failed.pop(0)
        for text_width, width in self._due(self._clips, self._profile.nar_batch, all_of_them=wait):
            self._fill(text_width, width)
        while self._filling and (wait or _is_ready(self._filling[0][1])):
            self._read_filled(*self._filling.popleft())
        for frames in self._due(self._codes, self._profile.vocoder_batch, all_of_them=wait):
            self._decode(frames)
        while self._decoding and (wait or _is_ready(self._decoding[0][1])):
            yield from self._read_decoded(*self._decoding.popleft())

    def _due(self, queues: dict[Any, list[_Voiced]], size: int, *, all_of_them: bool) -> Iterator[Any]:
        """Queues with a batch to send: a full one, or one whose first has waited while many others passed it."""
        for key in list(queues):
            while queue := queues[key]:
                stale = self._count - queue[0].number > self._profile.look_ahead
                if not (all_of_them or stale or len(queue) >= size):
                    break
                yield key
            if not queue:
                del queues[key]

    def _fill(self, text_width: int, width: int) -> None:
        batch = _take_batch(self._clips[text_width, width], self._profile.nar_batch)
        filled_up = _filled_up(batch, self._profile.nar_batch)
        (place, nar, _), models = next(self._places), self._models
        clips = stack_clips([item.clip for item in filled_up], text_width, width)
        keys = jnp.stack([jax.random.key(item.entry.request.ar.seed) for item in filled_up])
        targets = self._profile.nar_targets(width, models)
        with place.on_mesh():
            filled = fill_clips(nar.graph, nar.state, clips, keys, models.num_steps, models.rules, targets)
        self._filling.append((batch, filled))

    def _read_filled(self, batch: list[_Voiced], filled: Array) -> None:
        for item, row in zip(batch, np.asarray(filled), strict=False):
            item = dataclasses.replace(item, codes=own_codes(self._models, item.clip, row))
            self._codes.setdefault(-(-item.clip.frames // CODE_BLOCK), []).append(item)

    def _decode(self, blocks: int) -> None:
        batch = _take_batch(self._codes[blocks], self._profile.vocoder_batch)
        filled_up = _filled_up(batch, self._profile.vocoder_batch)
        place, _, codec = next(self._places)
        codes = stack_codes([item.codes for item in filled_up if item.codes is not None])
        models, frames = self._models, codes.shape[2]
        clips = [(models, item.entry.request, item.spoken, item.clip.frames) for item in filled_up]
        features = stack_features([frame_features(*clip) for clip in clips], frames)
        moved = stack_intonations([clip_intonation(*clip) for clip in clips], frames)
        with place.on_mesh():
            samples = decode_codes(codec.graph, codec.state, codes, features, moved)
            self._decoding.append((batch, samples))

    def _read_decoded(self, batch: list[_Voiced], decoded: Array) -> Iterator[Result]:
        for item, samples in zip(batch, np.asarray(decoded), strict=False):
            assert item.codes is not None
            samples = samples[: item.clip.frames * self._models.codec.config.hop_length]
            yield item.entry.place, Speech(spoken=item.spoken, codes=item.codes, samples=samples)


def _is_ready(array: Any) -> bool:
    return array.is_ready()


def _filled_up(items: list[T], size: int) -> list[T]:
    """As many as a program takes, the last one repeated."""
    return items + items[-1:] * (size - len(items))


def _take_batch(queue: list[T], size: int) -> list[T]:
    batch = queue[:size]
    del queue[:size]
    return batch


_empty_slots = jax.jit(empty_slots, static_argnums=(0, 1, 2), static_argnames="cache_dtype")


@functools.partial(jax.jit, static_argnums=(0, 6, 7), donate_argnums=2)
def run_fill(  # noqa: PLR0913 - the arguments of a program
    graph: Any,
    weights: Any,
    state: SlotState,
    batch: ARBatch,
    slots: Any,
    rows: Any,
    branches: tuple[Branch, ...],
    rules: DecodingRules,
) -> SlotState:
    """`fill_slots` of a loaded AR model."""
    return fill_slots(nnx.merge(graph, weights), state, batch, slots, rows, branches=branches, rules=rules)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5), donate_argnums=2)
def run_advance(
    graph: Any, weights: Any, state: SlotState, sampling: SamplingConfig, rules: DecodingRules, steps: int
) -> tuple[SlotState, tuple[Array, ARResult]]:
    """`advance` of a loaded AR model, and a copy of stages and results, which the next call does not take away."""
    state = advance(nnx.merge(graph, weights), state, sampling=sampling, rules=rules, steps=steps)
    return state, (state.stage, state.result)
