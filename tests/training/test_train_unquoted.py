import random

import numpy as np

from voxinstruct_jax.text.lexicon import REQUESTS_FILE, read_data
from voxinstruct_jax.text.sample_requests import read_samples
from voxinstruct_jax.text.unquoted import NUM_CLUES
from voxinstruct_jax.training.unquoted import accuracy, train


def test_a_short_training_reads_requests_that_it_never_saw():
    requests = read_samples(read_data(REQUESTS_FILE))
    assert len(requests) > 1500
    drawn = random.Random(0).sample(requests, 500)
    known, unknown = drawn[:400], drawn[400:]
    quoted = [(f'A man says "{request.words}" slowly.', request.words) for request in known]
    weights = train(known, quoted, num_epochs=4)
    right, total = accuracy(weights, unknown)
    assert total == len(unknown)
    assert right > 0.5 * total > 2 * accuracy(np.zeros(NUM_CLUES, np.float32), unknown)[0]
