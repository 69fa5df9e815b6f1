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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no", "***"),
        ("Authorization: no", "Authorization: ***"),
        ("{'api-key': 'no'}", "{'api-key': '***'}"),
        ('{"X-Api-Key":"no","model":"no"}', '{"X-Api-Key":"***","model":"no"}'),
        ("?api_key=no&n=no", "?api_key=***&n=no"),
        ("sent Authorization: Bearer no, 401", "sent Authorization: Bearer ***, 401"),
        ("password = no\nno answer", "password = ***\nno answer"),
        ("api_key: none", "api_key: none"),
        ("there is no answer: no", "there is no answer: no"),
        ("", ""),
    ],
)
def test_a_short_secret_goes_only_where_it_is_a_whole_value(text, shown):
    assert mask(text, ["no"]) == shown


def test_a_longer_secret_that_holds_a_shorter_one_goes_first():
    assert mask(f"Bearer {KEY}", [f"Bearer {KEY}", KEY]) == "***"
