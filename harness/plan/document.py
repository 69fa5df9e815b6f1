"""A YAML text as plain values that know their line and column; the only place that reads YAML.

`${VAR}` and `${VAR:-default}` become text inside one value, never structure, and `$${` stands for
the characters `${`. Only text, numbers, true, false, lists and keys with values come out: no tags,
no merge keys, no repeated keys, and bounds on size, on depth and on what aliases unfold to.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import yaml

from harness.budget import near_miss
from harness.errors import PlanError
from harness.masking import (
    MASK,
    SHORT,
    anywhere,
    is_harmless,
    is_secret,
    mask_query,
    only_variable,
    query_secrets,
)

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 10_000  # counted with every alias written out

Loc = tuple[int | str, ...]

_VARIABLE = re.compile(
    r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\})?"
)
_SCHEME = re.compile(r"^(bearer|basic|token|apikey)\s+", re.IGNORECASE)
_SEPARATORS = re.compile(r"\$\{\w*(?::-)?|[\s=:;,}]+")
_USERINFO = re.compile(r"://([^/?#\s]*)@")
_TOO_DEEP = f"found values nested more than {MAX_DEPTH} deep, aliases written out; flatten them"
_HEADERS = ("target", "headers")
_URLS = (("target", "url"), ("target", "path"))
_MAKE = yaml.constructor.SafeConstructor
_SCALARS: dict[str, Any] = {
    "str": _MAKE.construct_yaml_str,
    "timestamp": _MAKE.construct_yaml_str,  # a date is text to us
    "int": _MAKE.construct_yaml_int,
    "float": _MAKE.construct_yaml_float,
    "bool": _MAKE.construct_yaml_bool,
    "null": _MAKE.construct_yaml_null,
}


class Places(Protocol):
    """Knows where a value was written."""

    def place(self, loc: Loc, *, key: bool = False, column: int = 1) -> str:
        """Return where the value, or its key, stands; `column` is 1-based within its text."""


def secret_parts(text: str) -> set[str]:
    """Return what of a secret must not be seen: all, the token after `Bearer `, long parts."""
    parts = {part for part in _SEPARATORS.split(text) if len(part) > 11}
    return {text, _SCHEME.sub("", text), *parts} - {""}


def url_secrets(url: str) -> set[str]:
    """Return what of a URL must not be seen: its password, or its user where that stands alone,
    as written, decoded, and as the header `Basic` carries both."""
    found = _USERINFO.search(url)
    if found is None:
        return set()
    user, colon, password = found[1].partition(":")
    secret = password if colon else user
    pair = f"{unquote(user)}:{unquote(password)}"
    basic = base64.b64encode(pair.encode()).decode()
    return {secret, unquote(secret), found[1], basic} if secret else set()


def read_text(path: Path) -> str:
    """Read a file of bounded size as UTF-8; PlanError when that fails."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PlanError(str(path), f"cannot be read: {reason}; name a plan file") from None
    if len(raw) > MAX_BYTES:
        raise PlanError(str(path), f"is larger than the {MAX_BYTES:,} bytes a plan may have")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(raw[: error.start].decode())
        raise PlanError(
            f"{path}:{line}:{column}",
            f"found the byte 0x{raw[error.start]:02x}; allowed is UTF-8; save it as that",
        ) from None


