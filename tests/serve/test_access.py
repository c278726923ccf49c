from __future__ import annotations

import pytest

from umd_edge import UsageError
from umd_edge.serve import ServeOptions, read_token

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "a@b"]
)
def test_a_rebound_name_is_refused(client, host):
    answer = client.get("/v1/info", headers={"host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["type"] == "MisdirectedRequestError"
    assert "bundle" not in answer.text.replace("umd-edge", "")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8765", "localhost:1", "[::1]:8765", "LOCALHOST"]
)
def test_names_of_this_machine_are_let_in(client, host):
    assert client.get("/v1/info", headers={"host": host}).status_code == 200


def test_a_name_can_be_allowed(make_client):
    client = make_client(allowed_hosts=("imaging.local",))
    assert client.get("/healthz", headers={"host": "imaging.local:8765"}).status_code == 200
    assert client.get("/healthz", headers={"host": "other.local"}).status_code == 421


def test_two_host_headers_are_refused(make_client, png):
    import asyncio

    client = make_client()
    sent = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/healthz",
        "query_string": b"",
        "scheme": "http",
        "headers": [(b"host", b"127.0.0.1"), (b"host", b"evil.example")],
    }

    async def send(message):
        sent.append(message)

    asyncio.run(client.app(scope, None, send))
    assert sent[0]["status"] == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8765", ""])
def test_a_page_of_another_origin_is_refused(client, png, origin):
    answer = client.post("/v1/preview", content=png, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_services_own_page_may_call(client, png):
    headers = {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
    assert client.post("/v1/preview", content=png, headers=headers).status_code == 200


def test_a_picture_in_a_foreign_page_is_refused(client):
    # Such a request carries no Origin
    foreign = {"sec-fetch-site": "cross-site"}
    assert client.get("/v1/info", headers=foreign).status_code == 403
    assert client.get("/", headers=foreign).status_code == 200  # a link to the page is no harm


@pytest.mark.parametrize(
    "value",
    [None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer ü"],
)
def test_without_the_token_nothing_is_shown(make_client, png, value):
    client = make_client(token=TOKEN)
    headers = {} if value is None else {"authorization": value.encode("utf-8")}
    for path in ("/v1/info", "/v1/tasks", "/metrics", "/openapi.json", "/nowhere"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/v1/preview", content=png, headers=headers).status_code == 401


def test_with_the_token_all_is_shown(make_client, png):
    client = make_client(token=TOKEN)
    headers = {"authorization": f"bearer {TOKEN}"}
    assert client.get("/v1/info", headers=headers).status_code == 200
    assert client.post("/v1/preview", content=png, headers=headers).status_code == 200


def test_page_and_health_need_no_token(make_client):
    client = make_client(token=TOKEN)
    for path in ("/", "/page.js", "/page.css", "/results.js", "/service.js", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "imaging.local"])
def test_an_open_address_needs_a_token(host):
    with pytest.raises(UsageError, match="--token-file"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host):
    assert ServeOptions(host=host).is_loopback


def test_everywhere_is_called_by_address_or_allowed_name(make_client):
    client = make_client(host="0.0.0.0", token=TOKEN, allowed_hosts=("imaging.local",))
    for host in ("192.168.1.4:8765", "imaging.local", "[fe80::1]:8765", "localhost"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200
    for host in ("evil.example", "0.0.0.0.evil.example"):
        assert client.get("/healthz", headers={"host": host}).status_code == 421


def test_a_token_is_read_from_a_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN


@pytest.mark.parametrize("text", ["", "short", "two words " * 3, TOKEN + "\n" + TOKEN, "ü" * 20])
def test_a_bad_token_file_is_refused(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(UsageError, match="openssl rand"):
        read_token(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_the_token_is_in_no_repr():
    assert TOKEN not in repr(ServeOptions(token=TOKEN))


@pytest.mark.parametrize(
    "given",
    [{"workers": 0}, {"queue": 0}, {"port": 65_536}, {"timeout_s": 0}, {"max_request_bytes": 1}],
)
def test_limits_out_of_range_are_refused(given):
    with pytest.raises(UsageError, match="is allowed"):
        ServeOptions(**given)


@pytest.mark.parametrize("name", ["", "a b", "https://edge.example", "me@edge.example"])
def test_a_name_that_no_client_can_call_is_refused(name):
    with pytest.raises(UsageError, match="a name alone is needed"):
        ServeOptions(allowed_hosts=(name,))
