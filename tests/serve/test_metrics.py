from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def values(client) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = [value for _, value in sorted(sample.labels.items())]
            found[(sample.name, *labels)] = sample.value
    return found


def test_requests_results_and_times_are_counted(client, png):
    before = values(client)
    for _ in range(3):
        assert client.post("/v1/ask?question=what+organ", content=png).status_code == 200
    client.post("/v1/ask", content=png)
    after = values(client)
    assert after["umd_edge_requests_total", "/v1/ask", "200"] == 3
    assert after["umd_edge_requests_total", "/v1/ask", "400"] == 1
    assert after["umd_edge_results_total", "ok", "ask"] == 3
    assert after["umd_edge_request_seconds_count", "/v1/ask"] == 4
    assert after["umd_edge_work_seconds_count", "/v1/ask"] == 3
    assert after["umd_edge_stage_seconds_total", "vision"] > 0
    assert after["umd_edge_requests_total", "/metrics", "200"] == 1
    assert ("umd_edge_requests_total", "/v1/ask", "200") not in before


def test_gauges_show_queue_images_and_memory(client, png):
    client.post("/v1/images", content=png)
    found = values(client)
    assert found["umd_edge_images_stored",] == 1
    assert found["umd_edge_images_stored_bytes",] == len(png)
    assert found["umd_edge_queue_depth",] == 0
    assert found["umd_edge_requests_admitted",] == 0
    assert found["process_resident_memory_bytes",] > 1e6


def test_labels_are_few_whatever_is_asked_for(client):
    for number in range(50):
        client.get(f"/patient/{number}")
        client.delete(f"/v1/images/{number}")
        client.request(f"METHOD{number}", "/v1/ask")
    routes = {key[1] for key in values(client) if key[0] == "umd_edge_requests_total"}
    assert routes <= {"other", "/v1/images/{id}", "/v1/ask", "/metrics"}


def test_the_bundle_is_named(client, predictor):
    assert f'sha256="{predictor.info.sha256}"' in client.get("/metrics").text


def test_two_services_in_one_process_count_for_themselves(make_client, png):
    first, second = make_client(), make_client()
    first.post("/v1/ask?question=what+organ", content=png)
    assert ("umd_edge_results_total", "ok", "ask") in values(first)
    assert ("umd_edge_results_total", "ok", "ask") not in values(second)
