"""The C++ wrapper: what the desktop example does not use."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import umd_edge
from support.c_library import BINDINGS, INCLUDE, library_path, onnxruntime_library
from support.requirements import lacking
from support.retrieval import TEXTS, searchable

SOURCE = """
#include <cstdio>
#include <vector>
#include "umd_edge.hpp"
int main(int, char **arguments)
{
    umd_edge::Options options;
    options.onnxruntime = arguments[2];
    umd_edge::Predictor predictor(arguments[1], options);
    std::vector<unsigned char> frame(40 * 30);
    std::vector<umd_edge::Image> images;
    for (unsigned seed = 0; seed < 3; seed++) {
        for (unsigned i = 0; i < frame.size(); i++)
            frame[i] = static_cast<unsigned char>(i * (seed + 3) % 256);
        images.push_back(predictor.encode({frame.data(), frame.size(), 40, 30}));
    }
    const std::vector<std::string> texts(arguments + 4, arguments + 4 + std::stoi(arguments[3]));
    for (const umd_match &match : images[1].rank(texts, UMD_RANK_FUSION))
        std::printf("%u %.9g\\n", match.index, static_cast<double>(match.match_logit));
    for (const umd_match &match : predictor.rank(texts[0], images, UMD_RANK_EMBEDDING))
        std::printf("%u %.9g\\n", match.index, static_cast<double>(match.score));
    for (float value : predictor.embed(texts[0]))
        std::printf("%.9g ", static_cast<double>(value));
    try {
        predictor.embed("");
    } catch (const umd_edge::Error &error) {
        std::printf("\\n%s %d\\n", error.name(), static_cast<int>(error.status()));
    }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shutil.which("c++")
    if found is None:
        lacking("cc", "no C++ compiler `c++` on the path")
    folder, library = tmp_path_factory.mktemp("cpp"), library_path().parent
    (folder / "main.cpp").write_text(SOURCE)
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
    folders = [f"-I{INCLUDE}", f"-I{BINDINGS / 'cpp' / 'include'}", f"-L{library}"]
    link = ["-lumd_edge", f"-Wl,-rpath,{library}"]
    command = [found, "-std=c++17", *strict, *folders, str(folder / "main.cpp")]
    subprocess.run([*command, "-o", str(folder / "program"), *link], check=True)
    return folder / "program"


def test_ranking_and_embedding_are_those_of_python(program: Path, tmp_path: Path) -> None:
    bundle = searchable(tmp_path / "search.umd")
    arguments = [str(bundle), str(onnxruntime_library()), str(len(TEXTS)), *TEXTS]
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    python = umd_edge.Predictor.load(bundle)
    steps = np.arange(40 * 30)
    arrays = [(steps * (seed + 3) % 256).astype(np.uint8).reshape(30, 40) for seed in range(3)]
    count = len(TEXTS)
    texts = python.rank(arrays[1:2], TEXTS, method="fusion").texts_for(0)
    images = python.rank(arrays, TEXTS[:1], method="embedding").images_for(0)
    given = [(int(line.split()[0]), float(line.split()[1])) for line in lines[: count + 3]]
    assert [index for index, _ in given] == [match.index for match in (*texts, *images)]
    wanted = [match.match_logit for match in texts] + [match.score for match in images]
    assert np.allclose([value for _, value in given], wanted, atol=1e-6)
    embedding = np.array(lines[count + 3].split(), np.float32)
    assert np.array_equal(embedding, python._engine.text_features(TEXTS[0])[1][0])
    assert lines[count + 4] == "TextInputError 43"


def test_a_bundle_that_does_not_open_is_thrown(program: Path, tmp_path: Path) -> None:
    command = [str(program), str(tmp_path / "none.umd"), str(onnxruntime_library()), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no bundle at" in done.stderr
