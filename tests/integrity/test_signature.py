from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from support.bundles import tiny_files, unpack, zip_bytes
from support.command import run, run_json
from support.requirements import lacking
from umd_edge import (
    Bundle,
    BundleIntegrityError,
    BundleSignatureError,
    MissingDependencyError,
    Predictor,
    UsageError,
)
from umd_edge._signature import PublicKey, read_public_keys, verify_signatures
from umd_edge_export.cli import run as export
from umd_edge_export.errors import ExportError
from umd_edge_export.sign import make_key, sign_bundle

# RFC 8032, section 7.1, tests 1 to 3: public key, message, signature.
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701"
        "cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d"
        "0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760"
        "984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs `maker` and `other`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("maker", "other"):
        make_key(folder / f"{name}.pem")
    return folder


@pytest.fixture
def signed(keys: Path, tiny_bundle: Path, tmp_path: Path) -> Path:
    sign_bundle(tiny_bundle, [keys / "maker.pem"], tmp_path / "signed.umd")
    return tmp_path / "signed.umd"


class TestPublicKeys:
    @pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
    def test_vectors_of_the_standard_verify_and_any_other_byte_does_not(
        self, key: str, message: str, signature: str
    ):
        wanted = PublicKey(bytes.fromhex(key))
        right = bytes.fromhex(signature)
        assert verify_signatures(bytes.fromhex(message), right, [wanted]) == wanted
        for index in (0, 31, 32, 63):
            wrong = bytearray(right)
            wrong[index] ^= 1
            with pytest.raises(BundleSignatureError):
                verify_signatures(bytes.fromhex(message), bytes(wrong), [wanted])

    def test_pem_is_what_cryptography_writes_and_is_read_back(self):
        private = ed25519.Ed25519PrivateKey.generate()
        public = private.public_key()
        pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        raw = public.public_bytes_raw()
        assert PublicKey(raw).to_pem() == pem
        assert read_public_keys(pem) == (PublicKey(raw),)
        assert read_public_keys(raw.hex().encode() + b"\n") == (PublicKey(raw),)
        assert read_public_keys([raw, pem]) == (PublicKey(raw),)

    def test_several_keys_in_one_file_are_all_read(self, keys: Path, tmp_path: Path):
        both = tmp_path / "both.pem"
        both.write_bytes(
            b"the old one\n"
            + (keys / "maker.pub.pem").read_bytes()
            + (keys / "other.pub.pem").read_bytes().replace(b"\n", b"\r\n")
        )
        found = read_public_keys(both)
        assert found == (
            *read_public_keys(keys / "maker.pub.pem"),
            *read_public_keys(keys / "other.pub.pem"),
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "holds no key"),
            (b"\x00" * 31, "holds no key"),
            (b"ab" * 31, "holds no key"),
            (b"x" * 70_000, "larger than"),
            (b"-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n", "another kind"),
            (b"-----BEGIN PUBLIC KEY-----\n===\n-----END PUBLIC KEY-----\n", "another kind"),
        ],
    )
    def test_something_else_is_refused_with_what_is_needed(self, content: bytes, message: str):
        with pytest.raises(UsageError, match=message):
            read_public_keys(content)

    def test_keys_of_other_kinds_are_refused(self):
        for other in (
            rsa.generate_private_key(65537, 2048).public_key(),
            ec.generate_private_key(ec.SECP256R1()).public_key(),
        ):
            pem = other.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            with pytest.raises(UsageError, match="another kind"):
                read_public_keys(pem)

    def test_private_key_given_by_mistake_is_refused_and_not_shown(self, keys: Path):
        with pytest.raises(UsageError, match="private key") as caught:
            read_public_keys(keys / "maker.pem")
        secret = (keys / "maker.pem").read_text().splitlines()[1]
        assert secret not in str(caught.value)

    @pytest.mark.parametrize("path", ["missing.pem", ".", "/dev/zero", "nul\0byte"])
    def test_file_that_cannot_be_read_is_refused(self, path: str):
        with pytest.raises(UsageError, match="key"):
            read_public_keys(path)

    @given(st.binary(max_size=300))
    def test_any_bytes_are_a_key_or_refused(self, data: bytes):
        try:
            assert all(len(key.raw) == 32 for key in read_public_keys(data))
        except UsageError:
            pass

    def test_no_key_and_no_path_are_refused(self):
        with pytest.raises(UsageError, match="no public key"):
            read_public_keys([])
        with pytest.raises(UsageError, match="type int"):
            read_public_keys([3])  # type: ignore[list-item]


