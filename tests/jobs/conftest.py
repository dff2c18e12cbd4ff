import pytest
from fake_voice import FakeVoice


@pytest.fixture
def fake_voice():
    return FakeVoice
