"""Where a request goes: the target's URL and the dialect's path, joined.

A base URL is one of three things, told apart by its path:

    the whole path    it ends as the API's path does, or in what names a model's call by itself
                      (`…/invocations`, `…:predict`): it stays as it is
    the API's root    a segment of it is a version, it ends in an Azure deployment, or it is what
                      is left of another API's whole path: the API's last part is added
    the server        anything else: the whole `/v1/…` is added
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit, urlunsplit

from harness.apis.dialects import API_NAMES, Api, api
from harness.errors import UserError
from harness.urls import canonical_url

_VERSION = re.compile(
    r"v\d+(\.\d+)*(p\d+)?((alpha|beta|preview|rc)\d*)?|\d{4}-\d\d-\d\d(-preview)?", re.IGNORECASE
)
_CALL = re.compile(r"invocations|[^:]+:[A-Za-z]+")  # SageMaker, Databricks; Google's custom methods
_JSON_CALLS = ("infer", "predict", "predictions", "score")  # KServe, SageMaker-like, Azure ML


def url_for(base_url: str, api: Api, path_override: str | None = None) -> str:
    """Join the path to the base URL; what the base already ends with is not said twice.

    `http://h:1`, `http://h:1/v1` and `http://h:1/v1/chat/completions` give the same URL;
    `https://h/api/v3` gives `https://h/api/v3/chat/completions`. An override is joined to the base
    as it is. A query in either part is kept. Raises UserError for a base that is no usable URL.
    """
    base = _split(base_url)
    if path_override is not None:
        return _overridden(base, path_override)
    have = _segments(base.path)
    root, whole = _root(have, api)
    if whole:
        return _url(base, have)
    version, *last = _segments(api.path)
    return _url(base, _joined(root, last if _is_root(root, have) else [version, *last]))


def models_url(base_url: str) -> str:
    """Return where the target of a base URL lists its models."""
    base = _split(base_url)
    have = _segments(base.path)
    root, _ = _root(have, None)
    return _url(base, _joined(root, ["models"] if _is_root(root, have) else ["v1", "models"]))


def _split(base_url: str) -> SplitResult:
    try:
        return urlsplit(canonical_url(base_url))
    except ValueError as error:
        raise UserError(f"url: {error}") from None


def _overridden(base: SplitResult, path: str) -> str:
    added = urlsplit(path)
    if added.scheme or added.netloc:
        raise UserError(f"path {path!r} must be a path; the host belongs in the url")
    want = _segments(added.path)
    parts = _joined(_segments(base.path), want)
    query = "&".join(filter(None, (base.query, added.query)))
    slash = want and added.path.endswith("/")
    return _url(base._replace(query=query), [*parts, ""] if slash else parts)


def _root(have: list[str], wanted: Api | None) -> tuple[list[str], bool]:
    """Return the path without the end that names an API, and whether it names the wanted one."""
    ends = {name: _segments(api(name).path)[1:] for name in API_NAMES}
    named = [name for name, end in ends.items() if have[-len(end) :] == end]
    if named:
        longest = max(named, key=lambda name: len(ends[name]))
        root = have[: -len(ends[longest])]
        return root, wanted is not None and wanted.name == longest
    last = have[-1] if have else ""
    by_json = wanted is not None and wanted.name == "json" and last in _JSON_CALLS
    return have, wanted is not None and (by_json or _CALL.fullmatch(last) is not None)


def _is_root(root: list[str], have: list[str]) -> bool:
    """Tell whether only an API's last part is to be added to a path."""
    for segment in reversed(root):
        if segment == "proxy":  # Kubernetes: the versions before it are the cluster's API's
            break
        if _VERSION.fullmatch(segment):
            return True
    return len(root) < len(have) or root[-2:-1] == ["deployments"]


def _joined(have: list[str], want: list[str]) -> list[str]:
    said = max(n for n in range(len(want) + 1) if have[max(len(have) - n, 0) :] == want[:n])
    return have + want[said:]


def _segments(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _url(base: SplitResult, segments: list[str]) -> str:
    return urlunsplit((base.scheme, base.netloc, "/" + "/".join(segments), base.query, ""))
