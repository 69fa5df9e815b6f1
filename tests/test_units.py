"""Quantities survive the way to text and back, and rounding never tells a lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.units import (
    format_clock,
    format_count,
    format_duration,
    format_money,
    format_rate,
    format_ratio_of_limit,
    format_share,
    parse_duration,
    parse_money,
    parse_rate,
    parse_share,
    parse_token_price,
)

SPACE = "\u202f"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("250us", 250_000),
        ("250µs", 250_000),
        ("250μs", 250_000),
        ("300ms", 300_000_000),
        ("0.1ms", 100_000),
        ("1.5s", 1_500_000_000),
        (" 4 s ", 4_000_000_000),
        ("2m", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("0s", 0),
    ],
)
def test_a_duration_is_read_exactly(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("800", "write 800ms or 800s"),
        ("5%", "is not a duration"),
        ("-5s", "not a number"),
        ("1m30s", "is not a duration"),
        ("1e3s", "is not a duration"),
        ("", "not a number"),
        ("9000h", "longer than a year"),
        ("0.0001us", "shorter than a nanosecond"),
        ("٣s", "not a number"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_right_spelling(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_duration(text)


def test_money_is_read_in_nano_dollars_and_a_price_of_tokens_by_the_token() -> None:
    assert [parse_money(text) for text in ("$0.002", " $ 1 ", "$0")] == [2_000_000, 10**9, 0]
    prices = [parse_token_price(text) for text in ("$0.15/1M", "$0.0001/1k", "$2.5 /1M")]
    assert prices == [150, 100, 2500]
    assert str(parse_token_price("$0.000001/1M").normalize()) == "0.001"


@pytest.mark.parametrize(
    ("text", "amount", "price"),
    [
        ("0.002", "write \\$0.002$", "write \\$0.002/1M$"),
        ("0.15/1M", "with no /1M behind it", "write \\$0.15/1M$"),
        ("$0.15", "", "write \\$0.15/1M"),
        ("$0.15/1M", "an amount is", ""),
        ("$0.15/1m", "an amount is", "per 1M or 1k"),
        ("$1,000", "an amount is", "per 1M or 1k"),
        ("-$1", "US dollars, like", "like \\$0.15/1M"),
        ("$1000001", "more than a million", "write"),
        ("$1001/1k", "an amount is", "more than a dollar for each token"),
        ("€1", "US dollars, like", "like \\$0.15/1M"),
        ("1 USD", "US dollars, like", "like \\$0.15/1M"),
    ],
)
def test_what_is_no_money_is_refused_with_the_right_spelling(
    text: str, amount: str, price: str
) -> None:
    for parse, words in ((parse_money, amount), (parse_token_price, price)):
        if words:
            with pytest.raises(ValueError, match=words):
                parse(text)


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (1_840_000, "$0.00184"),
        (1_841_234, "$0.00184"),
        (1_840_000_000, "$1.84"),
        (3_600_000_000_000, "$3,600"),
        (12_345_600_000_000, "$12,346"),
        (99_960_000_000, "$100"),
        (200, "$0.0000002"),
        (0.25, "$0.00000000025"),
        (0, "$0"),
        (-1_500_000_000, "\u2212$1.5"),
    ],
)
def test_money_is_shown_with_three_digits(nano: float, text: str) -> None:
    assert format_money(nano) == text


def test_a_rate_is_read_per_second() -> None:
    assert [parse_rate(text) for text in ("20/s", "600/m", "3600/h", "0.5 /s")] == [20, 10, 1, 0.5]


@pytest.mark.parametrize("text", ["20", "20rps"])
def test_a_rate_that_does_not_say_per_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 20/s"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["20/min", "20s", "/s", "20/"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="like 20/s"):
        parse_rate(text)


def test_a_share_is_read_as_the_nearest_float() -> None:
    assert [parse_share(text) for text in ("0.1%", "99.5 %", "0%", "100%")] == [0.001, 0.995, 0, 1]


@pytest.mark.parametrize(("text", "words"), [("0.5", "0.5%"), ("5s", "like"), ("101%", "100%")])
def test_what_is_no_share_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_share(text)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (1_151_000_000, "1.15 s"),
        (999_400, "999 µs"),
        (999_600, "1.00 ms"),
        (1_000_000, "1 ms"),
        (60_000_000_000, "60 s"),
        (1_200_000_004, "1.20 s"),
        (99_960_000, "100 ms"),
        (1_151_000_000_000, "1,151 s"),
        (42, "0.042 µs"),
        (0, "0 µs"),
        (-5_000_000, "−5 ms"),
        (3_910_000.4, "3.91 ms"),
    ],
)
def test_a_duration_is_shown_with_three_digits_in_the_fitting_unit(ns: float, text: str) -> None:
    assert format_duration(ns) == text.replace(" ", SPACE)


def test_a_pinned_unit_keeps_big_whole_numbers_and_three_digits_of_small_ones() -> None:
    assert format_duration(1_151_000_000, unit="ms") == f"1,151{SPACE}ms"
    assert format_duration(1_234_567, unit="ms") == f"1.23{SPACE}ms"
    assert format_duration(12_300, unit="s") == f"0.0000123{SPACE}s"
    assert format_duration(1_151_000_000, unit="us") == f"1,151,000{SPACE}µs"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.0111, "1.11 %"),
        (0.001, "0.1 %"),
        (0.99999, "99.999 %"),
        (0.9996, "99.96 %"),
        (1.00001, "100.001 %"),
        (1e-9, "0.0000001 %"),
    ],
)
def test_a_share_keeps_what_matters(share: float, text: str) -> None:
    assert format_share(share) == text.replace(" ", SPACE)


@given(st.floats(min_value=0, max_value=1))
def test_only_nothing_is_0_percent_and_only_all_is_100_percent(share: float) -> None:
    shown = format_share(share).removesuffix(f"{SPACE}%")
    assert (float(shown) == 0) == (share == 0)
    assert (shown == "100") == (share == 1)


@given(st.integers(min_value=1, max_value=10**15))
def test_a_duration_shown_is_within_half_a_unit_of_the_third_digit(ns: int) -> None:
    number, unit = format_duration(ns).split(SPACE)
    shown = parse_duration(number.replace(",", "") + unit)
    assert abs(shown - ns) <= max(ns * 0.005, 1)


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_no_hyphen_ever_stands_for_a_minus(n: int) -> None:
    assert "-" not in format_count(n) + format_duration(n) + format_rate(n) + format_clock(n)


def test_counts_rates_clocks_and_ratios_read_as_in_the_report() -> None:
    assert format_count(2104) == "2,104"
    assert [format_rate(x) for x in (20.0, 19.97, 1234.4, 0.05)] == [
        "20/s",
        "20.0/s",
        "1,234/s",
        "0.05/s",
    ]
    assert [format_clock(x) for x in (368, 3725, 5.9, 0)] == ["6:08", "1:02:05", "0:05", "0:00"]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.44, "1.44×"),
        (0.85, "85 %"),
        (1.0, "100 %"),
        (1.0004, "1.0004×"),
        (0.9996, "99.96 %"),
        (144.2, "144×"),
        (float("inf"), "∞×"),
    ],
)
def test_a_ratio_just_beyond_the_limit_never_looks_equal_to_it(ratio: float, text: str) -> None:
    assert format_ratio_of_limit(ratio) == text.replace(" ", SPACE)
