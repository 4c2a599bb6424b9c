"""Files of TLS: what is taken from where, and what is said about those that are not fit."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Authority, Pair

from gearmap.config import ServerAddress, ServerChoice, add_tls, resolve_servers
from gearmap.errors import ConfigurationError
from gearmap.tls import (
    TlsAddress,
    TlsFile,
    TlsFiles,
    TlsOptions,
    TlsServerFiles,
    client_context,
    resolve_tls,
    server_context,
)

HOME, FOLDER = Path("/home/ada"), Path("/srv")
VARIABLES = {"GEARMAP_TLS_CA": "/env/ca.pem", "GEARMAP_TLS_CERT": "/env/cert.pem", "GEARMAP_TLS_KEY": "/env/key.pem"}
CONFIG = "[gearmap]\ntls_ca = ~/ca.pem\ntls_cert = cert.pem\ntls_key = /etc/key.pem\n"


def chosen(servers: str, config: str = "", *, environ: dict[str, str] | None = None, **said: str) -> ServerChoice:
    choice = resolve_servers(servers, environ={})
    return add_tls(choice, TlsOptions(**said), environ=environ or {}, home=HOME, folder=FOLDER, config_text=config)  # type: ignore[arg-type]


def files_of(choice: ServerChoice) -> TlsFiles:
    files = choice.addresses[0].tls
    assert files is not None
    return files


# --------------------------------------------------------------------------------------------------------- which files


def test_each_file_is_that_of_the_argument_or_the_environment_or_the_config_file() -> None:
    environ = {name: VARIABLES[name] for name in ("GEARMAP_TLS_CA", "GEARMAP_TLS_CERT")}
    files = files_of(chosen("tls://head", CONFIG, environ=environ, ca="/said/ca.pem"))
    assert files.ca == TlsFile("/said/ca.pem", "the argument")
    assert files.cert == TlsFile("/env/cert.pem", "GEARMAP_TLS_CERT")
    assert files.key == TlsFile("/etc/key.pem", "the config file")


def test_names_in_the_config_file_may_begin_at_home_and_all_are_absolute() -> None:
    files = files_of(chosen("tls://head", CONFIG))
    assert (files.ca, files.cert) == (
        TlsFile("/home/ada/ca.pem", "the config file"),
        TlsFile("/srv/cert.pem", "the config file"),
    )
    assert files_of(chosen("tls://head", ca="ca.pem")).ca == TlsFile("/srv/ca.pem", "the argument")


def test_without_files_the_system_is_trusted_and_nothing_is_shown() -> None:
    assert files_of(chosen("tls://head")) == TlsFiles()


def test_a_plain_server_beside_stays_plain() -> None:
    choice = chosen("head, tls://other:5000", ca="/ca.pem")
    assert [str(each) for each in choice.addresses] == ["head:4730", "tls://other:5000"]
    assert choice.addresses[0].tls is None


@pytest.mark.parametrize("servers", ["head", "head,other:1", "inline"])
def test_a_file_that_is_given_for_no_server_is_an_error_and_not_plain_text(servers: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no job server is named tls://HOST\[:PORT\].*\(from the argument\)"):
        chosen(servers, ca="/ca.pem")


def test_what_the_environment_says_of_tls_does_not_concern_plain_servers() -> None:
    assert chosen("head", environ=VARIABLES).addresses[0].tls is None


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a TLS key '/k.pem' \(from the argument\), but no certificate"):
        chosen("tls://head", key="/k.pem")


@pytest.mark.parametrize("path", ["", 7])
def test_a_path_that_is_none_is_refused(path: object) -> None:
    with pytest.raises(ConfigurationError, match="tls_ca must be the path of a file"):
        resolve_tls(
            TlsOptions(ca=path),  # type: ignore[arg-type]
            environ={},
            from_config=lambda name: "",
            folder=FOLDER,
            home=HOME,
        )


# --------------------------------------------------------------------------------------------------------- as addresses


def test_an_endpoint_has_what_decides_how_to_speak_there() -> None:
    files = TlsFiles(ca=TlsFile("/ca.pem", "a test"))
    plain, secure = ServerAddress("head", 1, "a test"), ServerAddress("head", 1, "a test", files)
    assert (plain.endpoint, secure.endpoint) == (("head", 1), TlsAddress("head", 1, files))
    for address in (plain, secure):
        assert ServerAddress.at(address.endpoint, "a test") == address


def test_files_come_back_from_json() -> None:
    files = TlsFiles(ca=TlsFile("/ca.pem", "a test"), cert=TlsFile("/c.pem", "x"))
    assert TlsFiles.from_json(files.to_json()) == files
    assert TlsFiles.from_json({}) == TlsFiles()


# ------------------------------------------------------------------------------------------------------------- contexts


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def named(path: str) -> TlsFile:
    return TlsFile(path, "a test")


def showing(pair: Pair) -> TlsFiles:
    return TlsFiles(cert=named(pair.certificate), key=named(pair.key))


def test_a_client_always_checks_the_server_and_its_name(authority: Authority) -> None:
    context = client_context(TlsFiles(ca=named(authority.file)))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1


def test_a_server_asks_for_certificates_where_it_knows_who_signs_them(authority: Authority) -> None:
    pair = authority.sign("server")
    own = TlsServerFiles(cert=named(pair.certificate), key=named(pair.key))
    assert server_context(own).verify_mode is ssl.CERT_NONE
    asking = server_context(replace(own, ca=named(authority.file)))
    assert asking.verify_mode is ssl.CERT_REQUIRED
    assert asking.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_context_is_kept_until_a_file_changes(authority: Authority) -> None:
    pair = authority.sign("client")
    first = client_context(showing(pair))
    assert client_context(showing(pair)) is first
    assert authority.sign("client") == pair
    os.utime(pair.certificate, ns=(1, 1))  # two files of a test may be written within one tick of the clock
    assert client_context(showing(pair)) is not first


def test_certificate_and_key_may_be_in_one_file(authority: Authority, tmp_path: Path) -> None:
    pair = authority.sign("both")
    both = tmp_path / "both.pem"
    both.write_bytes(Path(pair.key).read_bytes() + Path(pair.certificate).read_bytes())
    client_context(TlsFiles(cert=named(str(both))))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda a, gone, text: TlsFiles(ca=gone), r"TLS CA file '.*gone' \(from a test\) cannot be read: No such file"),
        (lambda a, gone, text: TlsFiles(ca=text), r"TLS CA file '.*text' \(from a test\) holds no certificate"),
        (lambda a, gone, text: TlsFiles(cert=gone), "TLS certificate '.*gone' .* cannot be read"),
        (lambda a, gone, text: TlsFiles(cert=text), "TLS certificate in '.*text' .* both must be in PEM form"),
        (
            lambda a, gone, text: TlsFiles(cert=named(a.sign("one").certificate), key=named(a.sign("two").key)),
            "TLS key in '.*two-key.pem' .* is not that of the certificate in '.*one.pem'",
        ),
        (lambda a, gone, text: showing(a.sign("hidden", password=b"x")), "TLS key in '.*hidden-key.pem' .* password"),
    ],
)
def test_a_file_that_is_not_fit_is_named_with_its_origin(
    make: object, says: str, authority: Authority, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=says):
        client_context(make(authority, named(str(tmp_path / "gone")), named(str(text))))  # type: ignore[operator]
