from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from support.command import png, run, run_json
from umd_edge import (
    AuditError,
    AuditLog,
    AuditWriteError,
    ImageInputError,
    Predictor,
    TextInputError,
    UsageError,
)
from umd_edge._audit import MIN_BYTES
from umd_edge._audit_chain import FIRST, encode_line, log_files, read_log, verify_log

IMAGE = np.arange(900, dtype=np.uint8).reshape(30, 30)


def _records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _filled(path: Path, count: int, **options) -> str:
    """A log of so many results after its first record; its head."""
    with AuditLog(path, **options) as log:
        for index in range(count):
            log._append("result", {"number": index})
        return log.head


def _line(**record: object) -> bytes:
    return encode_line(record)[0] + b"\n"


def _chain_by_hand(path: Path) -> str:
    """The shortest reading of the format there is: the hash of the last line."""
    previous = FIRST
    for number, line in enumerate(path.read_text().split("\n")[:-1]):
        body, _, own = line.rpartition(',"sha256":"')
        record = json.loads(line)
        assert (record["previous"], record["seq"]) == (previous, number)
        previous = hashlib.sha256(f"{body}}}".encode()).hexdigest()
        assert own == previous + '"}'
    return previous


class TestRecords:
    def test_answer_is_recorded_with_what_made_it(self, tiny_bundle: Path, tmp_path: Path):
        path = png(tmp_path / "Jane Doe 1950-01-01.png")
        with AuditLog(tmp_path / "log", operator="ward-3") as log:
            predictor = Predictor.load(tiny_bundle, audit=log)
            answer = predictor.ask(path, "is there a fever in Jane Doe ?")
        record = _records(tmp_path / "log")[-1]
        assert record["input"]["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record["bundle"] == predictor.info.to_dict()
        assert (record["provider"], record["variant"]) == ("cpu", "int8")
        assert (record["task"], record["operator"]) == ("vqa", "ward-3")
        assert (record["status"], record["decision"]) == ("ok", [answer.text])
        assert record["scores"][answer.text] == answer.probability
        assert record["latency_ms"]["image"] > 0 and record["latency_ms"]["call"] > 0
        assert record["time"].endswith("Z") and record["code"] == "0.1.0"

    def test_nothing_that_the_user_wrote_stands_in_the_log(self, tiny_bundle: Path, tmp_path: Path):
        path = png(tmp_path / "Jane Doe 1950-01-01.png")
        with AuditLog(tmp_path / "log") as log:
            predictor = Predictor.load(tiny_bundle, audit=log)
            predictor.ask(path, "is there a fever in Jane Doe ?")
            predictor.classify(path, "chest-xray", text="Jane Doe, 61", structured={"age": 61.25})
        content = (tmp_path / "log").read_text()
        for word in ("Jane", "Doe", "1950", "fever", "61.25", str(tmp_path)):
            assert word not in content
        for question in ("is there a fever in Jane Doe ?", "Jane Doe, 61"):
            assert hashlib.sha256(question.encode()).hexdigest() not in content

    def test_classification_is_recorded_label_by_label(self, tiny_bundle: Path, tmp_path: Path):
        with AuditLog(tmp_path / "log") as log:
            predictor = Predictor.load(tiny_bundle, audit=log)
            result = predictor.encode(IMAGE).classify("chest-xray")
        record = _records(tmp_path / "log")[-1]
        assert record["scores"] == {item.label: item.probability for item in result.findings}
        assert record["decision"] == [item.label for item in result.findings if item.positive]
        header = b"30 30 1\n"
        assert record["input"] == {
            "pixels_sha256": hashlib.sha256(header + IMAGE.tobytes()).hexdigest()
        }

    def test_equal_questions_have_equal_hashes_in_one_log_and_others_in_another(
        self, tiny_bundle: Path, tmp_path: Path
    ):
        hashes = []
        for name in ("a", "b"):
            with AuditLog(tmp_path / name) as log:
                predictor = Predictor.load(tiny_bundle, audit=log)
                for question in ("what ?", "what ?", "which ?"):
                    predictor.ask(IMAGE, question)
            hashes += [record["input"]["question"] for record in _records(tmp_path / name)[1:]]
        assert hashes[0] == hashes[1] and hashes[3] == hashes[4]
        assert len(set(hashes)) == 4

    def test_failures_are_recorded_by_their_class(self, tiny_bundle: Path, tmp_path: Path):
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG\r\n\x1a\n")
        with AuditLog(tmp_path / "log") as log:
            predictor = Predictor.load(tiny_bundle, audit=log)
            for image in (tmp_path / "none.png", broken, broken.read_bytes(), IMAGE[:0]):
                with pytest.raises(ImageInputError):
                    predictor.ask(image, "what ?")
            with pytest.raises(TextInputError):
                predictor.encode(IMAGE).ask(" ")
        records = _records(tmp_path / "log")[1:]
        assert {record["event"] for record in records} == {"error"}
        assert [record["error"] for record in records] == ["ImageInputError"] * 4 + [
            "TextInputError"
        ]
        digest = hashlib.sha256(broken.read_bytes()).hexdigest()
        inputs = [record["input"].get("file_sha256") for record in records]
        assert inputs == [None, digest, digest, None, None]

    def test_result_is_not_handed_out_unrecorded(self, tiny_bundle: Path, tmp_path: Path):
        with AuditLog(tmp_path / "log") as log:
            predictor = Predictor.load(tiny_bundle, audit=log)
        with pytest.raises(AuditWriteError, match="closed"):
            predictor.ask(IMAGE, "what ?")

    def test_something_else_is_no_log(self, tiny_bundle: Path, tmp_path: Path):
        with pytest.raises(UsageError, match="AuditLog"):
            Predictor.load(tiny_bundle, audit=str(tmp_path / "log"))  # type: ignore[arg-type]

    @pytest.mark.parametrize("operator", ["", "Jane Doe", "a" * 65, "x\n", "ä"])
    def test_operator_is_an_identifier(self, operator: str, tmp_path: Path):
        with pytest.raises(UsageError, match="operator"):
            AuditLog(tmp_path / "log", operator=operator)


class TestChain:
    def test_head_is_the_hash_of_the_last_line(self, tmp_path: Path):
        head = _filled(tmp_path / "log", 5)
        assert head == _chain_by_hand(tmp_path / "log")
        report = verify_log(tmp_path / "log", anchors=[head])
        assert (report.records, report.first, report.head) == (6, 0, head)

    def test_log_goes_on_where_it_ended(self, tmp_path: Path):
        first = _filled(tmp_path / "log", 2)
        second = _filled(tmp_path / "log", 2)
        assert second == _chain_by_hand(tmp_path / "log")
        assert verify_log(tmp_path / "log", anchors=[first, second]).records == 5

    def test_every_change_of_one_byte_is_found(self, tmp_path: Path):
        _filled(tmp_path / "log", 4)
        good = (tmp_path / "log").read_bytes()
        rng = np.random.default_rng(0)
        for position in rng.choice(len(good), 200, replace=False):
            bad = bytearray(good)
            bad[position] ^= 1 << int(rng.integers(0, 8))
            (tmp_path / "log").write_bytes(bad)
            with pytest.raises(AuditError):
                report = verify_log(tmp_path / "log")
                # A broken line feed at the very end is told, and no error.
                assert report.torn_bytes > 0
                raise AuditError

    @pytest.mark.parametrize("line", range(6))
    def test_line_taken_out_is_found(self, line: int, tmp_path: Path):
        head = _filled(tmp_path / "log", 5)
        lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
        (tmp_path / "log").write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
        with pytest.raises(AuditError):
            verify_log(tmp_path / "log", anchors=[head])

    def test_doubled_and_swapped_lines_are_found(self, tmp_path: Path):
        _filled(tmp_path / "log", 5)
        lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
        for order in ([0, 1, 1, 2, 3, 4, 5], [0, 2, 1, 3, 4, 5], [1, 2, 3, 4, 5]):
            (tmp_path / "log").write_bytes(b"".join(lines[index] for index in order))
            with pytest.raises(AuditError):
                verify_log(tmp_path / "log")

    def test_cut_end_is_found_with_an_anchor_alone(self, tmp_path: Path):
        head = _filled(tmp_path / "log", 5)
        lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
        (tmp_path / "log").write_bytes(b"".join(lines[:-1]))
        assert verify_log(tmp_path / "log").records == 5
        with pytest.raises(AuditError, match="cut or written anew"):
            verify_log(tmp_path / "log", anchors=[head])

    def test_log_written_anew_is_found_with_an_anchor_alone(self, tmp_path: Path):
        head = _filled(tmp_path / "log", 3)
        (tmp_path / "log").unlink()
        _filled(tmp_path / "log", 3)
        assert verify_log(tmp_path / "log").records == 4
        with pytest.raises(AuditError, match="written anew"):
            verify_log(tmp_path / "log", anchors=[head])

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"\n", b"text\n", b"[]\n", b"{}\n", b"\0" * 4096),
            encode_line({"audit": 2, "seq": 0, "previous": "", "event": "", "time": ""})[0] + b"\n",
            encode_line({"audit": 1, "seq": "0", "previous": "", "event": "", "time": ""})[0]
            + b"\n",
            encode_line({"audit": 1, "seq": 0, "previous": "", "event": ""})[0] + b"\n",
            encode_line({"a": {"b": [[[[[[]]]]]]}, "audit": 1})[0].replace(b"[", b"[" * 99) + b"\n",
            b"[" * 100_000 + b"\n",
            b"x" * (3 << 20) + b"\n",
        ],
    )
    def test_something_else_is_no_log(self, content: bytes, tmp_path: Path):
        (tmp_path / "log").write_bytes(content)
        with pytest.raises(AuditError):
            verify_log(tmp_path / "log")

    def test_nothing_is_appended_to_a_damaged_end(self, tmp_path: Path):
        (tmp_path / "log").write_bytes(b"text\n")
        with pytest.raises(AuditError, match="the last line"):
            AuditLog(tmp_path / "log")
        assert (tmp_path / "log").read_bytes() == b"text\n"


