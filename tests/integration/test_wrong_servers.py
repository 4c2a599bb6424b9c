"""Addresses behind which there is no job server: each a clear error in time, and nothing hangs."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import pytest

import gearmap


def error_of(address, key_file):
    began = time.monotonic()
    with gearmap.Client(address, key=key_file) as client, pytest.raises(gearmap.ServerUnavailable) as caught:
        client.map(abs, [1])
    assert time.monotonic() - began < 8
    return str(caught.value)


def test_nobody_listens(key_file):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    message = error_of(f"127.0.0.1:{port}", key_file)

    assert f"'127.0.0.1:{port}' (from the argument)" in message
    assert "start one: gearmap server" in message


def test_a_web_server_is_recognised_as_such(key_file):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        message = error_of(f"127.0.0.1:{server.server_port}", key_file)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

    assert "does not speak the Gearman protocol" in message


def test_a_server_that_never_answers_does_not_hold_us(key_file):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)

        message = error_of(f"127.0.0.1:{silent.getsockname()[1]}", key_file)

    assert "within 2.0 s" in message


def test_a_server_that_sends_garbage_is_refused(key_file):
    def babble():
        connection, _ = silent.accept()
        with connection:
            connection.sendall(b"\x00RES\xff\xff\xff\xff\x00\x00\x00\x00" * 10)
            connection.recv(1000)

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        thread = threading.Thread(target=babble)
        thread.start()
        message = error_of(f"127.0.0.1:{silent.getsockname()[1]}", key_file)
        thread.join()

    assert "which is not accepted" in message


def test_a_host_that_does_not_exist_is_named(key_file):
    message = error_of("no-such-host.invalid", key_file)

    assert "no-such-host.invalid:4730" in message


def test_a_remote_server_needs_a_key_and_says_how_to_make_one(tmp_path):
    with pytest.raises(gearmap.ConfigurationError, match="make one: gearmap key new"):
        gearmap.Client("head.example:4730", key=tmp_path / "none")


def test_no_server_at_all_is_a_configuration_error(monkeypatch):
    for name in ("GEARMAP_SERVERS", "GEARMAN_SERVERS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(gearmap.ConfigurationError, match="no job server is named"):
        gearmap.Client()


def test_servers_none_forbids_a_cluster_that_starts_by_itself(monkeypatch):
    monkeypatch.setenv("GEARMAP_SERVERS", "none")
    with pytest.raises(gearmap.ConfigurationError, match="GEARMAP_SERVERS says 'none'"):
        gearmap.map(abs, [1])
