"""Whatever can be wrong with TLS, at real servers: an error that names the server and says what to do."""

from __future__ import annotations

import re
import subprocess
import threading
from dataclasses import replace

import pytest
from certificates import Authority
from programs import ends_with_us, require_kind
from stunnel import Stunnel
from transport_support import DEADLINE, FakeServer, echo, fake, free_port, loop, request  # noqa: F401

from gearmap.errors import TlsFailed, TransportError
from gearmap.jobserver.process import find_gearmand, start_job_server
from gearmap.tls import TlsAddress, TlsFile, TlsFiles
from gearmap.transport.admin import AdminSession, server_version
from gearmap.transport.events import ConnectFailed, ServerDown, ServerUp, WorkComplete

# ruff: noqa: F811


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def other_authority(folder):
    return Authority(folder, "other")


@pytest.fixture(scope="module")
def gearmand():
    require_kind("gearmand")
    with start_job_server("gearmand") as server:
        yield (server.host, server.port)


@pytest.fixture
def stunnel(folder, gearmand):
    """A function that starts an stunnel in front of gearmand."""
    started = []

    def start(pair, **options):
        started.append(Stunnel(folder, gearmand, pair, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def named(path):
    return TlsFile(path, "a test")


def secure(address, authority=None, pair=None, host=None):
    files = TlsFiles(
        ca=None if authority is None else named(authority.file),
        cert=None if pair is None else named(pair.certificate),
        key=None if pair is None else named(pair.key),
    )
    return TlsAddress(host or address[0], address[1], files)


def failures(loop, address, **options):
    """Return the errors with which a session and a question end."""
    session = loop.session(address, **options)
    [failed] = loop.until_event(session, ConnectFailed)
    timeout = options.get("connect_timeout", DEADLINE)
    with pytest.raises(TransportError) as caught, AdminSession(address, timeout=timeout) as asked:
        asked.version()
    return failed.reason, caught.value


def check_tls_failed(errors, address, says):
    for error in errors:
        assert type(error) is TlsFailed
        assert f"'tls://{address[0]}:{address[1]}'" in str(error)
        assert re.search(says, str(error)), str(error)


# ------------------------------------------------------------------------------------------------ the server is refused


def test_an_authority_that_the_system_does_not_know(stunnel, authority, loop):
    address = secure(stunnel(authority.sign("server")).address)
    errors = failures(loop, address)
    check_tls_failed(errors, address, "an authority that this system does not know; name .*GEARMAP_TLS_CA=FILE")


def test_another_authority_than_the_one_that_is_named(stunnel, authority, other_authority, loop):
    address = secure(stunnel(authority.sign("server")).address, other_authority)
    check_tls_failed(failures(loop, address), address, r"not signed by the authority in '.*other.pem' \(from a test\)")


def test_a_certificate_for_another_host(stunnel, authority, loop):
    address = secure(stunnel(authority.sign("elsewhere", hosts=("head.example",))).address, authority)
    check_tls_failed(failures(loop, address), address, "is not for '127.0.0.1'; use a name that is in it")


def test_a_name_that_the_certificate_does_not_have(stunnel, authority, loop):
    address = secure(stunnel(authority.sign("number", hosts=("127.0.0.1",))).address, authority, host="localhost")
    check_tls_failed(failures(loop, address), address, "is not for 'localhost'")


def test_an_expired_certificate(stunnel, authority, loop):
    address = secure(stunnel(authority.sign("expired", expired=True)).address, authority)
    check_tls_failed(failures(loop, address), address, "has expired; renew it")


# ------------------------------------------------------------------------------------------------ the client is refused


def test_a_client_certificate_is_asked_for_and_there_is_none(stunnel, authority, loop):
    address = secure(stunnel(authority.sign("server"), clients=authority.file).address, authority)
    check_tls_failed(failures(loop, address), address, "client certificate.*give one: tls_cert=FILE, --tls-cert FILE")


def test_a_client_certificate_of_another_authority(stunnel, authority, other_authority, loop):
    server = stunnel(authority.sign("server"), clients=authority.file)
    address = secure(server.address, authority, other_authority.sign("stranger"))
    says = r"refuse.* the client certificate '.*stranger.pem' \(from a test\)"
    check_tls_failed(failures(loop, address), address, says)


def test_an_expired_client_certificate(stunnel, authority, loop):
    server = stunnel(authority.sign("server"), clients=authority.file)
    address = secure(server.address, authority, authority.sign("old-client", expired=True))
    check_tls_failed(failures(loop, address), address, r"refuse.* the client certificate '.*old-client.pem'")


def test_a_client_certificate_that_is_right_is_let_in(stunnel, authority, loop):
    server = stunnel(authority.sign("server"), clients=authority.file)
    address = secure(server.address, authority, authority.sign("client"))
    session = loop.ready_session(address)
    loop.worker([address], on_job=echo)
    session.submit([request(1, b"payload")])
    [done] = loop.until_event(session, WorkComplete)
    assert done.data == b"payload"


# ---------------------------------------------------------------------------------------------- one of them has no TLS


@pytest.mark.parametrize("kind", ["embedded", "gearmand"])
def test_a_job_server_without_tls(kind, authority, loop):
    require_kind(kind)
    with start_job_server(kind) as server:
        address = secure((server.host, server.port), authority)
        errors = failures(loop, address)
    check_tls_failed(errors, address, f"TLS.*or name it '127.0.0.1:{server.port}' where plain text is good enough")


def test_the_gearmand_that_takes_ssl_options_and_speaks_plain_text(folder, authority, loop):
    """Debian's 1.1.20 logs "with SSL: true" and has no TLS."""
    require_kind("gearmand")
    pair, port = authority.sign("server"), free_port()
    options = [f"--ssl-ca-file={authority.file}", f"--ssl-certificate={pair.certificate}", f"--ssl-key={pair.key}"]
    command = [find_gearmand(), "-L", "127.0.0.1", "-p", str(port), "--ssl", *options]
    command += ["-l", str(folder / "gearmand.log"), "-P", str(folder / "gearmand.pid")]
    with subprocess.Popen(ends_with_us(command)) as process:
        try:
            loop.until(lambda: answers_in_plain_text(port))
            address = secure(("127.0.0.1", port), authority)
            check_tls_failed(failures(loop, address), address, "TLS.*or name it")
        finally:
            process.terminate()


def answers_in_plain_text(port):
    try:
        return bool(server_version(("127.0.0.1", port), timeout=1.0))
    except TransportError:
        return False


def test_a_server_that_takes_the_hello_and_says_nothing(fake, authority, loop):
    address = secure(fake.address, authority)
    errors = failures(loop, address, connect_timeout=0.3)
    check_tls_failed(errors, address, "did not answer in TLS within 0.3 s")


def test_a_handshake_that_fails_at_one_address_of_a_name_does_not_hide_behind_the_next(fake, authority, loop):
    """`localhost` is two addresses; nobody listens at the second one."""
    address = secure(fake.address, authority, host="localhost")
    threading.Thread(target=lambda: (fake.accept(), fake.send(b"OK 1.1.20\n"))).start()
    session = loop.session(address)
    [failed] = loop.until_event(session, ConnectFailed)
    check_tls_failed([failed.reason], address, "does not speak TLS")


def test_plain_text_at_a_tls_server(stunnel, authority, loop):
    address = stunnel(authority.sign("server")).address
    errors = failures(loop, address)
    for error in errors:
        assert f"if it speaks TLS, name it 'tls://127.0.0.1:{address[1]}'" in str(error)


# ------------------------------------------------------------------------------------------------ what is not there yet


def test_a_file_that_went_away_is_a_failed_connection(stunnel, authority, folder, loop):
    address = secure(stunnel(authority.sign("server")).address, authority)
    gone = TlsAddress(*address[:2], replace(address.tls, ca=named(str(folder / "gone.pem"))))
    check_tls_failed(failures(loop, gone), address, r"the TLS CA file '.*gone.pem' \(from a test\) cannot be read")


def test_a_worker_waits_for_a_server_whose_certificate_has_expired_and_says_so_once(stunnel, authority, loop):
    server = stunnel(authority.sign("expired", expired=True))
    worker = loop.worker([secure(server.address, authority)], jitter=lambda: 0.0)
    # Several attempts are made: 0.1, 0.2 and 0.4 s apart.
    loop.for_a_while(1.0)
    [down] = loop.of(worker, ServerDown)
    assert "has expired" in str(down.reason)
    server.stop()
    server.start(authority.sign("renewed"))
    loop.until_event(worker, ServerUp)
    assert len(loop.of(worker, ServerDown)) == 1


def test_a_client_certificate_that_is_renewed_is_read_again(stunnel, authority, loop):
    server = stunnel(authority.sign("server"), clients=authority.file)
    pair = authority.sign("renewed-client", expired=True)
    worker = loop.worker([secure(server.address, authority, pair)], jitter=lambda: 0.0)
    [down] = loop.until_event(worker, ServerDown)
    assert "client certificate" in str(down.reason)
    assert authority.sign("renewed-client") == pair
    loop.until_event(worker, ServerUp)
