"""Both networks: published counts, what each part may see, and what starts at nothing."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.layers.execution import Execution
from voxinstruct_jax.models import mmdit
from voxinstruct_jax.models.conditions import Conditions, null_conditions
from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig, layer_map

CHANNELS, FRAMES, TOKENS, PHONES = 3, 7, 4, 5
SMALL = {"model_dim": 16, "num_heads": 2, "rotary_dims": 4}
UNISON = dataclasses.replace(
    MMDiTConfig.unison(joint_blocks=2, latent_channels=CHANNELS), text_dim=6, embedder="lite", **SMALL
)
INSTRUCT = dataclasses.replace(
    MMDiTConfig.instructaudio(), latent_channels=CHANNELS, joint_blocks=2, single_blocks=1, text_dim=6,
    embedder_kernel_size=3, phones=dataclasses.replace(MMDiTConfig.instructaudio().phones, num_phones=9, model_dim=8,
    num_layers=1, num_heads=2, ffn_dim=8), **SMALL,
)  # fmt: skip

BOTH, SHARED = (dataclasses.replace(UNISON, text_stream=stream) for stream in ("both", "shared"))
FORMS = {"unison": UNISON, "instructaudio": INSTRUCT, "both": BOTH, "shared": SHARED}


def parameters(config):
    state = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: MMDiT(config, rngs=nnx.Rngs(0)))))
    counts = Counter()
    for path, leaf in state:
        counts[path[0]] += leaf.get_value().size
    return counts


def totals(config, joint_blocks, single_blocks=0):
    """By part, of a network with more blocks, from those of one and two: blocks are alike but for the last one."""
    one, two = (
        parameters(dataclasses.replace(config, joint_blocks=n, single_blocks=n * bool(single_blocks))) for n in (1, 2)
    )
    more = {"joint_blocks": joint_blocks - 1, "single_blocks": single_blocks - 1}
    return {part: one[part] + more.get(part, 0) * (two[part] - one[part]) for part in one}


def test_unison_has_the_published_number_of_weights():
    config = MMDiTConfig.unison(joint_blocks=20, latent_channels=40)
    found = totals(config, 20)
    assert sum(found.values()) / 1e6 == pytest.approx(620.78, abs=0.005)
    assert (found["embedder"], found["time"]) == (61_136_896, 1_312_768)
    wider = totals(dataclasses.replace(config, latent_channels=20), 24)
    assert sum(wider.values()) / 1e6 == pytest.approx(731.71, abs=0.005)
    narrower_text = sum(wider.values()) - 24 * (3584 - 2048) * 1024  # of a 3B text encoder
    assert narrower_text / 1e6 == pytest.approx(693.96, abs=0.005)


def test_unison_s_ablations_have_the_published_number_of_weights():
    """Of streams carried on but for what nobody reads of the last block's text: the published 974.67M and 1062.78M."""
    published = {("persistent", 24): 974.67, ("both", 24): 1062.78, ("shared", 32): 685.44}
    unread = 18_889_984 - 5_248_256  # a whole stream, and one that ends at keys and values
    for (stream, blocks), count in published.items():
        config = MMDiTConfig.unison(joint_blocks=blocks, latent_channels=20, text_stream=stream)
        assert config.text_layer == ("penultimate" if config.carries_text else "last")
        found = sum(totals(config, blocks).values()) + unread * config.carries_text
        assert found / 1e6 == pytest.approx(count, abs=0.005)


def test_instructaudio_has_the_published_number_of_weights_but_for_its_phone_encoder():
    """1,341.95M with a Zipformer of 4.23M in place of ours."""
    found = totals(MMDiTConfig.instructaudio(), 14, 6)
    assert found["joint_blocks"] == 27 * 37_764_224 + 5_248_128
    assert found["single_blocks"] == 6 * 37_764_224
    assert sum(found.values()) / 1e9 == pytest.approx(1.34, abs=0.005)
    projection = 197_632
    rest = sum(count for part, count in found.items() if part != "phone_encoder")
    assert (rest + projection + 4.23e6) / 1e6 == pytest.approx(1341.95, abs=0.05)


@pytest.mark.parametrize(
    ("layers", "blocks", "expected"),
    [
        (28, 20, [1, 2, 3, 5, 6, 8, 9, 10, 12, 13, 15, 16, 18, 19, 20, 22, 23, 25, 26, 28]),
        (28, 24, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 28]),
        (36, 20, [1, 2, 4, 6, 8, 10, 12, 13, 15, 17, 19, 21, 23, 24, 26, 28, 30, 32, 34, 36]),
        (12, 8, [1, 2, 4, 5, 7, 8, 10, 12]),
        (4, 1, [4]),
    ],
)
def test_blocks_read_the_layers_of_the_paper(layers, blocks, expected):
    assert list(layer_map(layers, blocks)) == expected


