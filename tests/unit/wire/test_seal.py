"""Keys, nonces and single pieces."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from gearmap.errors import SealError
from gearmap.secret import Secret
from gearmap.wire import seal
from gearmap.wire.seal import Deriver, Sealer, job_key, key_id, node_key, outcome_key, session_key

SECRET = bytes(range(32))
SESSION_ID = b"s" * 16
EXECUTION_ID = b"e" * 16


def test_the_session_key_is_hkdf_sha256_salted_with_the_session_id():
    expected = HKDF(hashes.SHA256(), 32, salt=SESSION_ID, info=b"gearmap1 session").derive(SECRET)
    assert session_key(Secret(SECRET), SESSION_ID) == expected


def test_a_job_key_is_one_block_of_hkdf_expand():
    key = session_key(Secret(SECRET), SESSION_ID)
    expected = HKDFExpand(hashes.SHA256(), 32, info=b"gearmap1 job\0\0\0\x02ab").derive(key)
    assert job_key(key, b"ab") == expected


def test_a_deriver_derives_what_the_bare_session_key_does_again_and_again():
    key = session_key(Secret(SECRET), SESSION_ID)
    deriver = Deriver(key)
    for unique in (b"u1", b"u2", b"u1"):
        assert job_key(deriver, unique) == job_key(key, unique)
        assert outcome_key(deriver, unique, EXECUTION_ID) == outcome_key(key, unique, EXECUTION_ID)
        assert node_key(deriver, unique, EXECUTION_ID) == node_key(key, unique, EXECUTION_ID)


def test_no_two_writers_share_a_key():
    key = session_key(Secret(SECRET), SESSION_ID)
    other = session_key(Secret(SECRET), b"t" * 16)
    keys = [
        derived
        for session in (key, other)
        for unique in (b"u1", b"u2", b"")
        for derived in (
            session,
            job_key(session, unique),
            outcome_key(session, unique, EXECUTION_ID),
            outcome_key(session, unique, b"f" * 16),
            node_key(session, unique, EXECUTION_ID),
        )
    ]
    assert len(set(keys)) == 2 + 2 * 3 * 4  # the session keys appear three times each
    assert {len(derived) for derived in keys} == {seal.KEY_BYTES}


def test_a_unique_that_ends_in_another_execution_id_gets_another_key():
    key = session_key(Secret(SECRET), SESSION_ID)
    assert outcome_key(key, b"u" + EXECUTION_ID, EXECUTION_ID) != outcome_key(key, b"u", EXECUTION_ID + b"")
    assert job_key(key, b"u") != job_key(key, b"u\1")


def test_a_key_id_is_eight_hex_characters_and_tells_secrets_apart():
    assert len(key_id(Secret(SECRET))) == 8
    assert int(key_id(Secret(SECRET)), 16) >= 0
    assert key_id(Secret(SECRET)) != key_id(Secret(bytes(32)))
    assert key_id(Secret(SECRET)) == key_id(Secret(SECRET))


@pytest.mark.parametrize(
    "call",
    [
        lambda: session_key(Secret(b"short"), SESSION_ID),
        lambda: session_key(Secret(SECRET), b"short"),
        lambda: outcome_key(SECRET, b"u", b"short"),
        lambda: node_key(SECRET, b"u", b""),
        lambda: Sealer(b"short"),
    ],
)
def test_keys_and_ids_of_the_wrong_size_are_refused(call):
    with pytest.raises(ValueError, match="bytes"):
        call()


def test_nonces_differ_in_sequence_index_and_last_mark():
    nonces = {
        seal._nonce(sequence, index, last)
        for sequence in (0, 1, 256, seal.MAX_SEQUENCE)
        for index in (0, 1, 256, 2**40 - 1)
        for last in (False, True)
    }
    assert len(nonces) == 4 * 4 * 2
    assert {len(nonce) for nonce in nonces} == {12}


@pytest.mark.parametrize("change", [{"sequence": 8}, {"index": 1}, {"last": True}, {"associated": b"b"}])
def test_a_piece_opens_only_where_it_was_sealed(change):
    where = {"sequence": 7, "index": 0, "last": False, "associated": b"a"}
    sealed = Sealer(SECRET).seal(b"piece", **where)

    assert Sealer(SECRET).open(sealed, **where) == b"piece"
    with pytest.raises(SealError, match="another key, damaged, or forged"):
        Sealer(SECRET).open(sealed, **{**where, **change})
    with pytest.raises(SealError):
        Sealer(bytes(32)).open(sealed, **where)


@pytest.mark.parametrize("has_decrypt_into", [True, False])
def test_opening_into_memory_gives_the_piece_or_an_error(monkeypatch, has_decrypt_into):
    monkeypatch.setattr(seal, "_HAS_DECRYPT_INTO", has_decrypt_into and seal._HAS_DECRYPT_INTO)
    where = {"sequence": 7, "index": 3, "last": True, "associated": b"a"}
    sealed = bytearray(Sealer(SECRET).seal(b"piece", **where))
    into = memoryview(bytearray(5))

    Sealer(SECRET).open_into(sealed, into, **where)
    assert into == b"piece"

    sealed[2] ^= 1
    with pytest.raises(SealError):
        Sealer(SECRET).open_into(sealed, into, **where)
