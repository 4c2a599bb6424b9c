"""TLS as people meet it at the command line: a server that wants certificates, and what is said when it is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance_support import DEADLINE, Command, free_port, run
from certificates import Authority, Pair

import gearmap
from gearmap.jobserver.process import ServerProcess

pytestmark = pytest.mark.slow

Start = Callable[..., Command]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def mine(authority: Authority) -> Pair:
    return authority.sign("mine")


@pytest.fixture
def port(start: Start, authority: Authority, key_file: Path) -> int:
    """The port of `gearmap server` that speaks TLS and wants certificates."""
    pair, port = authority.sign("server"), free_port()
    files = ("--tls-cert", pair.certificate, "--tls-key", pair.key, "--tls-ca", authority.file)
    server = start("server", "--port", str(port), *files, "--key", str(key_file))
    server.wait_for("Ctrl-C ends")
    assert f"embedded job server on tls://127.0.0.1:{port}" in server.out
    assert any(f"gearmap worker -s tls://127.0.0.1:{port}" in line for line in server.out)
    assert any("--tls-ca FILE" in line for line in server.out)
    assert any("certificate of their own" in line for line in server.out)
    return port


def all_files(authority: Authority, mine: Pair) -> tuple[str, ...]:
    return ("--tls-ca", authority.file, "--tls-cert", mine.certificate, "--tls-key", mine.key)


def test_server_worker_status_and_client_speak_tls(
    port: int, authority: Authority, mine: Pair, start: Start, key_file: Path
) -> None:
    place, files = f"tls://127.0.0.1:{port}", all_files(authority, mine)
    worker = start("worker", "-s", place, *files, "--key", str(key_file), "-w", "1")
    worker.wait_for(f"^connected to {re.escape(place)}$")
    assert f" on {place} (" in worker.wait_for("^node ")
    with gearmap.connect(
        place, key=key_file, tls_ca=authority.file, tls_cert=mine.certificate, tls_key=mine.key
    ) as client:
        assert client.where == f"{place} (from the argument)"
        assert gearmap.map(abs, [-1, -2], timeout=DEADLINE, progress=False) == [1, 2]
    told = run("status", "-s", place, *files, "--key", str(key_file))
    assert told.returncode == 0, told.stderr
    assert place in told.stdout


def test_the_files_may_come_from_the_environment_or_the_config_file_with_relative_names(
    port: int, authority: Authority, mine: Pair, key_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "config" / "gearmap"
    folder.mkdir(parents=True)
    (folder / "config.ini").write_text(
        f"[gearmap]\nservers = tls://127.0.0.1:{port}\ntls_cert = {mine.certificate}\ntls_key = {mine.key}\n"
    )
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "GEARMAP_TLS_CA": Path(authority.file).name}
    told = run("status", environment=environment, cwd=Path(authority.file).parent)
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_worker_without_a_certificate_waits_and_says_once_what_is_missing(
    port: int, authority: Authority, start: Start, key_file: Path
) -> None:
    place = f"tls://127.0.0.1:{port}"
    worker = start("worker", "-s", place, "--tls-ca", authority.file, "--key", str(key_file), "-w", "2")
    line = worker.wait_for("trying again")
    assert f"'{place}' wants a client certificate; give one: tls_cert=FILE, --tls-cert FILE" in line
    told = run("status", "-s", place, "--tls-ca", authority.file, "--key", str(key_file))
    assert told.returncode == 1
    assert "wants a client certificate" in " ".join(told.stdout.split())
    assert sum("trying again" in each for each in worker.out) == 1


def test_a_worker_that_speaks_plain_text_is_told_to_speak_tls(port: int, start: Start, key_file: Path) -> None:
    worker = start("worker", "-s", f"127.0.0.1:{port}", "--key", str(key_file), "-w", "1")
    assert f"speaks TLS; name it 'tls://127.0.0.1:{port}'" in worker.wait_for("trying again")


def test_a_worker_that_speaks_tls_to_a_plain_server_is_told_so(
    job_server: ServerProcess, authority: Authority, start: Start, key_file: Path
) -> None:
    place = f"127.0.0.1:{job_server.port}"
    worker = start("worker", "-s", f"tls://{place}", "--tls-ca", authority.file, "--key", str(key_file), "-w", "1")
    assert f"or name it '{place}' where plain text is good enough" in worker.wait_for("trying again")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["worker", "-s", "tls://head", "--tls-ca", "/no/ca.pem"],
            "the TLS CA file '/no/ca.pem' (from the command line)",
        ),
        (["worker", "-s", "tls://head", "--tls-key", "/no/key.pem"], "but no certificate; give it: tls_cert=FILE"),
        (["worker", "-s", "head", "--tls-ca", "ca.pem"], "no job server is named tls://HOST[:PORT]: head:4730"),
        (["status", "--tls-ca", "ca.pem"], "no job server is named tls://HOST[:PORT]"),
        (["server", "--tls-key", "key.pem"], "a server that speaks TLS needs a certificate: --tls-cert FILE"),
        (
            ["server", "--tls-cert", "/no/cert.pem"],
            "the TLS certificate '/no/cert.pem' (from --tls-cert) cannot be read",
        ),
    ],
)
def test_wrong_words_are_one_line_and_nothing_starts(words: list[str], complaint: str, key_file: Path) -> None:
    if words[0] == "server":
        words = [*words, "--port", str(free_port())]
    told = run(*words, "--key", str(key_file))
    assert told.returncode == 2
    assert complaint in told.stderr
    assert told.stderr.count("\n") == 1
