"""What the speech endpoints of platforms remember."""

from gateway.platforms.audio import FRESH_S, Remembered


def test_what_a_platform_told_is_asked_again_after_a_while():
    clock = [0.0]
    told = Remembered[str](lambda: clock[0])
    assert told.get() is None
    told.keep("a voice")
    clock[0] = FRESH_S - 1
    assert told.get() == "a voice"
    clock[0] = FRESH_S
    assert told.get() is None
