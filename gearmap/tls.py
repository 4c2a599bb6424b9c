"""TLS to job servers: which files, where each was named, and the one place where contexts are made of them.

What must not live here: sockets and handshakes (`transport`, `jobserver`), what a failed one means
(`transport.tlsfaults`).

Rule 1: a context of ours speaks TLS 1.2 or newer. A client's always checks the server's certificate and host name; no
option turns that off.
Rule 2: only the names of files travel, never what is in them. Each process reads them itself, again when they change.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gearmap.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

__all__ = [
    "CA_ADVICE",
    "CERTIFICATE_ADVICE",
    "TlsAddress",
    "TlsFile",
    "TlsFiles",
    "TlsOptions",
    "TlsServerFiles",
    "client_context",
    "resolve_tls",
    "server_context",
]

# Contexts that are kept: of the clients and nodes of one process there are few. Raised: more memory, about 1 MB each
# with the system's authorities; lowered: 0.1 s of reading those again for each connection.
_KEPT_CONTEXTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """What a person has said, and where."""

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    origin: str = "the argument"

    @property
    def is_given(self) -> bool:
        """Whether anything was said."""
        return (self.ca, self.cert, self.key) != (None, None, None)


@dataclass(frozen=True, slots=True)
class TlsFile:
    """A file and who has named it.

    >>> str(TlsFile("/etc/ca.pem", "GEARMAP_TLS_CA"))
    "'/etc/ca.pem' (from GEARMAP_TLS_CA)"
    """

    path: str
    origin: str

    def __str__(self) -> str:
        return f"{self.path!r} (from {self.origin})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What a client needs to speak TLS.

    Attributes
    ----------
    ca
        The authorities that may have signed the server's certificate; None for those that the system trusts.
    cert
        The certificate that this side shows, with what it takes to reach the authority; None shows none.
    key
        Its private key; None where it is in the same file.
    """

    ca: TlsFile | None = None
    cert: TlsFile | None = None
    key: TlsFile | None = None

    def to_json(self) -> dict[str, list[str]]:
        """Return what `from_json` takes."""
        return {name: [file.path, file.origin] for name, file in self._named()}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[str]]) -> TlsFiles:
        """Return what `to_json` was called on."""
        return cls(**{name: TlsFile(*words) for name, words in data.items()})

    def _named(self) -> list[tuple[str, TlsFile]]:
        return [(each.name, value) for each in fields(self) if (value := getattr(self, each.name)) is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServerFiles:
    """What a job server needs to speak TLS.

    Attributes
    ----------
    cert, key
        Its certificate, and the key if that is not in the same file.
    ca
        The authority that must have signed the certificates of clients; None lets in clients without one.
    """

    cert: TlsFile
    key: TlsFile | None = None
    ca: TlsFile | None = None

    @classmethod
    def of_options(cls, cert: str | Path, key: str | Path | None, ca: str | Path | None) -> TlsServerFiles:
        """Return what `--tls-cert`, `--tls-key` and `--tls-ca` name."""

        def named(path: str | Path | None, option: str) -> TlsFile | None:
            return None if path is None else TlsFile(os.path.abspath(path), option)

        return cls(
            cert=TlsFile(os.path.abspath(cert), "--tls-cert"), key=named(key, "--tls-key"), ca=named(ca, "--tls-ca")
        )


class TlsAddress(NamedTuple):
    """The address of a job server that TLS is spoken with. A plain one has no third part, and so is never equal."""

    host: str
    port: int
    tls: TlsFiles


# How each file is named, for messages.
CA_ADVICE = "tls_ca=FILE, --tls-ca FILE or GEARMAP_TLS_CA=FILE"
CERTIFICATE_ADVICE = "tls_cert=FILE, --tls-cert FILE or GEARMAP_TLS_CERT=FILE, and its key likewise"

_WORDS = {
    "ca": ("tls_ca", "GEARMAP_TLS_CA", "CA file"),
    "cert": ("tls_cert", "GEARMAP_TLS_CERT", "certificate"),
    "key": ("tls_key", "GEARMAP_TLS_KEY", "key"),
}


def resolve_tls(
    argument: TlsOptions, *, environ: Mapping[str, str], from_config: Callable[[str], str], folder: Path, home: Path
) -> TlsFiles:
    """Find the files: for each the argument, then its variable, then the config file.

    Parameters
    ----------
    from_config
        Returns a value of the config file by its name, or nothing.
    folder
        Where relative names begin: processes that are told of the files stand elsewhere.

    Raises
    ------
    ConfigurationError
        If a key is named and no certificate.

    Examples
    --------
    >>> here = {"from_config": lambda name: "", "folder": Path("/srv"), "home": Path("/home/you")}
    >>> resolve_tls(TlsOptions(ca="ca.pem"), environ={}, **here).ca
    TlsFile(path='/srv/ca.pem', origin='the argument')
    """
    found: dict[str, TlsFile] = {}
    for name, (option, variable, _) in _WORDS.items():
        said = getattr(argument, name)
        if said is not None:
            if not isinstance(said, str | os.PathLike) or not os.fspath(said):
                raise ConfigurationError(f"{option} must be the path of a file, got {said!r}")
            path, origin = Path(said), argument.origin
        elif environ.get(variable):
            path, origin = Path(environ[variable]), variable
        elif text := from_config(option):
            # `~` means this in the config file only: shells replace it everywhere else.
            path, origin = (home / text[2:] if text.startswith("~/") else Path(text)), "the config file"
        else:
            continue
        found[name] = TlsFile(str(folder / path), origin)
    files = TlsFiles(**found)
    if files.key is not None and files.cert is None:
        raise ConfigurationError(f"there is a TLS key {files.key}, but no certificate; give it: {CERTIFICATE_ADVICE}")
    return files


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context for connections to job servers; the same one as long as the files stay as they are.

    Raises
    ------
    ConfigurationError
        If a file is missing or is not what it should be; the message names it and its origin.
    """
    return _client_context(files, tuple(_stamp(name, file) for name, file in files._named()))


# The stamps are there to be compared: a certificate that was renewed is read again, without a new process.
@functools.lru_cache(maxsize=_KEPT_CONTEXTS)
def _client_context(files: TlsFiles, stamps: tuple[Any, ...]) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, files.ca)
    if files.cert is not None:
        _show(context, files.cert, files.key)
    return context


def server_context(files: TlsServerFiles) -> ssl.SSLContext:
    """Return a context for a job server; the same one as long as the files stay as they are.

    Raises
    ------
    ConfigurationError
        As for `client_context`.
    """
    named = ("cert", files.cert), ("key", files.key), ("ca", files.ca)
    return _server_context(files, tuple(_stamp(name, file) for name, file in named if file is not None))


@functools.lru_cache(maxsize=_KEPT_CONTEXTS)
def _server_context(files: TlsServerFiles, stamps: tuple[Any, ...]) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Connections live long and nobody resumes one; each ticket would be two packets and memory.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    _show(context, files.cert, files.key)
    if files.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, files.ca)
    return context


def _stamp(name: str, file: TlsFile) -> tuple[int, int, int]:
    """Return what changes when a file does; an error if it cannot be read."""
    what = _WORDS[name][2]
    try:
        with open(file.path, "rb") as opened:
            status = os.fstat(opened.fileno())
    except OSError as error:
        raise ConfigurationError(f"the TLS {what} {file} cannot be read: {error.strerror or error}")
    return status.st_ino, status.st_mtime_ns, status.st_size


def _trust(context: ssl.SSLContext, ca: TlsFile) -> None:
    try:
        context.load_verify_locations(cafile=ca.path)
    except OSError:  # as all errors of ssl
        raise ConfigurationError(f"the TLS CA file {ca} holds no certificate in PEM form")


def _show(context: ssl.SSLContext, cert: TlsFile, key: TlsFile | None) -> None:
    place = key or cert
    asked = []

    def password() -> str:
        # OpenSSL would ask at the terminal, in the middle of whatever the thread does.
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(cert.path, None if key is None else key.path, password)
    except OSError as error:
        if asked:
            raise ConfigurationError(
                f"the TLS key in {place} has a password; give it without: openssl pkey -in OLD -out NEW"
            )
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(f"the TLS key in {place} is not that of the certificate in {cert}")
        raise ConfigurationError(
            f"the TLS certificate in {cert} or its key in {place} cannot be used: both must be in PEM form"
        )
