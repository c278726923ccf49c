"""Signatures of bundles in the C library: the files, keys and verdicts of the Python runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.bundles import tiny_files, zip_bytes
from support.c_library import BINDINGS, CError, CPredictor, Description, build, library

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")

UNSIGNED, NOT_CHECKED, VERIFIED = 0, 1, 2
# RFC 8032, 7.1, tests 1 to 3: public key, message, signature
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def _key(seed: int) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def _raw(seed: int) -> bytes:
    return bytes(_key(seed).public_key().public_bytes_raw())


def _pem(seed: int) -> bytes:
    return (
        _key(seed)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _bundle(folder: Path, signature: bytes | None, manifest: bytes | None = None) -> Path:
    files = dict(tiny_files())
    if manifest is not None:
        files["manifest.json"] = manifest
    if signature is not None:
        files["manifest.sig"] = signature
    path = folder / "signed.umd"
    path.write_bytes(zip_bytes(files))
    return path


def _signed(seed: int) -> bytes:
    return bytes(_key(seed).sign(tiny_files()["manifest.json"]))


def _state(path: Path, keys: bytes | None) -> int:
    predictor = CPredictor(path, public_keys=keys)
    facts = Description()
    assert library().umd_describe(predictor.handle, ctypes.byref(facts)) == 0
    return int(facts.signature)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(lambda: _pem(1), id="PEM as OpenSSL writes it"),
        pytest.param(lambda: _raw(1).hex().encode(), id="hexadecimal"),
        pytest.param(lambda: _raw(1).hex().upper().encode() + b"\n", id="upper case"),
        pytest.param(lambda: _raw(2).hex().encode() + b"\r\n" + _pem(1), id="second of two"),
    ],
)
def test_a_bundle_signed_by_a_known_key_is_opened(
    keys: Callable[[], bytes], tmp_path: Path
) -> None:
    assert _state(_bundle(tmp_path, _signed(1)), keys()) == VERIFIED


def test_one_of_several_signatures_is_enough(tmp_path: Path) -> None:
    path = _bundle(tmp_path, _signed(3) + _signed(1))
    assert _state(path, _raw(1).hex().encode()) == VERIFIED
    assert _state(path, _raw(3).hex().encode()) == VERIFIED


def test_without_keys_a_signature_is_said_to_be_there_and_not_checked(tmp_path: Path) -> None:
    assert _state(_bundle(tmp_path, b"\0" * 64), None) == NOT_CHECKED
    assert _state(_bundle(tmp_path, None), None) == UNSIGNED


def test_a_directory_is_verified_too(tmp_path: Path) -> None:
    for name, data in {**tiny_files(), "manifest.sig": _signed(1)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert _state(tmp_path, _pem(1)) == VERIFIED


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(
    ("signature", "manifest"),
    [
        pytest.param(lambda: None, None, id="not signed"),
        pytest.param(lambda: _signed(2), None, id="signed by another key"),
        pytest.param(lambda: _flipped(_signed(1), 5), None, id="first half altered"),
        pytest.param(lambda: _flipped(_signed(1), 300), None, id="second half altered"),
        pytest.param(lambda: b"", None, id="empty"),
        pytest.param(lambda: _signed(1)[:-1], None, id="cut"),
        pytest.param(lambda: _signed(2) * 8 + _signed(1), None, id="nine signatures"),
        pytest.param(lambda: _signed(1) + b"\n", None, id="with a line end"),
        pytest.param(
            lambda: _signed(1),
            lambda: tiny_files()["manifest.json"] + b" ",
            id="manifest altered where JSON does not mind",
        ),
        pytest.param(lambda: _signed(1), lambda: b"no JSON", id="before it is parsed"),
    ],
)
def test_what_is_not_signed_by_the_key_is_refused(
    signature: Callable[[], bytes | None],
    manifest: Callable[[], bytes] | None,
    tmp_path: Path,
) -> None:
    path = _bundle(tmp_path, signature(), None if manifest is None else manifest())
    with pytest.raises(CError) as caught:
        CPredictor(path, public_keys=_pem(1))
    assert caught.value.name == "BundleSignatureError"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (b"", "none"),
        (b" \n", "none"),
        (b"ab" * 31, "no key"),
        (b"ab" * 33, "no key"),
        (b"public.pem", "no key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "another kind"),
        (b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 400, "another kind"),
        (b"-----BEGIN PUBLIC KEY-----\nMCow", "without an end"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "private"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "something else"),
        (b"\n".join([b"00" * 32] * 9), "more than 8"),
    ],
)
def test_what_is_no_public_key_is_a_usage_error(keys: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(CError) as caught:
        CPredictor(_bundle(tmp_path, _signed(1)), public_keys=keys)
    assert caught.value.name == "UsageError"
    assert said in str(caught.value)


@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, bytes, bytes], bool]:
    """The library's own function, (signature, key, message) -> right or not."""
    source = BINDINGS / "c" / "src"
    target = tmp_path_factory.mktemp("ed25519") / "ed25519.so"
    flags = ["-shared", "-fPIC", "-fvisibility=default"]
    built = ctypes.CDLL(str(build(target, flags, [source / "ed25519.c", source / "sha512.c"])))
    built.umdi_ed25519_verify.restype = ctypes.c_bool

    def call(signature: bytes, key: bytes, message: bytes) -> bool:
        size = ctypes.c_size_t(len(message))
        return bool(built.umdi_ed25519_verify(signature, key, message, size))

    return call


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_vectors_of_the_standard(
    key: str, message: str, signature: str, verify: Callable[[bytes, bytes, bytes], bool]
) -> None:
    triple = bytes.fromhex(signature), bytes.fromhex(key), bytes.fromhex(message)
    assert verify(*triple)
    assert not verify(*triple[:2], triple[2] + b"x")
    # S + L instead of S: the same equation, and not allowed by RFC 8032, 5.1.7
    order = 2**252 + 27742317777372353535851937790883648493
    larger = int.from_bytes(triple[0][32:], "little") + order
    assert not verify(triple[0][:32] + larger.to_bytes(32, "little"), *triple[1:])


@given(message=st.binary(max_size=400), seed=st.integers(1, 255), bit=st.integers(0, 511))
def test_verdicts_are_those_of_the_reference(
    message: bytes, seed: int, bit: int, verify: Callable[[bytes, bytes, bytes], bool]
) -> None:
    signature = _key(seed).sign(message)
    assert verify(signature, _raw(seed), message)
    assert not verify(_flipped(signature, bit), _raw(seed), message)
