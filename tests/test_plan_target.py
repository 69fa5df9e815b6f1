"""How a target is reached: proxy, HTTP/2, certificate; refused with its place where it cannot be."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import PREDICT, invoked, predictions, run_json, serving

from harness import proxies
from harness.errors import PlanError
from harness.plan import Plan, load_plan, masked, secrets, with_url

HIDDEN = "hunter2-of-the-proxy"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    (tmp_path / "scenario.py").write_text(PREDICT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, target: str, **environ: str) -> Plan:
    (folder / "plan.yaml").write_text(
        f"target:\n  url: https://a.test\n  api: json\n  {target}\n"
        "scenario: scenario.py\nload: { concurrency: 2, for: 1s }\n"
        "budgets: [predict.error_rate < 99%]\n"
    )
    return load_plan(folder / "plan.yaml", environ=environ)


def refused(folder: Path, target: str) -> str:
    with pytest.raises(PlanError) as caught:
        load(folder, target)
    return str(caught.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks4://p:1", 'found the scheme "socks4"; allowed is a URL like http://proxy:3128'),
        ("proxy:3128", 'found the scheme ""'),
        ("http://", "without a usable host"),
        ("http://p:x", "cannot be read"),
        ("3", "found"),
    ],
)
def test_a_proxy_is_a_url_of_a_scheme_that_httpx_knows(
    folder: Path, proxy: str, words: str
) -> None:
    message = refused(folder, f"proxy: {proxy}")
    assert message.startswith("plan.yaml:4:10: ")
    assert words in message


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_needs_its_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    written = f"proxy: {scheme}://me:{HIDDEN}@p:1080"
    assert load(folder, written).target.proxy == f"{scheme}://me:{HIDDEN}@p:1080"
    monkeypatch.setattr(proxies, "find_spec", lambda _name: None)
    assert refused(folder, written) == (
        f'plan.yaml:4:10: found the scheme "{scheme}", but SOCKS needs the package '
        "socksio, which is not installed; install it: pip install socksio"
    )


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://me:{HIDDEN}@proxy:3128",
        f"socks5://me:{HIDDEN}@proxy:1080",
        f"http://{HIDDEN}@proxy:3128",
        f'"http://${{USER}}:${{PASS:-{HIDDEN}}}@proxy:3128"',
    ],
)
def test_a_password_written_into_the_proxys_url_is_seen_nowhere(folder: Path, proxy: str) -> None:
    plan = load(folder, f"proxy: {proxy}  # {HIDDEN}", USER="me")
    assert HIDDEN in (plan.target.proxy or "")
    assert HIDDEN not in plan.redacted_source + repr(plan)
    assert HIDDEN not in masked(plan, f"cannot reach {plan.target.proxy} with {HIDDEN}")
    basic = base64.b64encode(f"me:{HIDDEN}".encode()).decode()
    if ":" in proxy.partition("@")[0].removeprefix("http:"):
        assert basic not in masked(plan, f"Proxy-Authorization: Basic {basic}")


def test_a_proxys_url_without_secrets_stays_as_written(folder: Path) -> None:
    plan = load(folder, 'proxy: "http://${USER}:${PASS}@proxy:3128"', USER="me", PASS="it%27s")
    assert plan.redacted_source == plan.source
    assert {"it%27s", "it's"} <= set(secrets(plan))


def test_a_broken_proxys_password_is_not_repeated(folder: Path) -> None:
    for proxy in (f"ftp://me:{HIDDEN}@p", f"http://me:{HIDDEN}@", f"http://me:{HIDDEN}@p:x"):
        assert HIDDEN not in refused(folder, f"proxy: {proxy}")


def test_the_environments_proxy_has_secrets_too_unless_it_is_not_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{HIDDEN}@p:1")
    assert HIDDEN in secrets(load(folder, "trust_env: true"))
    assert HIDDEN not in secrets(load(folder, "trust_env: false"))


def test_http2_needs_https_also_in_the_url_of_an_option(folder: Path) -> None:
    plan = load(folder, "http2: true")
    with pytest.raises(PlanError, match=r"needs an https URL.*found http://b\.test"):
        with_url(plan, "http://b.test")
    assert with_url(plan, "https://b.test").target.http2
    path = folder / "plan.yaml"
    path.write_text(path.read_text().replace("https://a.test", "embedded"))
    with pytest.raises(PlanError, match=r"plan.yaml:4:10: .*found embedded"):
        load_plan(path)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str], str]) -> Path:
    """A folder with certificates and keys: two pairs, an encrypted key, a file with both."""
    folder = tmp_path_factory.mktemp("pem")
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=us"]
    for name, protection in (("ours", ["-nodes"]), ("other", ["-nodes"]),
                             ("locked", ["-passout", "pass:secret"])):  # fmt: skip
        subprocess.run(
            [require("openssl"), "req", "-x509", *options, *protection,
             "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    (folder / "both.pem").write_text(
        (folder / "ours.pem").read_text() + (folder / "ours.key").read_text()
    )
    (folder / "prose.pem").write_text("no certificate")
    return folder


@pytest.mark.parametrize(
    ("given", "column", "words"),
    [
        ("cert: absent.pem", 9, "there is no file"),
        ("key: ours.key", 8, "found a key without a certificate; add cert: FILE"),
        ("cert: ours.pem", 9, "found no private key in"),
        ("cert: prose.pem", 9, "found no certificate in"),
        ("{ cert: ours.pem, key: prose.pem }", 26, "found no private key in"),
        ("{ cert: ours.pem, key: other.key }", 26, "is not that of the certificate"),
        ("{ cert: locked.pem, key: locked.key }", 28, "found an encrypted key"),
    ],
)
def test_certificate_and_key_must_be_there_and_belong_together(
    folder: Path, pem: Path, given: str, column: int, words: str
) -> None:
    for file in pem.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if given.startswith("{"):
        given = f"cert: {given[8:].partition(',')[0]}\n  key: {given.split('key: ')[1][:-2]}"
        place = "plan.yaml:5:8: "
    else:
        place = f"plan.yaml:4:{column}: "
    message = refused(folder, given)
    assert message.startswith(place)
    assert words in message


def test_a_certificate_may_hold_its_key_and_paths_are_relative_to_the_plan(
    folder: Path, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in pem.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(pem.parent)
    target = load(folder, "cert: both.pem").target
    assert (target.cert, target.key) == (folder / "both.pem", None)
    target = load(folder, "cert: ours.pem\n  key: ours.key").target
    assert (target.cert, target.key) == (folder / "ours.pem", folder / "ours.key")


def test_a_run_through_a_proxy_says_so_in_its_record_and_its_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, "timeout: 9s")
    with serving(predictions) as through:
        monkeypatch.setenv("HTTP_PROXY", through.replace("//", f"//me:{HIDDEN}@"))
        done = invoked("run", "plan.yaml", "--target", "http://a.test", "--out", "run")
    assert done.exit_code in (0, 3, 4, 5), done.output  # it was judged, however
    clock = run_json(folder / "run")["clock"]
    assert clock.endswith(f": through the proxy {through}")
    verdict = json.loads((folder / "run" / "verdict.json").read_text())
    assert verdict["health"]["clock"] == clock
    assert clock.partition(": ")[2] in (folder / "run" / "report.html").read_text()
    for file in (folder / "run").iterdir():
        assert file.is_dir() or HIDDEN.encode() not in file.read_bytes(), file
    assert HIDDEN not in done.output