class TestFiles:
    def test_chain_goes_on_through_full_files(self, tmp_path: Path):
        head = _filled(tmp_path / "log", 200, max_bytes=4096)
        files = log_files(tmp_path / "log")
        assert len(files) > 5
        assert all(path.stat().st_size <= 4096 for path in files)
        report = verify_log(tmp_path / "log", anchors=[head])
        numbers = [link.record.get("number") for link in read_log(tmp_path / "log")]
        assert [number for number in numbers if number is not None] == list(range(200))
        assert report.files == files
        assert [path.name for path in files[:2]] == ["log.000001", "log.000002"]

    def test_missing_part_in_the_middle_is_found(self, tmp_path: Path):
        _filled(tmp_path / "log", 200, max_bytes=4096)
        (tmp_path / "log.000003").unlink()
        with pytest.raises(AuditError, match="does not follow"):
            verify_log(tmp_path / "log")

    def test_older_parts_may_be_put_away_with_the_hash_before_the_rest(self, tmp_path: Path):
        _filled(tmp_path / "log", 200, max_bytes=4096)
        (tmp_path / "old").mkdir()
        before = _records(tmp_path / "log.000002")[-1]["sha256"]
        for name in ("log.000001", "log.000002"):
            (tmp_path / name).rename(tmp_path / "old" / name)
        with pytest.raises(AuditError, match="its beginning is missing"):
            verify_log(tmp_path / "log")
        assert verify_log(tmp_path / "log", after=before).first > 0
        assert verify_log(tmp_path / "old" / "log").first == 0

    def test_writer_killed_between_two_files_goes_on(self, tmp_path: Path):
        head = _filled(tmp_path / "log", 3)
        (tmp_path / "log").rename(tmp_path / "log.000001")
        _filled(tmp_path / "log", 1)
        report = verify_log(tmp_path / "log", anchors=[head])
        assert (report.records, len(report.files)) == (6, 2)
        assert _records(tmp_path / "log")[0]["event"] == "continued"

    def test_other_files_in_the_folder_are_left_alone(self, tmp_path: Path):
        for name in ("log.txt", "log.1", "log.000001.bak", "catalog.000001", "log.torn-x.new.bak"):
            (tmp_path / name).write_text("x")
        _filled(tmp_path / "log", 1)
        assert log_files(tmp_path / "log") == (tmp_path / "log",)

    @pytest.mark.parametrize("cut", [1, 20, 150])
    def test_half_written_line_is_set_aside_and_noted(self, cut: int, tmp_path: Path):
        _filled(tmp_path / "log", 3)
        whole = (tmp_path / "log").read_bytes()
        (tmp_path / "log").write_bytes(whole[:-cut])
        kept, _, torn = whole[:-cut].rpartition(b"\n")
        assert verify_log(tmp_path / "log").torn_bytes == len(torn)
        _filled(tmp_path / "log", 1)
        (aside,) = tmp_path.glob("log.torn-*")
        assert aside.read_bytes() == torn
        assert (tmp_path / "log").read_bytes().startswith(kept + b"\n")
        note = _records(tmp_path / "log")[-2]
        assert (note["event"], note["torn_bytes"]) == ("recovered", len(torn))
        assert note["torn_sha256"] == hashlib.sha256(torn).hexdigest()
        assert verify_log(tmp_path / "log").recovered == 1

    @pytest.mark.parametrize("moment", ["set aside", "noted"])
    def test_kill_during_the_repair_loses_and_doubles_nothing(self, moment: str, tmp_path: Path):
        _filled(tmp_path / "log", 2)
        torn = b'{"audit":1,"half'
        (tmp_path / f"log.torn-{hashlib.sha256(torn).hexdigest()[:16]}.new").write_bytes(torn)
        if moment == "noted":
            _filled(tmp_path / "log", 0)
            (aside,) = tmp_path.glob("log.torn-*")
            aside.rename(aside.with_name(aside.name + ".new"))
        _filled(tmp_path / "log", 1)
        assert verify_log(tmp_path / "log").recovered == 1
        (aside,) = tmp_path.glob("log.torn-*")
        assert aside.read_bytes() == torn and aside.suffix != ".new"

    def test_note_that_fills_the_file_goes_to_the_next_one_once(self, tmp_path: Path):
        torn = b'{"audit":1,"half'
        with AuditLog(tmp_path / "log", max_bytes=MIN_BYTES) as log:
            log._append("result", {"padding": "x" * 3000})
            left = MIN_BYTES - (tmp_path / "log").stat().st_size
            log._append("result", {"padding": "x" * (left - 400)})  # no room for another
        with (tmp_path / "log").open("ab") as file:
            file.write(torn)
        with AuditLog(tmp_path / "log", max_bytes=MIN_BYTES):
            assert [item["event"] for item in _records(tmp_path / "log")] == [
                "continued",
                "recovered",
            ]
        report = verify_log(tmp_path / "log")
        assert (report.recovered, len(report.files)) == (1, 2)
        (aside,) = tmp_path.glob("log.torn-*")
        assert aside.suffix != ".new"

    def test_files_are_for_their_owner_alone(self, tmp_path: Path):
        _filled(tmp_path / "log", 1)
        for path in tmp_path.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path.name

    @pytest.mark.parametrize("content", [b"", b"abc\n", b"0" * 63])
    def test_damaged_secret_is_refused_and_kept(self, content: bytes, tmp_path: Path):
        (tmp_path / "log.secret").write_bytes(content)
        with pytest.raises(AuditError, match="secret"):
            AuditLog(tmp_path / "log")
        assert (tmp_path / "log.secret").read_bytes() == content


