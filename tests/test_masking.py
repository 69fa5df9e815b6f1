"""No secret is written or shown, whole or cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import PREDICT, Asked, invoked, serving

from harness.masking import mask, mask_query, query_secrets
from harness.plan import load_plan, masked, plan_from_options

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


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("http://h/?api_key=abcdefgh&api-version=3#top", "http://h/?api_key=***&api-version=3#top"),
        ("http://h/v1?abcdefgh", "http://h/v1?***"),
        ("http://h/?a=b;c=${VAR}&d=${VAR:-default}", "http://h/?a=***;c=${VAR}&d=***"),
        ("${TARGET:-http://h/?key=abc}", "${TARGET:-http://h/?key=***}"),
        ("http://h/?key=&a", "http://h/?key=&***"),
        ("embedded", "embedded"),
    ],
)
def test_of_a_urls_query_only_names_variables_and_harmless_values_are_shown(written, shown):
    assert mask_query(written) == shown


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("http://h/?api_key=a%20b&code=abcd1234", {"a%20b", "a b", "abcd1234"}),
        ("http://h/?code=12345&sig=word", {"?code=12345", "&code=12345", "?sig=word", "&sig=word"}),
        ("http://h/?ABCDEF#abc", {"ABCDEF"}),
        ("http://h/?api-version=2024-02-01&empty=", set()),
        ("http://h/a=abcdefgh", set()),
    ],
)
def test_a_querys_values_are_secrets_a_word_only_with_its_name(url, hidden):
    assert query_secrets(url) == hidden


KEYS = {
    "Ocp-Apim-Subscription-Key": "0123-subscription",
    "X-Auth": "4567-auth-of-ours",
    "X-Functions-Code": "89ab-functions==",
    "X-Goog-Signature": "cdef-signature",
    "X-Amz-Security-Token": "ghij-security",
    "Authorization": "Bearer klmn-authorization",
}
PLAN = """\
target:
  url: {url}/?code=opqr-of-the-query
  path: /v2?sig=stuv-of-the-path
  api: json
  headers: {headers}
  params: {{ user: everyone, api_key: wxyz-of-the-body }}
scenario: scenario.py
load: {{ arrivals: constant 20/s, for: 1s }}
budgets: [predict.error_rate < 99%]
"""


def echoed(asked: Asked, number: int) -> None:
    """Refuse every second request, with all that was sent with it."""
    said = f"{asked.path} {dict(asked.headers.items())} {asked.body.decode()}"
    asked.reply(*((200, {"predictions": [1]}) if number % 2 else (403, said)))


def test_no_value_of_a_header_or_a_query_reaches_a_file_or_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scenario.py").write_text(PREDICT)
    sent = KEYS | {"X-Team": "no", "User-Agent": "our-own-agent"}
    with serving(echoed) as url:
        Path("plan.yaml").write_text(PLAN.format(url=url, headers=sent))
        done = invoked("run", "plan.yaml", "--out", "run", "-v")
    assert done.exit_code in (0, 3, 4, 5), done.output
    files = [f.read_text(errors="replace") for f in Path("run").rglob("*") if f.is_file()]
    values = [value.removeprefix("Bearer ") for value in KEYS.values()]
    queries = ["opqr-of-the-query", "stuv-of-the-path", "wxyz-of-the-body"]
    for text in (*files, done.output):
        assert [value for value in [*values, *queries] if value in text] == []
    kept = Path("run/requests.jsonl").read_text()
    assert "'Ocp-Apim-Subscription-Key': '***'" in kept  # of the echo, which is cut after it
    plan = json.loads(Path("run/run.json").read_text())["plan"]
    assert "'User-Agent': 'our-own-agent'" in plan
    assert "'X-Team': \"***\"" in plan
    assert "user: everyone" in plan


@pytest.mark.parametrize("quote", ["'", '"', ""])
def test_a_masked_plan_is_still_a_plan(tmp_path: Path, quote: str) -> None:
    (tmp_path / "scenario.py").write_text(PREDICT)
    text = PLAN.format(url="http://h", headers={"X-Auth": "4567", "Accept": "*/*"})
    text = text.replace("http://h/?code=opqr-of-the-query", f"{quote}http://h/?c=1&v2{quote}")
    (tmp_path / "plan.yaml").write_text(text)
    shown = yaml.safe_load(load_plan(tmp_path / "plan.yaml").redacted_source)["target"]
    assert shown["url"] == "http://h/?c=***&***"
    assert shown["path"] == "/v2?sig=***"
    assert shown["headers"] == {"X-Auth": "***", "Accept": "*/*"}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("X-Auth", "hunter2", True),
        ("X-Auth", "Token abcd1234", True),
        ("X-Api-Key", "predict", True),
        ("X-Team", "predict-service", False),  # a step may be called so
        ("X-Team", "12345", False),
        ("X-Request-Id", "4567-8901-abcd", False),
    ],
)
def test_a_headers_value_is_masked_anywhere_unless_it_is_a_word(
    tmp_path: Path, name: str, value: str, found: bool
) -> None:
    (tmp_path / "scenario.py").write_text(PREDICT)
    (tmp_path / "plan.yaml").write_text(PLAN.format(url="http://h", headers={name: value}))
    plan = load_plan(tmp_path / "plan.yaml")
    word = value.removeprefix("Token ")
    assert (word not in masked(plan, f"refused {word}, sorry")) is found


def test_a_plan_that_options_make_shows_no_value_of_a_header_or_a_query(tmp_path: Path) -> None:
    (tmp_path / "scenario.py").write_text(PREDICT)
    plan = plan_from_options(
        scenario=tmp_path / "scenario.py",
        url="http://h/?code=opqr-of-the-query",
        headers=("X-Auth: 4567", "Accept: text/plain"),
        concurrency=1,
        budgets=("predict.error_rate < 99%",),
    )
    shown = yaml.safe_load(plan.redacted_source)["target"]
    assert shown == {
        "url": "http://h/?code=***", "headers": {"X-Auth": "***", "Accept": "text/plain"}
    }  # fmt: skip


@pytest.mark.parametrize(
    "url", ["h/?code=opqr1234", "ftp://h/?code=opqr1234", "http://?code=opqr1234"]
)
def test_a_url_that_cannot_be_used_is_repeated_without_its_query(url: str) -> None:
    done = invoked("run", "--target", url, "--concurrency", 1, __file__)
    assert done.exit_code == 2
    assert "?code=***" in done.output
    assert "opqr1234" not in done.output


def test_a_target_that_does_not_answer_is_named_without_its_query(tmp_path: Path) -> None:
    (tmp_path / "scenario.py").write_text(PREDICT)
    (tmp_path / "plan.yaml").write_text(PLAN.format(url="http://127.0.0.1:1", headers={"X": "y"}))
    b = "http://127.0.0.1:1/?code=of-the-other"
    done = invoked("ab", tmp_path / "plan.yaml", "--a", b, "--b", b, "--out", tmp_path / "ab")
    assert done.exit_code == 6
    assert "http://127.0.0.1:1/?code=*** did not pass" in done.output
    assert "of-the-other" not in done.output
