"""Servers, key file and options: what is taken from where, and what is said about wrong words."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gearmap.config import (
    DEFAULT_PORT,
    MAP_ONLY,
    RunOptions,
    ServerAddress,
    ServerMode,
    check_queue,
    config_folder,
    parse_server,
    resolve_key_file,
    resolve_servers,
)
from gearmap.errors import ConfigurationError

HOME = Path("/home/ada")


# --------------------------------------------------------------------------------------------------------- parse_server


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("head", "head", DEFAULT_PORT),
        ("head:5000", "head", 5000),
        ("  head:5000\n", "head", 5000),
        ("10.0.0.7:1", "10.0.0.7", 1),
        ("head.lab.example:65535", "head.lab.example", 65535),
        ("::1", "::1", DEFAULT_PORT),
        ("fe80::1%eth0", "fe80::1%eth0", DEFAULT_PORT),
        ("[::1]", "::1", DEFAULT_PORT),
        ("[::1]:5000", "::1", 5000),
    ],
)
def test_an_address_is_a_host_and_maybe_a_port(text: str, host: str, port: int) -> None:
    assert parse_server(text, "a test") == ServerAddress(host, port, "a test")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no host"),
        ("   ", "names no host"),
        (":4730", "names no host"),
        ("my head", "names no host"),
        ("[::1", "names no host"),
        ("[]:4730", "names no host"),
        ("[::1]x", "names no host"),
        ("head:", "1 to 65535"),
        ("head:0", "1 to 65535"),
        ("head:65536", "1 to 65535"),
        ("head:-1", "1 to 65535"),
        ("head:+1", "1 to 65535"),
        ("head:4_730", "1 to 65535"),
        ("head:\u0664\u0667", "1 to 65535"),
        ("head:" + "9" * 5000, "1 to 65535"),
        ("[::1]:", "1 to 65535"),
        ("http://head", "or tls://HOST:PORT"),
        ("tcp://head:4730", "or tls://HOST:PORT"),
    ],
)
def test_what_is_not_an_address_is_refused_with_its_origin_and_what_to_give(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_server(text, "GEARMAP_SERVERS")
    assert says in str(caught.value)
    assert "GEARMAP_SERVERS" in str(caught.value)
    assert repr(text.strip()) in str(caught.value)


@given(st.text() | st.from_regex(r"\[?[a-z0-9:.%\[\] ]*\]?(:\d*)?", fullmatch=True))
@example("head:" + "1" * 4301)
@example("a]b:c:d")
def test_any_text_is_an_address_or_refused_and_an_address_reads_back_as_itself(text: str) -> None:
    try:
        address = parse_server(text, "a test")
    except ConfigurationError:
        return
    assert 0 < address.port < 65536
    assert address.host
    assert parse_server(str(address), "a test") == address


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("head", False),
        ("0.0.0.0", False),
        ("::", False),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("128.0.0.1", False),
        ("127.0.0.255", True),
        ("127.300.0.1", False),  # a name that somebody may own
        ("127.0.0.1.", False),
        ("127.1", False),
        ("::ffff:127.0.0.1", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, is_loopback: bool) -> None:
    assert ServerAddress(host, 4730, "a test").is_loopback is is_loopback


# ------------------------------------------------------------------------------------------------------ resolve_servers

CONFIG = "[gearmap]\nservers = configured:1\n"
BOTH = {"GEARMAP_SERVERS": "ours:2", "GEARMAN_SERVERS": "theirs:3"}


@pytest.mark.parametrize(
    ("argument", "environ", "config", "address", "origin"),
    [
        ("given:4", BOTH, CONFIG, "given:4", "the argument"),
        (None, BOTH, CONFIG, "ours:2", "GEARMAP_SERVERS"),
        (None, {"GEARMAN_SERVERS": "theirs:3"}, CONFIG, "theirs:3", "GEARMAN_SERVERS"),
        (None, {"GEARMAP_SERVERS": "  ", "GEARMAN_SERVERS": ""}, CONFIG, "configured:1", "the config file"),
    ],
)
def test_the_nearest_word_wins_and_says_where_it_came_from(
    argument: str | None, environ: dict[str, str], config: str, address: str, origin: str
) -> None:
    choice = resolve_servers(argument, environ=environ, config_text=config)
    assert choice.mode is ServerMode.SERVERS
    assert [str(one) for one in choice.addresses] == [address]
    assert choice.origin == choice.addresses[0].origin == origin


def test_without_any_word_it_is_a_local_cluster() -> None:
    choice = resolve_servers(None, environ={}, config_text="[other]\nx = 1\n")
    assert (choice.mode, choice.addresses, choice.origin) == (ServerMode.LOCAL, (), "default")


@pytest.mark.parametrize(("word", "mode"), [("inline", ServerMode.INLINE), ("none", ServerMode.NONE)])
def test_two_words_are_not_addresses(word: str, mode: ServerMode) -> None:
    assert resolve_servers(word, environ={}).mode is mode
    assert resolve_servers(None, environ={"GEARMAP_SERVERS": f" {word} "}).mode is mode
    assert resolve_servers(None, environ={}, config_text=f"[gearmap]\nservers={word}").mode is mode


@pytest.mark.parametrize("argument", ["a,b:1", "a, b:1", " a\tb:1\n", ["a", "b:1"], ("a", "b:1"), ["a,b:1", "a"]])
def test_several_servers_are_separated_by_commas_or_spaces_or_are_a_list(argument: Any) -> None:
    choice = resolve_servers(argument, environ={})
    assert [str(one) for one in choice.addresses] == ["a:4730", "b:1"]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("", "no server is named in the argument"),
        ([], "no server is named in the argument"),
        (" , ", "no server is named in the argument"),
        (4730, "servers must be"),
        ([("head", 4730)], "servers must be"),
        ({"head": 4730}, "servers must be"),
        (b"head", "servers must be"),
        ("head:x", "the port must be a number"),
    ],
)
def test_a_wrong_argument_is_refused_and_never_replaced_by_the_environment(argument: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        resolve_servers(argument, environ=BOTH)


def test_an_empty_list_in_the_environment_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no server is named in GEARMAP_SERVERS; give HOST"):
        resolve_servers(None, environ={"GEARMAP_SERVERS": ","})


@pytest.mark.parametrize("config", ["servers = head", "[gearmap\nx", "[gearmap]\nservers=a\nservers=b"])
def test_a_config_file_that_cannot_be_read_is_refused(config: str) -> None:
    with pytest.raises(ConfigurationError, match="the config file cannot be read"):
        resolve_servers(None, environ={}, config_text=config)


def test_a_percent_sign_in_the_config_file_is_one() -> None:
    config = "[gearmap]\nservers = fe80::1%eth0\nkey_file = /data/50%/key\n"
    assert resolve_servers(None, environ={}, config_text=config).addresses[0].host == "fe80::1%eth0"
    assert resolve_key_file(None, environ={}, home=HOME, config_text=config)[0] == Path("/data/50%/key")


# ----------------------------------------------------------------------------------------------------- resolve_key_file


@pytest.mark.parametrize(
    ("argument", "environ", "config", "path", "origin"),
    [
        ("k1", {"GEARMAP_KEY_FILE": "k2"}, "[gearmap]\nkey_file=k3", "k1", "the argument"),
        (Path("k1"), {}, "", "k1", "the argument"),
        (None, {"GEARMAP_KEY_FILE": "k2"}, "[gearmap]\nkey_file=k3", "k2", "GEARMAP_KEY_FILE"),
        (None, {"GEARMAP_KEY_FILE": ""}, "[gearmap]\nkey_file=k3", "k3", "the config file"),
        (None, {}, "", "/home/ada/.config/gearmap/key", "the config folder"),
        (None, {"XDG_CONFIG_HOME": "/xdg"}, "", "/xdg/gearmap/key", "the config folder"),
    ],
)
def test_the_nearest_key_file_wins_and_says_where_it_came_from(
    argument: Any, environ: dict[str, str], config: str, path: str, origin: str
) -> None:
    found = resolve_key_file(argument, environ=environ, home=HOME, config_text=config)
    assert found == (Path(path), origin)


def test_the_config_folder_follows_the_environment_then_home() -> None:
    assert config_folder({"XDG_CONFIG_HOME": "/xdg"}, HOME) == Path("/xdg/gearmap")
    assert config_folder({"XDG_CONFIG_HOME": ""}, HOME) == Path("/home/ada/.config/gearmap")


# ----------------------------------------------------------------------------------------------------------- RunOptions


def test_the_defaults_are_right_and_cannot_be_changed() -> None:
    options = RunOptions()
    with pytest.raises(FrozenInstanceError):
        options.retries = 3  # type: ignore[misc]  # the point
    assert hash(options) == hash(RunOptions())


WRONG: list[tuple[str, Any, str]] = [
    ("chunksize", 0, "at least 1"),
    ("chunksize", -3, "at least 1"),
    ("chunksize", 2.0, "must be an int"),
    ("chunksize", "10", "must be an int"),
    ("chunksize", True, "must be an int"),
    ("retries", -1, "at least 0"),
    ("retries", None, "must be an int"),
    ("retries", True, "must be an int"),
    ("retries", 1.5, "must be an int"),
    ("max_workers", 0, "at least 1"),
    ("max_workers", "head:4730", "servers are given as servers="),
    ("max_workers", 2.5, "must be an int"),
    ("total", -1, "at least 0"),
    ("total", "many", "must be an int"),
    ("max_worker_losses", -1, "at least 0"),
    ("max_worker_losses", None, "must be an int"),
    ("timeout", -0.1, "seconds, 0 or more"),
    ("timeout", math.nan, "seconds, 0 or more"),
    ("timeout", "10", "seconds, 0 or more"),
    ("timeout", True, "seconds, 0 or more"),
    ("task_timeout", 0, "seconds, more than 0, or None"),
    ("task_timeout", -1.0, "seconds, more than 0, or None"),
    ("task_timeout", math.nan, "seconds, more than 0, or None"),
    ("task_timeout", math.inf, "seconds, more than 0, or None"),
    ("task_timeout", "30", "seconds, more than 0, or None"),
    ("retry_exceptions", "ValueError", "an exception class, or a list or tuple of them"),
    ("retry_exceptions", None, "an exception class, or a list or tuple of them"),
    ("retry_exceptions", True, "an exception class, or a list or tuple of them"),
    ("retry_exceptions", ValueError("x"), "an exception class, or a list or tuple of them"),
    ("retry_exceptions", int, "an exception class, or a list or tuple of them"),
    ("retry_exceptions", (ValueError, "OSError"), "an exception class, or a list or tuple of them"),
    ("retry_exceptions", {ValueError}, "an exception class, or a list or tuple of them"),
    ("retry_delay", -0.5, "seconds, 0 or more"),
    ("retry_delay", None, "seconds, 0 or more"),
    ("retry_delay", "0.5", "seconds, 0 or more"),
    ("log_level", "LOUD", "must be one of NOTSET, DEBUG"),
    ("log_level", -1, "a number from 0 on"),
    ("log_level", True, "a number from 0 on"),
    ("log_level", 1.5, "a number from 0 on"),
    ("initializer", "load", "must be callable"),
    ("initargs", "model.bin", "a tuple or list of arguments"),
    ("initargs", None, "a tuple or list of arguments"),
    ("max_tasks_per_child", 0, "at least 1"),
    ("max_tasks_per_child", 1.5, "must be an int"),
    ("by_value", "helper", "a list of modules or of their names"),
    ("by_value", [3], "a list of modules or of their names"),
    ("by_reference", ["no module"], "a list of modules or of their names"),
    ("by_value", ["gearmap.wire"], "is not one"),
    ("by_reference", ["__main__"], "is not one"),
    ("return_exceptions", 1, "True or False"),
    ("return_exceptions", None, "True or False"),
    ("progress", 1, "True or False"),
    ("progress", "bar", "True or False"),
    ("desc", 5, "must be a str"),
    ("priority", "urgent", "one of low, normal, high"),
    ("priority", None, "one of low, normal, high"),
    ("priority", [], "one of low, normal, high"),
    ("queue", "", "1 to 64 letters"),
    ("queue", "a b", "1 to 64 letters"),
    ("queue", "a.b", "1 to 64 letters"),
    ("queue", "a~1", "1 to 64 letters"),
    ("queue", "gpu\n", "1 to 64 letters"),
    ("queue", "\u00e9", "1 to 64 letters"),
    ("queue", "x" * 65, "1 to 64 letters"),
    ("queue", None, "1 to 64 letters"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_wrong_option_is_refused_by_name_with_its_value_and_what_to_give(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RunOptions(**{name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert says in message
    assert repr(value) in message
    assert not message.endswith(".")


def test_every_option_has_a_wrong_value_above() -> None:
    assert {name for name, _, _ in WRONG} == {field.name for field in fields(RunOptions)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunksize", None),
        ("chunksize", 1),
        ("timeout", 0),
        ("timeout", 0.5),
        ("timeout", math.inf),
        ("task_timeout", 1e-9),
        ("task_timeout", None),
        ("retry_exceptions", ()),
        ("retry_exceptions", (SystemExit, OSError)),
        ("retry_delay", 0),
        ("retry_delay", math.inf),
        ("retries", 0),
        ("total", 0),
        ("progress", False),
        ("progress", None),
        ("desc", ""),
        ("priority", "high"),
        ("queue", "x" * 64),
        ("queue", "A-b_9"),
        ("max_worker_losses", 0),
    ],
)
def test_a_value_at_the_edge_is_taken(name: str, value: Any) -> None:
    assert getattr(RunOptions(**{name: value}), name) == value


@pytest.mark.parametrize("given", [OSError, [OSError], (OSError,)])
def test_exceptions_to_retry_come_as_a_class_a_list_or_a_tuple_and_are_the_same_options(given: Any) -> None:
    options = RunOptions(retry_exceptions=given)
    assert options.retry_exceptions == (OSError,)
    assert options == RunOptions(retry_exceptions=(OSError,))
    assert hash(options.with_changes({"retries": 2})) == hash(RunOptions(retry_exceptions=OSError, retries=2))


def test_changes_make_a_copy_and_are_checked() -> None:
    options = RunOptions(retries=1)
    assert options.with_changes({"queue": "gpu"}) == RunOptions(retries=1, queue="gpu")
    assert options == RunOptions(retries=1)
    with pytest.raises(ConfigurationError, match="retries must be at least 0"):
        options.with_changes({"retries": -1})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timout", "there is no option 'timout'; did you mean 'timeout'?"),
        ("chunk_size", "there is no option 'chunk_size'; did you mean 'chunksize'?"),
        ("alpha", r"there is no option 'alpha'; the options are chunksize, .*functools.partial\(fn, alpha=...\)"),
    ],
)
def test_an_unknown_option_is_refused_with_what_was_meant(name: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        RunOptions().with_changes({name: 3})


def test_options_that_only_a_map_takes_are_options() -> None:
    assert set(MAP_ONLY) < {field.name for field in fields(RunOptions)}


@given(st.text())
def test_any_text_is_a_queue_or_refused(text: str) -> None:
    allowed = 1 <= len(text) <= 64 and text.isascii() and all(c.isalnum() or c in "_-" for c in text)
    if allowed:
        assert check_queue(text) == text
    else:
        with pytest.raises(ConfigurationError):
            check_queue(text)


def test_modules_are_chosen_as_themselves_or_by_name() -> None:
    options = RunOptions(by_value=[math, "a.b"], by_reference=("c",))
    assert options == RunOptions(by_value=("math", "a.b"), by_reference=["c"])
    assert options.by_value == ("math", "a.b")
    assert hash(options) == hash(RunOptions(by_value=("math", "a.b"), by_reference=("c",)))


def test_a_module_goes_one_way_only() -> None:
    with pytest.raises(ConfigurationError, match="'a' is both"):
        RunOptions(by_value=["a"], by_reference=["a"])


# --------------------------------------------------------------------------------------------------------- Unix sockets


def test_a_unix_socket_is_named_by_its_path_and_is_on_this_machine() -> None:
    address = parse_server(" unix:/tmp/gearmap-1/s ", "a test")
    assert address == ServerAddress("/tmp/gearmap-1/s", 0, "a test")
    assert str(address) == "unix:/tmp/gearmap-1/s"
    assert address.is_loopback


@pytest.mark.parametrize("text", ["unix:", "unix:relative", "unix:./here", "unix:/a\0b"])
def test_a_unix_socket_needs_its_whole_path(text: str) -> None:
    with pytest.raises(ConfigurationError, match="the whole path of the socket"):
        parse_server(text, "a test")


def test_unix_sockets_stand_in_lists_with_others() -> None:
    choice = resolve_servers("unix:/tmp/a,head", environ={})
    assert [str(address) for address in choice.addresses] == ["unix:/tmp/a", "head:4730"]