class TestWriters:
    def test_second_writer_is_refused_until_the_first_has_ended(self, tmp_path: Path):
        with AuditLog(tmp_path / "log"):
            with pytest.raises(AuditWriteError, match="somebody else"):
                AuditLog(tmp_path / "log")
            code = f"import umd_edge; umd_edge.AuditLog({str(tmp_path / 'log')!r})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            assert b"somebody else" in done.stderr
        AuditLog(tmp_path / "log").close()

    def test_threads_share_one_chain(self, tiny_bundle: Path, tmp_path: Path):
        with AuditLog(tmp_path / "log") as log:
            predictor = Predictor.load(tiny_bundle, audit=log)
            encoded = predictor.encode(IMAGE)
            threads = [
                threading.Thread(target=lambda: [encoded.ask("what ?") for _ in range(10)])
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert verify_log(tmp_path / "log").records == 41

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_forked_process_may_not_go_on(self, tmp_path: Path):
        with AuditLog(tmp_path / "log") as log:
            child = os.fork()
            if child == 0:
                try:
                    log._append("result", {})
                except AuditWriteError:
                    os._exit(7)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert verify_log(tmp_path / "log").records == 1

    @pytest.mark.parametrize("change", ["delete", "replace", "append", "truncate"])
    def test_log_changed_by_something_else_is_noticed(self, change: str, tmp_path: Path):
        path = tmp_path / "log"
        with AuditLog(path) as log:
            log._append("result", {})
            if change == "delete":
                path.unlink()
            elif change == "replace":
                path.rename(tmp_path / "moved")
                path.write_bytes((tmp_path / "moved").read_bytes())
            elif change == "append":
                with path.open("ab") as file:
                    file.write(b"x")
            else:
                os.truncate(path, 10)
            with pytest.raises(AuditWriteError, match="something else"):
                log._append("result", {})

    def test_full_disk_gives_no_result_and_leaves_whole_records(
        self, tiny_bundle: Path, tmp_path: Path
    ):
        resource = pytest.importorskip("resource")
        path = tmp_path / "log"
        with AuditLog(path) as log:
            predictor = Predictor.load(tiny_bundle, audit=log)
            predictor.ask(IMAGE, "what ?")
            size = path.stat().st_size
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
                for _ in range(2):
                    with pytest.raises(AuditWriteError, match="cannot be written"):
                        predictor.ask(IMAGE, "what ?")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                signal.signal(signal.SIGXFSZ, old)
            assert path.stat().st_size == size
            predictor.ask(IMAGE, "what ?")
        assert verify_log(path).records == 3

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
    def test_failing_sync_gives_no_result_and_the_log_goes_on(
        self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def failing(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        with AuditLog(tmp_path / "log") as log:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", failing)
                with pytest.raises(AuditWriteError, match=os.strerror(code)):
                    log._append("result", {"number": 1})
            log._append("result", {"number": 2})
        assert [record.get("number") for record in _records(tmp_path / "log")] == [None, 2]

    @pytest.mark.parametrize("call", ["rename", "open"])
    def test_lost_permission_between_two_files_loses_nothing(
        self, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def refused(*given: object, **more: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        said, rng = [], random.Random(0)
        with AuditLog(tmp_path / "log", max_bytes=4096) as log:
            for number in range(60):
                with monkeypatch.context() as patch:
                    if rng.random() < 0.7:
                        patch.setattr(os, call, refused)
                    try:
                        log._append("result", {"number": number})
                    except AuditWriteError:
                        continue
                said.append(number)
        assert verify_log(tmp_path / "log").recovered == 0
        numbers = [link.record.get("number") for link in read_log(tmp_path / "log")]
        assert [number for number in numbers if number is not None] == said
        assert len(log_files(tmp_path / "log")) > 2 and len(said) < 60

    @pytest.mark.parametrize("place", ["missing/log", "folder", "/dev/full", "pipe"])
    def test_place_that_cannot_hold_a_log_is_told(self, place: str, tmp_path: Path):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(AuditWriteError, match="cannot be written"):
            AuditLog(tmp_path / place)
        assert not Path("/dev/full.lock").exists()


class TestCommands:
    def test_classify_and_ask_append_and_verify_accepts(self, tiny_bundle: Path, tmp_path: Path):
        image, log = png(tmp_path / "x.png"), tmp_path / "log"
        options = ["--bundle", tiny_bundle, "--audit", log, "--operator", "dr7"]
        assert (
            run("classify", image, tmp_path / "none", "--task", "skin-lesion", *options).code == 4
        )
        assert run("ask", image, "what ?", "which ?", *options).code == 0
        (found,) = run_json("audit", "verify", log)
        assert (found["status"], found["records"]) == ("ok", 5)
        events = [record["event"] for record in _records(log)]
        assert events == ["created", "result", "error", "result", "result"]

    def test_altered_log_is_exit_3_on_one_line(self, tmp_path: Path):
        _filled(tmp_path / "log", 3)
        good = tmp_path / "good"
        _filled(good, 1)
        data = (tmp_path / "log").read_bytes()
        (tmp_path / "log").write_bytes(data.replace(b'"number":1', b'"number":7'))
        done = run("audit", "verify", tmp_path / "log", good)
        assert done.code == 3
        assert done.err.count("\n") == 1 and "line 3 was changed" in done.err
        assert "good: ok" in done.out

    def test_head_is_an_anchor_for_verify(self, tmp_path: Path):
        head = _filled(tmp_path / "log", 3)
        (found,) = run_json("audit", "head", tmp_path / "log")
        assert (found["head"], found["seq"]) == (head, 3)
        assert run("audit", "verify", tmp_path / "log", "--anchor", head).code == 0
        assert run("audit", "verify", tmp_path / "log", "--anchor", "0" * 63 + "1").code == 3
        assert run("audit", "verify", tmp_path / "log", "--anchor", "x").code == 2

    def test_show_finds_records_of_an_image_and_of_a_question(
        self, tiny_bundle: Path, tmp_path: Path
    ):
        one, other, log = png(tmp_path / "1.png", 20), png(tmp_path / "2.png", 21), tmp_path / "log"
        for image in (one, other):
            run("ask", image, "what ?", "which ?", "--bundle", tiny_bundle, "--audit", log)
        found = run_json("audit", "show", log, "--image", one, "--question", "what ?")
        assert [record["seq"] for record in found] == [1]
        assert len(run_json("audit", "show", log, "--question", "what ?")) == 2
        assert len(run_json("audit", "show", log, "--status", "ok", "--task", "vqa")) == 4
        assert run_json("audit", "show", log, "--since", "2999-01-01") == []
        assert run("audit", "show", log, "--since", "yesterday").code == 2
        assert run("audit", "show", log).out.count("\n") == 6

    def test_show_of_a_question_needs_the_secret(self, tmp_path: Path):
        _filled(tmp_path / "log", 1)
        (tmp_path / "log.secret").unlink()
        done = run("audit", "show", tmp_path / "log", "--question", "what ?")
        assert done.code == 3 and "secret" in done.err

    def test_locked_log_is_exit_1_and_operator_alone_exit_2(
        self, tiny_bundle: Path, tmp_path: Path
    ):
        call = ["ask", png(tmp_path / "x.png"), "what ?", "--bundle", tiny_bundle]
        with AuditLog(tmp_path / "log"):
            done = run(*call, "--audit", tmp_path / "log")
        assert (done.code, done.out) == (1, "")
        assert run(*call, "--operator", "me").code == 2
