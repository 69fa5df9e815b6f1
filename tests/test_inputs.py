"""Every known file of prompts becomes weighted inputs; every line that cannot is named."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from harness import apis
from harness.errors import PlanError
from harness.inputs import check_inputs, load_inputs, unsent_columns

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


def written(folder: Path, text: str | bytes, name: str = "inputs.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_an_input_keeps_its_body_apart_from_what_is_ours(tmp_path: Path) -> None:
    line = '{"prompt": "hi", "id": 7, "category": "short", "weight": 2, "max_tokens": 5}'
    (only,) = load_inputs(written(tmp_path, line))
    assert (only.id, only.category, only.weight) == ("7", "short", 2)
    assert only.data == {"prompt": "hi", "max_tokens": 5}


@pytest.mark.parametrize(
    ("line", "data"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}', "messages"),
        ('{"input": ["a", "b"]}', "input"),
        ('{"instances": [[1, 2]]}', "instances"),
    ],
)
def test_each_dialects_own_field_is_taken_as_it_is(tmp_path: Path, line: str, data: str) -> None:
    (only,) = load_inputs(written(tmp_path, line))
    assert list(only.data) == [data]
    assert (only.id, only.category, only.weight) == ("1", "default", 1)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (only,) = load_inputs(written(tmp_path, '\ufeff{"prompt": "a"}'))
    assert only.data == {"prompt": "a"}


def test_a_payload_is_the_whole_body(tmp_path: Path) -> None:
    (only,) = load_inputs(written(tmp_path, '{"payload": {"weight": 3, "x": 1}, "weight": 5}'))
    assert only.data == {"weight": 3, "x": 1}
    assert only.weight == 5


def test_benchmarks_are_known_by_their_shape(tmp_path: Path) -> None:
    text = (
        '{"question_id": 81, "category": "writing", "turns": ["one", "two"], "reference": ["r"]}\n'
        '{"question": "2 + 2?", "answer": "4"}\n'
        "\n"
        '{"task_id": "HumanEval/0", "prompt": "def f():", "test": "assert"}\n'
    )
    bench, gsm, human = load_inputs(written(tmp_path, text))
    assert (bench.id, bench.category, bench.data) == ("81", "writing", {"prompt": "one"})
    assert bench.follow_ups == ("two",)
    assert (gsm.id, gsm.category, gsm.data) == ("2", "math", {"prompt": "2 + 2?"})
    assert (human.id, human.category, human.data) == ("HumanEval/0", "code", {"prompt": "def f():"})


def test_a_traces_prompt_has_about_its_length_and_shares_the_prefix_it_shared(
    tmp_path: Path,
) -> None:
    text = (
        '{"timestamp": 0, "input_length": 1500, "output_length": 9, "hash_ids": [4, 5, 6]}\n'
        '{"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [4, 5, 8]}\n'
        '{"timestamp": 0, "input_length": 1100, "output_length": 7}\n'
    )
    first, second, unshared = load_inputs(written(tmp_path, text))
    prompts = [one.data["prompt"] for one in (first, second, unshared)]
    assert [one.data["max_tokens"] for one in (first, second, unshared)] == [9, 7, 7]
    assert [len(prompt.split()) for prompt in prompts] == pytest.approx(
        [1500, 1100, 1100], rel=0.02
    )
    same = len([1 for a, b in zip(prompts[0], prompts[1], strict=False) if a == b])
    assert prompts[0][:5000] == prompts[1][:5000]
    assert same < len(prompts[1])
    assert prompts[2][:20] != prompts[0][:20]
    assert load_inputs(tmp_path / "inputs.jsonl")[0] == first


def test_the_azure_trace_is_read_from_csv(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6,374,44\r\n"
    (only,) = load_inputs(written(tmp_path, text, "trace.csv"))
    assert only.data["max_tokens"] == 44
    assert len(only.data["prompt"].split()) == pytest.approx(374, rel=0.02)
    assert (only.id, only.category) == ("2", "short")


def test_draws_follow_the_weights_and_the_seed(tmp_path: Path) -> None:
    text = '{"prompt": "a", "weight": 3}\n{"prompt": "b"}\n'
    inputs = load_inputs(written(tmp_path, text))
    rng = np.random.default_rng(1)
    drawn = [inputs.draw(rng).id for _ in range(4000)]
    again = np.random.default_rng(1)
    assert drawn == [inputs.draw(again).id for _ in range(4000)]
    assert abs(Counter(drawn)["1"] - 3000) < 3 * np.sqrt(4000 * 0.75 * 0.25)


def test_categories_tell_their_share_of_the_draws(tmp_path: Path) -> None:
    text = '{"prompt": "a", "weight": 3, "category": "x"}\n{"prompt": "b", "category": "y"}\n'
    assert load_inputs(written(tmp_path, text)).categories == {"x": 0.75, "y": 0.25}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "", "no inputs"),
        ('{"prompt": "a"}\n{"texts": "a"}', ":2", "which no API has"),
        ('[{"prompt": "a"}]', ":1", "one JSON object a line"),
        ('{"prompt": "a"', ":1:15", "not JSON"),
        ('{"prompt": NaN}', ":1", "NaN is no number"),
        ("[" * 100_000, ":1", "not JSON"),
        (b'{"prompt": "\xff"}', ":1:13", "0xff"),
        ('{"prompt": ""}', ":1", "nothing to send"),
        ('{"messages": []}', ":1", "no list"),
        ('{"messages": [{"content": "a"}]}', ":1", 'without a "role"'),
        ('{"prompt": "a", "weight": 0}', ":1", "above zero"),
        ('{"prompt": "a", "weight": true}', ":1", "above zero"),
        ('{"prompt": "a", "weight": 1e999}', ":1", "above zero"),
        ('{"prompt": "a", "category": 3}', ":1", "category"),
        ('{"prompt": "a", "id": [1]}', ":1", "id"),
        ('{"prompt": "a", "id": 1}\n\n{"prompt": "b", "id": "1"}', ":3", "again"),
        ('{"payload": [1]}', ":1", "payload (an object)"),
        ('{"payload": {"a": 1}, "max_tokens": 3}', ":1", "move it into the payload"),
        ('{"input_length": 0, "output_length": 3}', ":1", "> 0"),
        ('{"input_length": 5, "output_length": 3, "hash_ids": "no"}', ":1", "hash_ids"),
        ('{"turns": [1]}', ":1", 'found "turns"'),
        ("TIMESTAMP,Context\nx,1\n", ":1", "ContextTokens and GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1\n", ":2", "whole numbers"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,-1,2\n", ":2", "whole numbers"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named_with_what_is_allowed(
    tmp_path: Path, text: str | bytes, place: str, words: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PlanError) as caught:
        load_inputs(path)
    assert caught.value.place == f"{path}{place}"
    assert words in caught.value.problem


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such file"):
        load_inputs(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("dialect", "line", "words"),
    [
        ("openai-embeddings", {"messages": [{"role": "user"}]}, "needs 'input' or 'prompt'; found 'messages'"),
        ("openai-completions", {"input": "a"}, "needs 'prompt'; found 'input'"),
        ("openai-chat", {"instances": [1]}, "needs 'messages' or 'prompt'; found 'instances'"),
        ("openai-chat", {"payload": {"x": 1}}, "found 'x'"),
    ],
)  # fmt: skip
def test_the_first_input_that_a_dialect_cannot_send_is_named(
    tmp_path: Path, dialect: str, line: dict[str, object], words: str
) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n\n{{"prompt": "so is this"}}\n{json.dumps(line)}\n')
    inputs = load_inputs(path)
    with pytest.raises(PlanError) as caught:
        check_inputs(inputs, path, partial(apis.problem_of, apis.api(dialect)))
    assert caught.value.place == f"{path}:4"
    assert words in caught.value.problem
    check_inputs(inputs, path, partial(apis.problem_of, apis.api("json")))


def test_of_a_trace_no_more_than_one_prompt_is_made_to_check_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    row = {"input_length": 9, "output_length": 9}
    path.write_text(f"{json.dumps(row)}\n" * 5)
    asked: list[object] = []
    check_inputs(load_inputs(path), path, asked.append)
    assert len(asked) == 1


def test_our_own_sample_has_four_categories_and_suits_every_dialect_of_text() -> None:
    inputs = load_inputs(ROOT / "locustfiles" / "prompts.jsonl")
    assert 20 <= len(inputs) <= 24
    assert len(inputs.categories) == 4
    assert all(one.text == one.data["prompt"] for one in inputs)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"prompt": "Hi"}, "Hi"),
        ({"input": "Hi"}, "Hi"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "b"),
        ({"instances": [1]}, '{"instances": [1]}'),
    ],
)
def test_an_inputs_text_is_its_prompt_or_its_last_message(
    tmp_path: Path, line: dict[str, object], text: str
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(line), encoding="utf-8")
    assert load_inputs(tmp_path / "in.jsonl")[0].text == text


@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the project")
@pytest.mark.parametrize(
    ("name", "rows", "mean_tokens"),
    [
        ("mt_bench_questions.jsonl", 80, None),
        ("gsm8k_test_questions.jsonl", 1000, None),
        ("humaneval_prompts.jsonl", 164, None),
        ("mooncake_fast25_conversation.jsonl", 1250, 14_075),
        ("azure_llm_2023_code.csv", 2000, 1987),
        ("azure_llm_2023_conv.csv", 2000, 1105),
    ],
)
def test_the_public_data_sets_are_read_whole(name: str, rows: int, mean_tokens: int | None) -> None:
    inputs = load_inputs(DATA / name)
    assert len(inputs) == rows
    some = [one.data["prompt"] for one in inputs]
    assert all(some)
    if mean_tokens:
        assert np.mean([len(prompt) / 5 for prompt in some]) == pytest.approx(mean_tokens, rel=0.01)


@pytest.mark.parametrize(
    ("line", "data", "follow_ups"),
    [
        ({"prompt": "a", "output_tokens": 7, "timestamp": 3}, {"prompt": "a", "max_tokens": 7}, ()),
        ({"text_input": "a", "output_length": 7}, {"prompt": "a", "max_tokens": 7}, ()),
        ({"custom_id": "c", "method": "POST", "url": "/v1", "body": {"prompt": "a"}},
         {"prompt": "a"}, ()),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                            {"from": "human", "value": "c"}]}, {"prompt": "a"}, ("c",)),
        ({"turns": [{"text": "a"}, {"text": "b"}], "session_id": "s"}, {"prompt": "a"}, ("b",)),
        ({"prompt": [1, 2], "temperature": 0}, {"prompt": [1, 2], "temperature": 0}, ()),
    ],
)  # fmt: skip
def test_other_tools_columns_get_their_meaning_and_none_is_sent_as_it_is(
    tmp_path: Path, line: object, data: object, follow_ups: object
) -> None:
    (only,) = load_inputs(written(tmp_path, json.dumps(line)))
    assert (only.data, only.follow_ups) == (data, follow_ups)


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": null}', '{"prompt": 3}', '{"prompt": {}}', '{"input": null}', '{"input": []}',
        '{"messages": null}', '{"messages": [{"role": null}]}', '{"question": null}',
        '{"messages": [{"role": "user", "content": 1}]}', '{"task_id": "t", "prompt": null}',
        '{"prompt": "a", "max_tokens": "7"}', '{"prompt": "a", "output_tokens": null}',
        '{"prompt": "a", "output_tokens": 1, "max_tokens": 1}', '{"prompt": "a", "odd": 1}',
        '{"conversations": [{"from": "human", "value": null}]}', '{"turns": []}',
        '{"conversations": [{"from": "gpt", "value": "a"}]}', '{"text_input": null}',
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_inputs(written(tmp_path, '{"prompt": "first"}\n' + line))
    assert caught.value.place.endswith(":2")


def test_for_the_json_api_the_fields_are_the_users_own(tmp_path: Path) -> None:
    (only,) = load_inputs(written(tmp_path, '{"prompt": null, "output_tokens": 1}'), raw=True)
    assert only.data == {"prompt": None, "output_tokens": 1}


@pytest.mark.parametrize("block", [16, 64, 512])
def test_the_block_of_a_traces_hash_ids_follows_from_its_lengths(
    tmp_path: Path, block: int
) -> None:
    rows = [
        {"input_length": 3 * block, "output_length": 1, "hash_ids": [1, 2, last]} for last in (3, 4)
    ]
    first, second = load_inputs(written(tmp_path, "\n".join(map(json.dumps, rows))))
    a, b = first.data["prompt"], second.data["prompt"]
    alike = next(i for i in range(len(a)) if a[i] != b[i])
    assert 2 * block * 5 <= alike <= 2 * block * 5 + 8
    assert len(a) == len(b) == 3 * block * 5


def test_hash_ids_that_go_with_no_block_are_refused(tmp_path: Path) -> None:
    rows = ['{"input_length": 32, "output_length": 1, "hash_ids": [1, 2]}',
            '{"input_length": 4000, "output_length": 1, "hash_ids": [1, 2]}']  # fmt: skip
    with pytest.raises(PlanError, match="no number of tokens a block fits") as caught:
        load_inputs(written(tmp_path, "\n".join(rows)))
    assert caught.value.place.endswith(":2")


def test_columns_of_other_tools_that_are_not_sent_are_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"prompt": "a", "timestamp": 1, "output_tokens": 5}\n'
        '{"prompt": "b", "session_id": "x"}\n'
        '{"input_length": 10, "output_length": 5, "hash_ids": [1], "timestamp": 3}\n'
    )
    assert unsent_columns(file) == ("session_id", "timestamp")
