import dataclasses
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import strategies as st

from voxinstruct_jax.config import ConfigError, VoxError, fingerprint, from_dict, to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    sample_rate: int = 24_000
    name: str = "mel"
    ratios: tuple[int, ...] = (2, 4)
    band: tuple[float, float] = (0.0, 12_000.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int
    rate: float = 1e-3
    kind: Literal["ar", "nar"] = "ar"
    resume: bool = False
    codec: Codec = Codec()
    stages: tuple[Codec, ...] = ()
    limit: int | None = None
    shape: int | tuple[int, ...] = 1
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: Any = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps {self.steps} must be at least 1")


CODECS = st.builds(
    Codec,
    sample_rate=st.integers(1, 10**6),
    name=st.text(max_size=5),
    ratios=st.lists(st.integers(), max_size=3).map(tuple),
    band=st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)),
)
SETTINGS = st.builds(
    Settings,
    steps=st.integers(1, 10**9),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    kind=st.sampled_from(["ar", "nar"]),
    resume=st.booleans(),
    codec=CODECS,
    stages=st.lists(CODECS, max_size=2).map(tuple),
    limit=st.none() | st.integers(),
    shape=st.integers() | st.lists(st.integers(), max_size=2).map(tuple),
    weights=st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False), max_size=2),
)


@hypothesis.given(SETTINGS)
@hypothesis.settings(max_examples=50)
def test_settings_survive_the_way_to_plain_values_and_back(settings):
    assert from_dict(Settings, to_dict(settings)) == settings


def test_plain_values_hold_lists_and_tables_only():
    plain = to_dict(Settings(steps=1, stages=(Codec(),)))
    assert plain["stages"] == [{"sample_rate": 24_000, "name": "mel", "ratios": [2, 4], "band": [0.0, 12_000.0]}]
    assert plain["codec"]["ratios"] == [2, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 3}, r"^step: unknown setting of Settings; did you mean 'steps'\?$"),
        ({"zzz": 3}, r"^zzz: unknown setting of Settings; known: steps, rate, kind"),
        ({"steps": 3, "codec": {"sample_rat": 1}}, r"^codec\.sample_rat: unknown .* mean 'sample_rate'\?$"),
        ({"steps": 3, "stages": [{}, {"nam": "x"}]}, r"^stages\[1\]\.nam: unknown setting of Codec; .*'name'\?$"),
        ({}, r"^steps: missing; Settings needs it$"),
        ({"steps": "3"}, r"^steps: expected int, got '3'$"),
        ({"steps": 3.0}, r"^steps: expected int, got 3\.0$"),
        ({"steps": True}, r"^steps: expected int, got True$"),
        ({"steps": 3, "rate": "fast"}, r"^rate: expected float, got 'fast'$"),
        ({"steps": 3, "rate": True}, r"^rate: expected float, got True$"),
        ({"steps": 3, "resume": 1}, r"^resume: expected bool, got 1$"),
        ({"steps": 3, "kind": "codec"}, r"^kind: 'codec' is not one of 'ar', 'nar'$"),
        ({"steps": 3, "codec": 5}, r"^codec: expected a table of settings, got 5$"),
        ({"steps": 3, "codec": {"ratios": 2}}, r"^codec\.ratios: expected a list, got 2$"),
        ({"steps": 3, "codec": {"ratios": [2, "x"]}}, r"^codec\.ratios\[1\]: expected int, got 'x'$"),
        ({"steps": 3, "codec": {"band": [1.0]}}, r"^codec\.band: expected 2 values, got 1$"),
        ({"steps": 3, "codec": {"band": [1.0, None]}}, r"^codec\.band\[1\]: expected float, got None$"),
        ({"steps": 3, "limit": "none"}, r"^limit: expected int, got 'none'$"),
        ({"steps": 3, "shape": "wide"}, r"^shape: expected int, got 'wide'$"),
        ({"steps": 3, "weights": [1]}, r"^weights: expected a table, got \[1\]$"),
        ({"steps": 3, "weights": {"mel": "x"}}, r"^weights\.mel: expected float, got 'x'$"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Settings, values)


def test_whole_numbers_are_taken_for_floats_and_lists_for_tuples():
    settings = from_dict(
        Settings, {"steps": 3, "rate": 2, "codec": {"band": [0, 8000]}, "shape": [1, 2], "limit": None}
    )
    assert isinstance(settings.rate, float)
    assert settings.codec.band == (0.0, 8000.0)
    assert settings.shape == (1, 2)
    assert settings.limit is None


def test_a_value_out_of_range_is_named_with_the_path_of_its_owner():
    with pytest.raises(ConfigError, match=r"^train: steps 0 must be at least 1$"):
        from_dict(Settings, {"steps": 0}, path="train")
    with pytest.raises(ConfigError, match=r"^steps 0 must be at least 1$"):
        from_dict(Settings, {"steps": 0})
    assert issubclass(ConfigError, VoxError)


def test_fingerprint_changes_with_every_setting_and_with_nothing_else():
    base = Settings(steps=1)
    changes = {
        "steps": 2,
        "rate": 1e-4,
        "kind": "nar",
        "resume": True,
        "codec": Codec(band=(0.0, 11_999.0)),
        "stages": (Codec(),),
        "limit": 0,
        "shape": (1,),
        "weights": {"mel": 1.0},
        "extra": "x",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Settings)}
    found = {fingerprint(dataclasses.replace(base, **{name: value})) for name, value in changes.items()}
    assert len(found | {fingerprint(base)}) == len(changes) + 1
    assert fingerprint(base) == fingerprint(Settings(steps=1)) == fingerprint(to_dict(base))
