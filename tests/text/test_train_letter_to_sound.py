import random

from voxinstruct_jax.text.lexicon import english_lexicon
from voxinstruct_jax.text.train_letter_to_sound import accuracy, train


def test_a_short_training_learns_to_read_words_it_never_saw():
    words = [(word, tuple(phones.split())) for word, phones in sorted(english_lexicon().items())]
    words = random.Random(1).sample(words, 3200)
    figures = accuracy(train(words[200:], num_epochs=12), words[:200])
    # Naming the commonest chunk of each letter alone gets .55 of the phones without stress right on these words.
    assert figures["phone_plain"] > 0.7
    assert figures["word"] <= figures["word_plain"] <= figures["phone_plain"]