class Document:
    """`data` holds the values of a plan file; raises PlanError where it is not plain YAML."""

    def __init__(self, path: Path, text: str, environ: Mapping[str, str]) -> None:
        self.text = text
        self.secret_variables: set[str] = set()
        self._path = path
        self._environ = environ
        self._values: dict[Loc, yaml.Node] = {}
        self._keys: dict[Loc, yaml.Node] = {}
        self._as_written: set[Loc] = set()
        self._masks: set[tuple[int, int, str]] = set()
        self._hidden: set[str] = set()
        root = self._compose()
        self.data = None if root is None else self._value(root, ())

    def place(self, loc: Loc, *, key: bool = False, column: int = 1) -> str:
        """Return `path:line:column` of the value, of its key, or of the nearest value around it.

        An index that the file does not have is passed over: one entry may stand for a list of it.
        """
        here: Loc = ()
        for part in loc:
            if (*here, part) in self._values:
                here = (*here, part)
            elif isinstance(part, str):
                break
        if here not in self._values:
            return f"{self._path}:1:1"
        if key and here in self._keys:
            return self._at(self._keys[here].start_mark)
        node = self._values[here]
        shift = self._shift(node, column - 1) if here in self._as_written else 0
        return self._at(node.start_mark, shift)

    def redacted(self) -> str:
        """Return the text with every secret that is written out in it masked."""
        text = self.text
        for start, end, shown in sorted(self._masks, reverse=True):
            text = text[:start] + shown + text[end:]
        for part in sorted(self._hidden, key=len, reverse=True):
            if len(part) > SHORT:
                text = text.replace(part, MASK)
        return text

    def _at(self, mark: Any, shift: int = 0) -> str:
        return f"{self._path}:{mark.line + 1}:{mark.column + 1 + shift}"

    def _raw(self, node: yaml.Node) -> str:
        return self.text[node.start_mark.index : node.end_mark.index]

    def _shift(self, node: yaml.Node, offset: int) -> int:
        """Return how far from a scalar's start its text's `offset` is; 0 where that is unclear."""
        raw = self._raw(node)
        if raw == node.value:
            return offset
        return offset + 1 if raw[1:-1] == node.value else 0

    def _compose(self) -> yaml.Node | None:
        try:
            return yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark: Any = error.problem_mark or error.context_mark
            problem = error.problem or ""
            if problem.startswith("but ") or not problem:
                problem = f"{error.context} {problem}".strip()
            problem = f"found what is not YAML: {problem}{self._hint(mark.line)}"
            raise PlanError(self._at(mark), problem) from None
        except yaml.reader.ReaderError as error:
            line, column = _line_and_column(self.text[: error.position])
            raise PlanError(
                f"{self._path}:{line}:{column}",
                f"found the character U+{error.character:04X}; allowed is printable text",
            ) from None
        except RecursionError:
            raise PlanError(f"{self._path}:1:1", _TOO_DEEP) from None

    def _hint(self, line: int) -> str:
        lines = self.text.split("\n")
        text = lines[line] if line < len(lines) else ""
        if "\t" in text[: len(text) - len(text.lstrip())]:
            return "; indent with spaces, not tabs"
        if "${" in text:
            return '; inside { } and [ ] write "${VAR}" with quotes'
        return ""

    def _value(self, node: yaml.Node, loc: Loc) -> Any:
        self._values[loc] = node
        if len(loc) > MAX_DEPTH:
            raise PlanError(self._at(node.start_mark), _TOO_DEEP)
        if len(self._values) > MAX_VALUES:
            problem = f"found more than {MAX_VALUES:,} values, aliases written out; use fewer"
            raise PlanError(self._at(node.start_mark), problem)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return dict(self._pairs(node, loc))
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._value(item, (*loc, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            return self._scalar(node, kind, loc)
        raise PlanError(
            self._at(node.start_mark),
            f"found the tag !!{kind}; allowed are plain text, numbers, lists and keys",
        )

    def _pairs(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[str, Any]]:
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                found = f'"{key.value}"' if isinstance(key, yaml.ScalarNode) else "a structure"
                problem = f"found {found} as a key; allowed are words; write the keys out"
                raise PlanError(self._at(key.start_mark), problem)
            here = (*loc, key.value)
            if here in self._keys:
                line = self._keys[here].start_mark.line + 1
                problem = f'found the key "{key.value}" again; it is on line {line}; keep one'
                raise PlanError(self._at(key.start_mark), problem)
            self._keys[here] = key
            yield key.value, self._value(value, here)

    def _scalar(self, node: yaml.ScalarNode, kind: str, loc: Loc) -> Any:
        self._hide(node, loc)
        if kind not in ("str", "timestamp"):
            return self._typed(node, kind)
        text = _VARIABLE.sub(lambda found: self._variable(found, node), node.value)
        if text == node.value:
            self._as_written.add(loc)
        elif node.style is None and (loc[:1] == ("embedded",) or loc[:2] == ("target", "params")):
            # What has no schema is typed as YAML would type the text itself.
            resolver: Any = yaml.SafeLoader("")
            tag = resolver.resolve(yaml.ScalarNode, text, (True, False))
            kind = tag.removeprefix("tag:yaml.org,2002:")
            if kind in ("int", "float", "bool"):
                return self._typed(yaml.ScalarNode(tag, text, node.start_mark), kind)
        return text

    def _typed(self, node: yaml.ScalarNode, kind: str) -> Any:
        try:
            value = _SCALARS[kind](_MAKE(), node)
        except ValueError:
            value = math.nan
        if isinstance(value, float) and not math.isfinite(value):
            problem = f'found "{node.value[:40]}"; allowed is a finite number'
            raise PlanError(self._at(node.start_mark), problem)
        return value

    def _variable(self, found: re.Match[str], node: yaml.ScalarNode) -> str:
        if found[0] == "$${":
            return "${"
        name, default = found["name"], found["default"]
        place = self._at(node.start_mark, self._shift(node, found.start()))
        if name is None:
            raise PlanError(
                place,
                'found "${" without a variable; allowed are ${NAME} and ${NAME:-default}, and $${ '
                "for the characters themselves",
            )
        value = self._environ.get(name)
        if value is None and default is None:
            raise PlanError(
                place,
                f"found ${{{name}}}, a variable that is not set{near_miss(name, self._environ)}; "
                f"set it, or write ${{{name}:-default}}",
            )
        if value and is_secret(name):
            self.secret_variables |= secret_parts(value)
        return value or default or ""

    def _hide(self, node: yaml.ScalarNode, loc: Loc) -> None:
        """Note what of a value is secret: all of it, or the values of its query."""
        written = _VARIABLE.sub(lambda found: found["default"] or "", node.value)
        literal = _SCHEME.sub("", node.value).strip()
        name, passwords = str(loc[-1]) if loc else "", url_secrets(written)
        is_header = loc[:2] == _HEADERS and not is_harmless(name)
        if (is_header or is_secret(name) or passwords) and not only_variable(literal):
            parts = secret_parts(literal)
            hidden = parts | url_secrets(literal) if passwords else anywhere(name, parts)
            self._mask(node, f'"{MASK}"', hidden | passwords)
        elif loc in _URLS:
            raw = self._raw(node).rstrip()
            url = raw.strip(node.style) if node.style in ("'", '"') else raw
            self._mask(node, raw.replace(url, mask_query(url)), query_secrets(written))

    def _mask(self, node: yaml.ScalarNode, shown: str, hidden: set[str]) -> None:
        start = node.start_mark.index
        self._masks.add((start, start + len(self._raw(node).rstrip()), shown))
        self._hidden |= hidden


def _line_and_column(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")
