"""No secret is written or shown, whole or cut."""

import pytest

from harness.masking import mask

KEY = "sk-1234567890"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"wrong key {KEY} given", "wrong key *** given"),
        (f"{KEY}{KEY}", "******"),
        (f"cut at the end {KEY[:8]}", "cut at the end ***"),
        (f"cut at the end {KEY[:8]}…", "cut at the end ***"),
        (f"too short to tell {KEY[:5]}", f"too short to tell {KEY[:5]}"),
        ("nothing to hide", "nothing to hide"),
        ("", ""),
    ],
)
def test_a_secret_is_masked_wherever_it_stands_and_where_the_texts_end_cuts_it(text, shown):
    assert mask(text, [KEY]) == shown


def test_a_longer_secret_that_holds_a_shorter_one_goes_first():
    assert mask(f"Bearer {KEY}", [f"Bearer {KEY}", KEY]) == "***"