class TestOpening:
    def test_right_key_opens_and_is_named(self, signed: Path, keys: Path):
        (key,) = read_public_keys(keys / "maker.pub.pem")
        bundle = Bundle.open(signed, public_key=keys / "maker.pub.pem", require_signature=True)
        assert bundle.signed_by == key
        assert Bundle.open(signed, public_key=key.raw).signed_by == key

    def test_signature_changes_neither_identity_nor_answers(self, signed: Path, tiny_bundle: Path):
        assert Bundle.open(signed).sha256 == Bundle.open(tiny_bundle).sha256
        assert Bundle.open(signed).is_signed
        assert Bundle.open(signed).signed_by is None

    def test_openssl_verifies_what_is_written(self, signed: Path, keys: Path, tmp_path: Path):
        openssl = shutil.which("openssl")
        if openssl is None:
            lacking("openssl", "there is no openssl command")
        (tmp_path / "manifest.json").write_bytes(Bundle.open(signed).manifest_bytes)
        (tmp_path / "manifest.sig").write_bytes(Bundle.open(signed).signatures)
        command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(keys / "maker.pub.pem")]
        command += ["-rawin", "-in", "manifest.json", "-sigfile", "manifest.sig"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Verified Successfully" in done.stdout, done.stderr

    def test_other_key_is_refused(self, signed: Path, keys: Path):
        with pytest.raises(BundleSignatureError, match="no signature of the bundle is right"):
            Bundle.open(signed, public_key=keys / "other.pub.pem")

    def test_unsigned_bundle_is_refused_where_a_key_is_given(self, tiny_bundle: Path, keys: Path):
        with pytest.raises(BundleSignatureError, match="not signed"):
            Predictor.load(tiny_bundle, public_key=keys / "maker.pub.pem")

    def test_required_signature_without_a_key_is_refused(self, signed: Path):
        with pytest.raises(UsageError, match="no public key"):
            Predictor.load(signed, require_signature=True)

    def test_rewritten_manifest_is_refused_before_it_is_parsed(
        self, signed: Path, keys: Path, tmp_path: Path
    ):
        signatures = Bundle.open(signed).signatures
        files = {**tiny_files(), "manifest.json": b"no JSON at all", "manifest.sig": signatures}
        (tmp_path / "b.umd").write_bytes(zip_bytes(files))
        with pytest.raises(BundleSignatureError):
            Bundle.open(tmp_path / "b.umd", public_key=keys / "maker.pub.pem")

    def test_changed_file_of_a_signed_bundle_is_refused(
        self, signed: Path, keys: Path, tmp_path: Path
    ):
        files = {**tiny_files(), "manifest.sig": Bundle.open(signed).signatures}
        graph = bytearray(files["graphs/fusion.int8.onnx"])
        graph[100] ^= 1
        files["graphs/fusion.int8.onnx"] = bytes(graph)
        (tmp_path / "b.umd").write_bytes(zip_bytes(files))
        with pytest.raises(BundleIntegrityError, match="SHA-256"):
            Predictor.load(tmp_path / "b.umd", public_key=keys / "maker.pub.pem")

    @pytest.mark.parametrize("size", [0, 1, 63, 65, 128 + 1, 9 * 64, 100_000])
    def test_signature_of_another_size_is_refused(self, size: int, keys: Path, tmp_path: Path):
        files = {**tiny_files(), "manifest.sig": bytes(size)}
        (tmp_path / "b.umd").write_bytes(zip_bytes(files))
        with pytest.raises(BundleSignatureError, match=f"{size} bytes"):
            Bundle.open(tmp_path / "b.umd", public_key=keys / "maker.pub.pem")

    def test_signature_that_is_a_link_is_refused(self, keys: Path, tmp_path: Path):
        folder = unpack(tmp_path / "b")
        (tmp_path / "elsewhere").write_bytes(bytes(64))
        (folder / "manifest.sig").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleIntegrityError, match="link"):
            Bundle.open(folder, public_key=keys / "maker.pub.pem")

    def test_missing_library_is_told_with_its_extra(
        self, signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
        with pytest.raises(MissingDependencyError, match=r"umd-edge\[sign\]"):
            Bundle.open(signed, public_key=keys / "maker.pub.pem")
        assert Bundle.open(signed).is_signed


class TestSigning:
    def test_change_of_keys_keeps_old_and_new_devices_working(
        self, signed: Path, keys: Path, tmp_path: Path
    ):
        both, _ = sign_bundle(signed, [keys / "other.pem"], tmp_path / "both.umd", keep=True)
        assert len(both.signatures) == 128
        for name in ("maker", "other"):
            Bundle.open(both.path, public_key=keys / f"{name}.pub.pem")
        one, _ = sign_bundle(both.path, [keys / "other.pem"])
        assert len(one.signatures) == 64
        with pytest.raises(BundleSignatureError):
            Bundle.open(one.path, public_key=keys / "maker.pub.pem")

    def test_signing_twice_adds_nothing(self, signed: Path, keys: Path):
        before = signed.read_bytes()
        sign_bundle(signed, [keys / "maker.pem"], keep=True)
        assert signed.read_bytes() == before

    def test_directory_is_signed_where_it_is(self, keys: Path, tmp_path: Path):
        folder = unpack(tmp_path / "b")
        bundle, _ = sign_bundle(folder, [keys / "maker.pem"])
        assert (folder / "manifest.sig").read_bytes() == bundle.signatures
        assert Bundle.open(folder, public_key=keys / "maker.pub.pem").is_signed

    def test_damaged_bundle_is_not_signed(self, keys: Path, tmp_path: Path):
        folder = unpack(tmp_path / "b")
        data = bytearray((folder / "golden.npz").read_bytes())
        data[50] ^= 1
        (folder / "golden.npz").write_bytes(data)
        with pytest.raises(BundleIntegrityError):
            sign_bundle(folder, [keys / "maker.pem"])
        assert not (folder / "manifest.sig").exists()

    def test_nine_signatures_are_too_many(self, tiny_bundle: Path, tmp_path: Path):
        for index in range(9):
            make_key(tmp_path / f"{index}.pem")
        private = [tmp_path / f"{index}.pem" for index in range(9)]
        sign_bundle(tiny_bundle, private[:8], tmp_path / "b.umd")
        with pytest.raises(BundleSignatureError, match="at most 8"):
            sign_bundle(tmp_path / "b.umd", private[8:], keep=True)

    def test_key_is_private_to_its_owner_and_never_replaced(self, tmp_path: Path):
        make_key(tmp_path / "k.pem")
        assert (tmp_path / "k.pem").stat().st_mode & 0o077 == 0
        before = (tmp_path / "k.pem").read_bytes()
        with pytest.raises(UsageError, match="never replaced"):
            make_key(tmp_path / "k.pem")
        assert (tmp_path / "k.pem").read_bytes() == before

    def test_encrypted_key_needs_its_passphrase(self, tiny_bundle: Path, tmp_path: Path):
        make_key(tmp_path / "k.pem", passphrase=b"long and secret")
        assert b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()
        out = tmp_path / "b.umd"
        sign_bundle(tiny_bundle, [tmp_path / "k.pem"], out, passphrase=b"long and secret")
        with pytest.raises(UsageError, match="passphrase-file"):
            sign_bundle(tiny_bundle, [tmp_path / "k.pem"], out)
        with pytest.raises(UsageError, match="wrong"):
            sign_bundle(tiny_bundle, [tmp_path / "k.pem"], out, passphrase=b"guess")

    @pytest.mark.parametrize("kind", ["public", "rsa", "missing"])
    def test_key_that_cannot_sign_is_refused(self, kind: str, keys: Path, tmp_path: Path):
        path = {"public": keys / "maker.pub.pem"}.get(kind, tmp_path / "k.pem")
        if kind == "rsa":
            pem = rsa.generate_private_key(65537, 2048).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            path.write_bytes(pem)
        with pytest.raises(UsageError, match="key"):
            sign_bundle(unpack(tmp_path / "b"), [path])

    @pytest.mark.parametrize("form", ["file", "directory"])
    def test_full_disk_leaves_the_bundle_as_it_was(
        self, form: str, signed: Path, keys: Path, tmp_path: Path
    ):
        resource = pytest.importorskip("resource")
        bundle = signed
        if form == "directory":
            bundle = unpack(tmp_path / "b")
            sign_bundle(bundle, [keys / "maker.pem"])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
            with pytest.raises(ExportError, match="What was there is kept"):
                sign_bundle(bundle, [keys / "other.pem"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, old)
        Bundle.open(bundle, public_key=keys / "maker.pub.pem").check_files()
        assert not list(tmp_path.glob(".*.tmp"))

    def test_missing_folder_is_told_before_the_work(self, tiny_bundle: Path, keys: Path):
        with pytest.raises(UsageError, match="cannot be written"):
            sign_bundle(tiny_bundle, [keys / "maker.pem"], "/nowhere/b.umd")


class TestCommands:
    def test_keygen_sign_and_verify(
        self, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        key, out = tmp_path / "k.pem", tmp_path / "s.umd"
        assert export(["keygen", "--out", str(key)]) == 0
        assert export(["sign", str(tiny_bundle), "--key", str(key), "--out", str(out)]) == 0
        capsys.readouterr()
        public = tmp_path / "k.pub.pem"
        (found,) = run_json("verify", "--bundle", out, "--key", public, "--require-signature")
        (key,) = read_public_keys(public)
        assert found["signature"] == {"present": True, "checked": True, "key": key.fingerprint}

    def test_signature_without_a_key_is_told_as_not_checked(self, signed: Path):
        for command in ("info", "verify"):
            (found,) = run_json(command, "--bundle", signed)
            assert found["signature"] == {"present": True, "checked": False, "key": None}
            assert "not checked" in run(command, "--bundle", signed).out
        assert "not checked" in run("doctor", "--bundle", signed).out

    @pytest.mark.parametrize(
        "command",
        [
            *(["info"], ["verify"], ["bench"], ["build-engine"], ["demo"], ["doctor"], ["serve"]),
            ["sbom", "--out", "x.json"],
            ["explain", "x.png", "--task", "chest-xray", "--out", "x"],
            *(["classify", "x.png", "--task", "chest-xray"], ["ask", "x.png", "What?"]),
            ["evaluate", "--task", "chest-xray", "--data", "x.jsonl"],
            ["rank", "x.png", "--text", "a"],
        ],
    )
    def test_every_command_refuses_an_unsigned_bundle(
        self, command: list[str], tiny_bundle: Path, keys: Path
    ):
        options = ["--bundle", tiny_bundle, "--require-signature"]
        done = run(*command, *options, "--key", keys / "maker.pub.pem")
        assert done.code == 3, done.err
        assert "not signed" in done.err + done.out
        assert run(*command, *options).code == 2

    def test_wrong_key_is_exit_3_on_one_line(self, signed: Path, keys: Path):
        done = run("info", "--bundle", signed, "--key", keys / "other.pub.pem")
        assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)

    def test_one_of_two_keys_is_enough(self, signed: Path, keys: Path):
        pair = ["--key", keys / "other.pub.pem", "--key", keys / "maker.pub.pem"]
        assert run("info", "--bundle", signed, *pair).code == 0
