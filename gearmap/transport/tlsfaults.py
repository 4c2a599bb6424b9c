"""What a connection that failed says about TLS: who refused whom, why, and what to do.

Law of the file: words only. Whatever happens, each sentence names the server and the next step; a reason that OpenSSL
gives is passed on where nothing better is known.
"""

from __future__ import annotations

import ssl

from gearmap.tls import CA_ADVICE, CERTIFICATE_ADVICE, TlsAddress, TlsFiles
from gearmap.transport.events import Address, show_address

__all__ = ["ANSWERED_TLS", "hint_after_handshake", "hint_in_plain_text", "mistaken_reply", "refusal", "silence"]

# X509_V_ERR_*, as in OpenSSL's x509_vfy.h; Python has no names for them.
_NOT_YET_VALID, _EXPIRED = 9, 10
_SELF_SIGNED = (18, 19)
_NO_ISSUER = (2, 20, 21)
_WRONG_HOST = (62, 64)

# How OpenSSL says that what came is no TLS.
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"}
)
# Alerts about what we have shown, or not shown.
_NO_CERTIFICATE = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"})
_BAD_CERTIFICATE = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "TLSV1_ALERT_UNKNOWN_CA": "the server does not know the authority that has signed it",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the server takes it for damaged or expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the server does not say why",
    "TLSV1_ALERT_ACCESS_DENIED": "it is not for this server",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is of a kind that the server does not take",
    "TLSV1_ALERT_DECRYPT_ERROR": "the server could not check it",
}

# The first bytes of a TLS server that tells a plain text client so: an alert, of any version.
ANSWERED_TLS = b"\x15\x03"


def refusal(address: Address, error: OSError) -> str:
    """Return why there was no handshake, or why a connection ended by TLS after it."""
    server = f"the job server at {show_address(address)}"
    files = address.tls if isinstance(address, TlsAddress) else TlsFiles()
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrust(server, address[0], files, error)
    if reason in _NO_TLS:
        return f"{server} does not speak TLS: it answered in plain text; {_without_tls(address)}"
    if reason in _NO_CERTIFICATE and files.cert is None:
        return f"{server} wants a client certificate; give one: {CERTIFICATE_ADVICE}"
    if reason in _BAD_CERTIFICATE and files.cert is not None:
        return f"{server} refuses the client certificate {files.cert}: {_BAD_CERTIFICATE[reason]}"
    if reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"):
        return f"{server} speaks neither TLS 1.2 nor 1.3, and nothing older is spoken here; update its TLS"
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        return f"{server} closed the connection instead of answering in TLS; {_without_tls(address)}"
    return f"no TLS with {server}: {error.strerror or error}"


def _distrust(server: str, host: str, files: TlsFiles, error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code in _WRONG_HOST:
        return f"the certificate of {server} is not for {host!r}; use a name that is in it, or give the server another"
    if code == _EXPIRED:
        return f"the certificate of {server} has expired; renew it there, or set this machine's clock"
    if code == _NOT_YET_VALID:
        return f"the certificate of {server} is not valid yet; look at both machines' clocks"
    if code in (*_SELF_SIGNED, *_NO_ISSUER):
        if files.ca is None:
            return (
                f"the certificate of {server} is signed by an authority that this system does not know; name that "
                f"authority's certificate: {CA_ADVICE}"
            )
        return f"the certificate of {server} is not signed by the authority in {files.ca}; name the right CA file"
    return f"the certificate of {server} is not accepted: {error.verify_message}"


def silence(address: Address, timeout: float) -> str:
    """Say that a handshake was begun and nothing came back."""
    server = f"the job server at {show_address(address)}"
    return f"{server} took the connection and did not answer in TLS within {timeout:g} s; {_without_tls(address)}"


def hint_after_handshake(address: TlsAddress) -> str:
    """What may be wrong where the server closes right after the handshake: in TLS 1.3 clients are judged that late."""
    if address.tls.cert is None:
        return f"right after the handshake; if it wants a client certificate: give one: {CERTIFICATE_ADVICE}"
    return f"right after the handshake; it may have refused the client certificate {address.tls.cert}"


def hint_in_plain_text(address: Address) -> str:
    """What may be wrong where the server closes before it has said anything in plain text."""
    return f"before it had answered; if it speaks TLS, name it {_with_tls(address)}"


def mistaken_reply(address: Address) -> str:
    """Say that a server answered plain text in TLS."""
    return f"the job server at {show_address(address)} speaks TLS; name it {_with_tls(address)}"


def _with_tls(address: Address) -> str:
    return show_address(TlsAddress(address[0], address[1], TlsFiles()))


def _without_tls(address: Address) -> str:
    plain = show_address((address[0], address[1]))
    return (
        f"if it has none, put stunnel before it or use `gearmap server --tls-cert`, or name it {plain} where plain "
        "text is good enough"
    )