def test_the_layer_map_rises_from_the_first_layer_to_the_last():
    for layers in range(2, 30):
        for blocks in range(2, 60):
            found = layer_map(layers, blocks)
            assert (found[0], found[-1]) == (1, layers)
            assert sorted(found) == list(found)


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def model(request, build):
    return build(MMDiT, request.param)


def inputs(config, seed=0, *, frames=FRAMES, tokens=TOKENS, phones=PHONES):
    """Two rows; the second is shorter in all respects."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    def first(width, count):
        return jnp.arange(width) < jnp.array([[count], [count - 2]])

    parts = {"text": normal(2, config.text_layers, tokens, 6), "text_mask": first(tokens, TOKENS)}
    if config.phones is not None:
        ids = jnp.asarray(random.integers(1, 9, (2, phones)), jnp.int32)
        mask = first(phones, PHONES)
        parts |= {"content": jnp.where(mask, ids, 0), "content_mask": mask}
    if config.source:
        parts |= {"source": normal(2, frames, CHANNELS), "task_tag": jnp.ones((2, frames))}
    return normal(2, frames, CHANNELS), jnp.array([300.0, 700.0]), Conditions(**parts), first(frames, FRAMES)


@functools.partial(jax.jit, static_argnames="graph")
def run(graph, state, x, t, conditions, mask):
    return nnx.merge(graph, state)(x, t, conditions, mask)


def predict(model, x, t, conditions, mask):
    return np.asarray(run(*nnx.split(model), x, t, conditions, mask))


def test_padding_changes_nothing(model):
    """Rows made longer, and filled with rubbish beyond their lengths."""
    x, t, conditions, mask = inputs(model.config)
    plain = predict(model, x, t, conditions, mask)
    rubbish = {}
    for name in ("text", "content", "source"):
        value = getattr(conditions, name)
        if value is None:
            continue
        shown = {"text": conditions.text_mask[:, None], "content": conditions.content_mask, "source": mask}[name]
        shown = shown[..., None] if value.ndim > shown.ndim else shown
        rubbish[name] = value if name == "content" else jnp.where(shown, value, 1e3)
    x = jnp.where(mask[..., None], x, 1e3)
    changed = predict(model, x, t, dataclasses.replace(conditions, **rubbish), mask)
    np.testing.assert_allclose(changed[0], plain[0], atol=1e-4)
    np.testing.assert_allclose(changed[1, : FRAMES - 2], plain[1, : FRAMES - 2], atol=1e-4)


def test_each_condition_tells(model):
    x, t, conditions, mask = inputs(model.config)
    plain = predict(model, x, t, conditions, mask)
    slots = [slot for slot in ("text", "content", "source") if getattr(conditions, slot) is not None]
    for slot in slots:
        without = predict(model, x, t, null_conditions(conditions, (slot,), jnp.array([True, False])), mask)
        assert np.abs(without[0] - plain[0]).max() > 1e-3
        np.testing.assert_allclose(without[1], plain[1], atol=1e-5)
    if conditions.task_tag is not None:
        tagged = dataclasses.replace(conditions, task_tag=2 * conditions.task_tag)
        assert np.abs(predict(model, x, t, tagged, mask) - plain).max() > 1e-3


def test_a_dropped_text_is_no_text(model):
    x, t, conditions, mask = inputs(model.config)
    dropped = null_conditions(conditions, ("text", "content"), jnp.ones(2, bool))
    none = dataclasses.replace(conditions, text=None, text_mask=None, content=None, content_mask=None)
    np.testing.assert_allclose(predict(model, x, t, dropped, mask), predict(model, x, t, none, mask), atol=1e-4)


def test_the_time_tells(model):
    x, t, conditions, mask = inputs(model.config)
    assert np.abs(predict(model, x, t + 100, conditions, mask) - predict(model, x, t, conditions, mask)).max() > 1e-3


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("execution", [Execution(scan=True), Execution(remat="names")], ids=["scan", "remat"])
def test_how_blocks_are_run_changes_nothing(build, config, execution):
    config = dataclasses.replace(config, joint_blocks=3, single_blocks=2 * bool(config.single_blocks))
    given = inputs(config)
    plain = build(MMDiT, config)
    other = build(lambda config, rngs: MMDiT(config, execution=execution, rngs=rngs), config)
    np.testing.assert_allclose(predict(other, *given), predict(plain, *given), atol=2e-4)


def test_a_fresh_network_predicts_nothing_and_reads_no_source():
    x, t, conditions, mask = inputs(UNISON)
    joined = jnp.concatenate([x, conditions.source, conditions.task_tag[..., None]], axis=-1)

    @jax.jit
    def run():
        model = MMDiT(UNISON, rngs=nnx.Rngs(0))
        without = joined.at[..., CHANNELS:].set(0)
        return model(x, t, conditions, mask), model.embedder(joined, mask), model.embedder(without, mask)

    predicted, embedded, alone = run()
    assert not predicted.any()
    np.testing.assert_array_equal(embedded, alone)
    assert np.abs(embedded).max() > 0


def test_asking_for_frames_alone_changes_nothing():
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(random.standard_normal((2, 9, 2, 4)), jnp.float32) for _ in range(3))
    mask = jnp.arange(9) < jnp.array([[9], [6]])
    whole = mmdit._attend([query, key, value], mask, 9, Execution(attention="reference"))
    part = mmdit._attend([query, key, value], mask, 4, Execution(attention="reference"))
    np.testing.assert_allclose(part, whole[:, :4], atol=1e-6)


def test_frames_are_told_apart_by_distance_and_the_last_dimensions_not_at_all(model):
    dims = model.config.rotary_dims
    query, key = (
        jnp.asarray(np.random.default_rng(seed).standard_normal((1, 6, 2, 8)), jnp.float32) for seed in (0, 1)
    )

    def scores(offset, both):
        rotary = model._rotary(jnp.arange(6)[None] + offset)
        turned = mmdit._rotate_first(query, rotary, dims)
        np.testing.assert_array_equal(turned[..., dims:], query[..., dims:])
        return jnp.einsum("bthd,bshd->bhts", turned, mmdit._rotate_first(key, rotary, dims) if both else key)

    np.testing.assert_allclose(scores(0, both=True), scores(11, both=True), atol=1e-4)
    assert np.abs(scores(0, both=False) - scores(11, both=False)).max() > 0.01  # text keys are not turned


def test_a_convolution_does_not_reach_across_the_seam(build):
    model = build(MMDiT, INSTRUCT)
    stream = model.joint_blocks[0].text
    x, mask = jnp.ones((1, 6, 16)), jnp.ones((1, 6), bool)
    before = mmdit._masked(stream.output, x, mask, 3)
    after = mmdit._masked(stream.output, x.at[:, 3].set(5.0), mask, 3)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.array_equal(before[:, 3:], after[:, 3:])


def test_text_encoders_in_the_step_give_a_state_a_block(build):
    config = MMDiTConfig.unison_tiny(CHANNELS, (11, 7))
    model = build(MMDiT, config)
    tokens, mask = jnp.ones((2, 5, 2), jnp.int32), jnp.ones((2, 5), bool)
    states = model.encode_text(tokens, mask)
    assert states.shape == (2, 4, 5, 64)
    np.testing.assert_allclose(states[:, -1], model.text_encoder(tokens, mask.astype(jnp.int32)), atol=1e-5)
    single = build(MMDiT, MMDiTConfig.instructaudio_tiny(CHANNELS, (11, 7), 9))
    assert single.encode_text(tokens, mask).shape == (2, 1, 5, 64)
    both = build(MMDiT, dataclasses.replace(config, text_stream="both", text_layer="penultimate"))
    found = both.encode_text(tokens, mask)  # of four layers the third, then each
    assert found.shape == (2, 5, 5, 64)
    np.testing.assert_array_equal(found[:, 0], found[:, 3])
    with pytest.raises(InputError, match="no text encoder of its own"):
        build(MMDiT, UNISON).encode_text(tokens, mask)


def test_text_of_another_number_of_layers_is_refused(model):
    x, t, conditions, mask = inputs(model.config)
    wrong = dataclasses.replace(conditions, text=jnp.zeros((2, 7, TOKENS, 6)))
    with pytest.raises(InputError, match="7 layers of text states"):
        model(x, t, wrong, mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "must be a multiple of num_heads 3"),
        ({"rotary_dims": 9}, "model.rotary_dims: 9 must be even"),
        ({"kernel_size": 2}, "model.kernel_size: 2 must be odd"),
        ({"phones": INSTRUCT.phones}, "make it 'persistent'"),
        ({"text_stream": "shared", "kernel_size": 3}, "must be 1 where text goes through the same weights"),
        ({"joint_blocks": 0}, "model.joint_blocks: 0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(UNISON, **changes)
