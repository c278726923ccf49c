from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import umd_edge
from support.public_names import unnamed_imports
from umd_edge import errors

SIGNATURES = {
    "load": "(path, options=None, *, provider=None, variant=None, threads=None, public_key=None, "
    "require_signature=False, self_test=False, audit=None)",
    "default": "(options=None, **checks)",
    "encode": "(self, image, *, frame=None)",
    "encode_study": "(self, images, *, frame=None, on_error=None)",
    "ask": "(self, image, question, *, task=None, frame=None, coverage=None)",
    "classify": "(self, image, task, *, text=None, structured=None, frame=None, "
    "sensitivity=None, specificity=None, coverage=None)",
    "rank": "(self, images, texts, *, method='two_stage', candidates=16, direction='both', "
    "task=None",
    "verify": "(self)",
}


def _bare(function) -> str:
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_predictor_signature_is_as_documented(name: str):
    found, _, _ = _bare(getattr(umd_edge.Predictor, name)).partition(", on_progress=")
    assert found == SIGNATURES[name]


def test_encoded_image_offers_the_one_shot_calls():
    assert _bare(umd_edge.EncodedImage.ask) == "(self, question, *, task=None, coverage=None)"
    assert _bare(umd_edge.EncodedImage.classify) == (
        "(self, task, *, text=None, structured=None, sensitivity=None, specificity=None, "
        "coverage=None)"
    )


def test_all_names_exist_and_are_sorted():
    assert umd_edge.__all__ == sorted(umd_edge.__all__)
    assert all(hasattr(umd_edge, name) for name in umd_edge.__all__)


def test_modules_take_from_each_other_only_what_is_in_all(tmp_path: Path):
    assert not list(unnamed_imports(Path(umd_edge.__file__).parent))
    (tmp_path / "_one.py").write_text('__all__ = ["given"]\ngiven = kept = 1\n', "utf-8")
    (tmp_path / "_other.py").write_text("from ._one import given, kept\n", "utf-8")
    assert list(unnamed_imports(tmp_path)) == ["_other.py: _one.kept"]


def test_every_error_is_public():
    assert set(errors.__all__) <= set(umd_edge.__all__)


def test_version_is_a_semantic_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", umd_edge.__version__)


@pytest.mark.parametrize("name", sorted(errors.__all__))
def test_every_error_derives_from_the_root_and_has_a_documented_exit_code(name: str):
    error = getattr(errors, name)
    assert issubclass(error, umd_edge.UmdEdgeError)
    assert error.exit_code in range(1, 6)
    assert name in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.BundleNotFoundError, FileNotFoundError),
        (errors.ManifestError, ValueError),
        (errors.InputError, ValueError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_errors_can_be_caught_as_builtins(error: type, builtin: type):
    assert issubclass(error, builtin)
