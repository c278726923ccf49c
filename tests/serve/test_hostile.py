"""Whatever is sent, the answer is ours: a status below 500 and an error of the documented form."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUESTION = "which organ is shown?"
FORM = {"content-type": "multipart/form-data; boundary=b"}
PATHS = ("/v1/classify", "/v1/ask", "/v1/images", "/v1/preview")


def assert_refused(answer) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) <= {"type", "message", "frames"}
    assert error["type"].endswith("Error")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"[" * 100_000,
        b'{"question": NaN}',
        b'{"question": "a", "question": "b"}',
        b'{"question": "\\ud800"}',
        b'{"image_id": "' + b"x" * 1000 + b'", "question": "a"}',
        b'{"frame": 99999999999999999999999999}',
        b"\xff\xfe",
        b'{"structured": {"a": 1}}',
        b'{"__proto__": 1, "question": "a"}',
    ],
)
def test_bad_json(client, body):
    headers = {"content-type": "application/json"}
    for path in PATHS:
        assert_refused(client.post(path, content=body, headers=headers))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b--",
        b"--b\r\n\r\n",
        b"no boundary at all",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name=""\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx',
        b'--b\r\nContent-Disposition: form-data; name="task"\r\n\r\n\xff\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="task"\r\n\r\n'
        + b"x" * 70_000
        + b"\r\n--b--",
        b"--b\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(50)) + b"\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../etc/x"\r\n\r\nx\r\n'
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n',
    ],
)
def test_bad_multipart(client, body):
    for path in PATHS:
        assert_refused(client.post(path, content=body, headers=FORM))


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
    ],
)
def test_a_boundary_is_needed(client, kind):
    answer = client.post("/v1/ask", content=b"--x--", headers={"content-type": kind})
    assert_refused(answer)
    assert "boundary" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/page.js/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/page.js%00.png",
        "/v1/images/..%2f..",
        "/_app.py",
        "/page/index.html",
    ],
)
def test_no_path_leads_to_a_file(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 405)
    assert b"root:" not in answer.content
    assert b"import" not in answer.content


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "GET", "HEAD"])
def test_other_methods_are_405(client, method):
    answer = client.request(method, "/v1/ask")
    assert answer.status_code == 405


def test_a_file_name_is_given_back_and_nowhere_else(client, png, caplog):
    import logging

    caplog.set_level(logging.INFO, "umd_edge.serve")
    name = "Jane^Doe<script>.png"
    form = {"question": "where is Jane's lesion?"}
    answer = client.post("/v1/ask", files={"image": (name, png)}, data=form)
    assert answer.json()["image"] == name
    assert answer.headers["content-type"] == "application/json"
    client.post("/v1/ask?question=Jane&image_id=Jane")
    client.get("/Jane")
    assert "Jane" not in caplog.text
    assert "Jane" not in client.get("/metrics").text
    assert "POST /v1/ask 200" in caplog.text
    assert "GET other 404" in caplog.text


def test_unknown_names_are_not_quoted(client, png):
    answer = client.post("/v1/ask?question=x&Jane_Doe=1", content=png)
    assert_refused(answer)
    assert "Jane" not in answer.text


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(PATHS),
    body=st.binary(max_size=300),
    kind=st.sampled_from(
        [
            "application/json",
            "multipart/form-data; boundary=b",
            "image/png",
            "application/dicom",
            "x",
        ]
    ),
    prefix=st.sampled_from(
        [
            b"",
            b"{",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n',
            b"\x89PNG\r\n\x1a\n",
        ]
    ),
)
def test_any_bytes_are_refused_with_an_error_of_ours(client, path, body, kind, prefix):
    answer = client.post(path, content=prefix + body, headers={"content-type": kind})
    assert_refused(answer)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    document=st.dictionaries(
        st.sampled_from(["question", "questions", "task", "image_id", "frame", "structured", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_any_json_is_answered_by_the_rules(client, document):
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/ask", content=json.dumps(document), headers=headers)
    assert_refused(answer)  # no such image is ever there
