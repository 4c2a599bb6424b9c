"""Keys from the secret, nonces from counters, and one piece sealed or opened.

What must not live here: randomness, clocks, the layout of messages (`envelope`).

Rule 1: every key has exactly one writer, so that nonces can be counters: a nonce is used once because its writer
counts up. The client writes under the job key of a fresh unique, the child under the outcome key of its execution,
the node under the node key of the same execution.
Rule 2: what does not open raises `SealError` and gives no bytes at all.

Keys are derived with HKDF-SHA256 (RFC 5869): the session key by extract and expand from the secret, salted with the
session id; all others by expand from the session key. One block of output is enough for every key here, and expand
with one block is one HMAC. Pieces are sealed with AES-256-GCM (NIST SP 800-38D), numbered, and the last one is
marked: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar ("Online authenticated-encryption and its
nonce-reuse misuse-resistance", CRYPTO 2015), which is why pieces cannot be dropped, reordered or cut off.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gearmap.errors import SealError
from gearmap.secret import Secret
from gearmap.wire.framing import Buffer

__all__ = [
    "ID_BYTES",
    "KEY_BYTES",
    "MAX_SEQUENCE",
    "TAG_BYTES",
    "Deriver",
    "Sealer",
    "job_key",
    "key_id",
    "node_key",
    "outcome_key",
    "session_key",
]

KEY_BYTES = 32
ID_BYTES = 16
TAG_BYTES = 16

# A nonce is the sequence number (6 bytes), the number of the piece (5 bytes) and whether it is the last (1 byte).
_NONCE_BYTES = 12
_SEQUENCE_SHIFT = 48
_PIECE_SHIFT = 8
MAX_SEQUENCE = 2 ** (8 * _NONCE_BYTES - _SEQUENCE_SHIFT) - 1
"""Last sequence number that fits into a nonce; more messages than any execution sends."""

_KEY_ID_HEX = 8
_NO_SALT = bytes(32)

# These came with cryptography 47; before it, sealing and opening make a bytes object and copy it.
_HAS_DECRYPT_INTO = hasattr(AESGCM, "decrypt_into")
_HAS_ENCRYPT_INTO = hasattr(AESGCM, "encrypt_into")


def key_id(secret: Secret) -> str:
    """The public name of a secret: 8 hex characters that tell keys apart and reveal nothing about them."""
    return _expand(hmac.digest(_NO_SALT, secret.reveal(), "sha256"), b"gearmap1 key id").hex()[:_KEY_ID_HEX]


def session_key(secret: Secret, session_id: bytes) -> bytes:
    """The key of one session.

    Parameters
    ----------
    secret
        The shared secret, `KEY_BYTES` or longer.
    session_id
        16 random bytes; they travel in the clear.
    """
    if len(secret.reveal()) < KEY_BYTES:
        raise ValueError(f"a secret has at least {KEY_BYTES} bytes, got {len(secret.reveal())}")
    _check_id("session_id", session_id)
    return _expand(hmac.digest(session_id, secret.reveal(), "sha256"), b"gearmap1 session")


def job_key(session_key: bytes | Deriver, unique: bytes) -> bytes:
    """The key of one attempt's job, written by the client only."""
    return _expand(session_key, b"gearmap1 job" + _length(unique) + unique)


def outcome_key(session_key: bytes | Deriver, unique: bytes, execution_id: bytes) -> bytes:
    """The key of one execution's outcomes, written by the child only."""
    _check_id("execution_id", execution_id)
    return _expand(session_key, b"gearmap1 outcome" + _length(unique) + unique + execution_id)


def node_key(session_key: bytes | Deriver, unique: bytes, execution_id: bytes) -> bytes:
    """The key of one execution's beats, refusals and pieces of results, written by the node only."""
    _check_id("execution_id", execution_id)
    return _expand(session_key, b"gearmap1 node" + _length(unique) + unique + execution_id)


class Deriver:
    """A session key from which many keys are derived: what HMAC makes of the key alone is worked out once."""

    __slots__ = ("_begun",)

    def __init__(self, key: bytes) -> None:
        self._begun = hmac.new(key, digestmod="sha256")

    def expand(self, info: bytes) -> bytes:
        """HKDF-Expand with one block of output (RFC 5869 section 2.3)."""
        block = self._begun.copy()
        block.update(info + b"\1")
        return block.digest()


class Sealer:
    """Seals or opens the numbered pieces of the messages of one key."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, got {len(key)}")
        self._cipher = AESGCM(key)

    def seal(self, piece: Buffer, *, sequence: int, index: int, last: bool, associated: bytes) -> bytes:
        """Ciphertext and tag of one piece; its length is that of the piece plus `TAG_BYTES`."""
        return self._cipher.encrypt(_nonce(sequence, index, last), piece, associated)

    def seal_into(
        self, piece: Buffer, into: memoryview, *, sequence: int, index: int, last: bool, associated: bytes
    ) -> None:
        """Write ciphertext and tag to `into`, which must not overlap `piece` and has exactly their length."""
        nonce = _nonce(sequence, index, last)
        if _HAS_ENCRYPT_INTO:
            self._cipher.encrypt_into(nonce, piece, associated, into)
        else:
            into[:] = self._cipher.encrypt(nonce, piece, associated)

    def open(self, sealed: Buffer, *, sequence: int, index: int, last: bool, associated: bytes) -> bytes:
        """The piece. Raises `SealError` if anything about it is not as it was sealed."""
        try:
            return self._cipher.decrypt(_nonce(sequence, index, last), sealed, associated)
        except InvalidTag:
            raise _does_not_open(sequence, index) from None

    def open_into(
        self, sealed: Buffer, into: memoryview, *, sequence: int, index: int, last: bool, associated: bytes
    ) -> None:
        """Write the piece to `into`, which must not overlap `sealed` and has exactly the length of the piece."""
        nonce = _nonce(sequence, index, last)
        try:
            if _HAS_DECRYPT_INTO:
                self._cipher.decrypt_into(nonce, sealed, associated, into)
            else:
                into[:] = self._cipher.decrypt(nonce, sealed, associated)
        except InvalidTag:
            raise _does_not_open(sequence, index) from None


def _nonce(sequence: int, index: int, last: bool) -> bytes:
    return (sequence << _SEQUENCE_SHIFT | index << _PIECE_SHIFT | last).to_bytes(_NONCE_BYTES, "big")


def _expand(key: bytes | Deriver, info: bytes) -> bytes:
    """HKDF-Expand with one block of output (RFC 5869 section 2.3)."""
    if isinstance(key, Deriver):
        return key.expand(info)
    return hmac.digest(key, info + b"\1", "sha256")


def _length(variable: bytes) -> bytes:
    """Length in front of a field of variable length, so that no two field lists read the same."""
    return len(variable).to_bytes(4, "big")


def _check_id(name: str, value: bytes) -> None:
    if len(value) != ID_BYTES:
        raise ValueError(f"{name} has {ID_BYTES} bytes, got {len(value)}")


def _does_not_open(sequence: int, index: int) -> SealError:
    what = "its header" if index == 0 else f"piece {index} of its body"
    return SealError(f"an envelope does not open ({what}, sequence {sequence}): another key, damaged, or forged")
