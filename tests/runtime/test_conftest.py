from __future__ import annotations

import random
import socket

import numpy as np
import pytest

from support.requirements import lacking


def test_a_network_connection_is_refused():
    with socket.socket() as client, pytest.raises(AssertionError, match="network"):
        client.connect(("127.0.0.1", 9))


def test_every_test_starts_from_the_same_seed():
    assert (random.random(), np.random.random()) == (0.8444218515250481, 0.5488135039273248)


def test_lacking_skips_unless_required(monkeypatch):
    monkeypatch.setenv("UMD_REQUIRE", "cc")
    with pytest.raises(pytest.skip.Exception, match="no data"):
        lacking("shared", "no data")
    monkeypatch.setenv("UMD_REQUIRE", "shared,cc")
    with pytest.raises(pytest.fail.Exception, match="no data"):
        lacking("shared", "no data")
