from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.pictures import gradient
from support.retrieval import TEXTS, pictures, searchable
from umd_edge import Gallery, GalleryError, ImageInputError, Predictor, UsageError
from umd_edge._session import GraphSession


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor.load(searchable(tmp_path_factory.mktemp("bundle") / "tiny.umd"))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return pictures(tmp_path / "pictures")


@pytest.fixture
def runs(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Name of the graph of each run, as they happen."""
    seen: list[str] = []
    original = GraphSession.run

    def counted(self, *arguments):
        seen.append(self.name.split("/")[-1].split(".")[0])
        return original(self, *arguments)

    monkeypatch.setattr(GraphSession, "run", counted)
    return seen


def _plain(gallery: Gallery) -> tuple:
    """Everything that a file must bring back."""
    arrays = (gallery.digests, gallery.embeddings, gallery.lengths, gallery.tokens, gallery.outside)
    listed = [None if array is None else array.tolist() for array in arrays]
    return gallery.kind, gallery.maker, gallery.names, *listed


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


# --- features -----------------------------------------------------


def test_a_gallery_holds_what_the_graphs_give(predictor: Predictor, images: list[Path]):
    gallery = predictor.gallery(images=images)
    assert len(gallery) == len(images)
    assert gallery.names == tuple(str(path) for path in images)
    for row, path in enumerate(images):
        tokens, embedding = predictor.encode(path).features()
        assert gallery.tokens_of(row).tolist() == tokens[0].tolist()
        assert gallery.embeddings[row].tolist() == embedding[0].tolist()
    texts = predictor.gallery(texts=TEXTS)
    assert len(set(texts.lengths.tolist())) > 1
    for row, text in enumerate(TEXTS):
        tokens, _ = predictor._engine.text_features(text)
        assert texts.tokens_of(row).tolist() == tokens[0].tolist()


def test_ranking_galleries_equals_ranking_what_they_hold(predictor: Predictor, images: list[Path]):
    galleries = predictor.gallery(images=images), predictor.gallery(texts=TEXTS)
    once, again = predictor.rank(*galleries), predictor.rank(images, TEXTS)
    assert once.scores.tolist() == again.scores.tolist()
    assert once.to_dict()["texts_for_images"] == again.to_dict()["texts_for_images"]
    assert once.timing.vision_ms == 0.0


def test_each_item_is_encoded_once(predictor: Predictor, images: list[Path], runs: list[str]):
    images[1].write_bytes(images[0].read_bytes())
    predictor.rank([*images, images[2]], [*TEXTS, TEXTS[0]], method="embedding")
    assert runs.count("vision") == len(images) - 1
    assert runs.count("text") == len(TEXTS)
    assert "fusion" not in runs


def test_files_bytes_arrays_and_pil_images_may_be_mixed(predictor: Predictor, tmp_path: Path):
    pixels = gradient()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    given = [path, path.read_bytes(), pixels, Image.fromarray(pixels), pixels[:, ::-1]]
    gallery = predictor.gallery(images=given)
    digests = [digest.tobytes() for digest in gallery.digests]
    assert digests[0] == digests[1]
    assert digests[2] == digests[3]
    assert len(set(digests)) == 3
    assert gallery.embeddings[0].tolist() == gallery.embeddings[2].tolist()
    assert gallery.names == (str(path), "", "", "", "")


def test_an_unusable_image_is_told_or_raised(predictor: Predictor, images: list[Path]):
    images[1].write_bytes(b"no picture")
    with pytest.raises(ImageInputError, match=r"1\.png"):
        predictor.gallery(images=images)
    told: dict[int, str] = {}
    gallery = predictor.gallery(
        images=images, on_error=lambda index, error: told.setdefault(index, str(error))
    )
    assert list(told) == [1]
    assert gallery.names == tuple(str(path) for path in images if path != images[1])


def test_either_images_or_texts_are_needed(predictor: Predictor, images: list[Path]):
    for wrong in ({}, {"images": images, "texts": TEXTS}):
        with pytest.raises(UsageError, match="either images or texts"):
            predictor.gallery(**wrong)
    with pytest.raises(UsageError, match="no text given"):
        predictor.gallery(texts=[])


def test_a_gallery_of_texts_is_no_gallery_of_images(predictor: Predictor):
    texts = predictor.gallery(texts=TEXTS)
    with pytest.raises(GalleryError, match="gallery of texts given"):
        predictor.rank(texts, texts)


# --- files --------------------------------------------------------


def test_a_saved_gallery_comes_back_as_it_was(
    predictor: Predictor, images: list[Path], tmp_path: Path
):
    for name, gallery in (
        ("images", predictor.gallery(images=images)),
        ("texts", predictor.gallery(texts=TEXTS)),
    ):
        path = tmp_path / f"{name}.npz"
        gallery.save(path)
        assert _plain(Gallery.load(path)) == _plain(gallery)
        first = path.read_bytes()
        gallery.save(path)
        assert path.read_bytes() == first
        assert [found.name for found in tmp_path.glob(".*")] == []


def test_the_file_holds_no_text_and_no_pixels(predictor: Predictor, tmp_path: Path):
    path = tmp_path / "texts.npz"
    predictor.gallery(texts=["secret pleural effusion"]).save(path)
    assert b"secret" not in path.read_bytes()


def test_tokens_may_stay_unread(predictor: Predictor, images: list[Path], tmp_path: Path):
    path = tmp_path / "images.npz"
    predictor.gallery(images=images).save(path)
    light = Gallery.load(path, tokens=False)
    whole = predictor.rank(images, TEXTS, method="embedding")
    assert predictor.rank(light, TEXTS, method="embedding").scores.tolist() == whole.scores.tolist()
    with pytest.raises(UsageError, match="without its tokens"):
        predictor.rank(light, TEXTS)
    with pytest.raises(UsageError, match="without its tokens"):
        light.save(path)


def test_a_file_that_cannot_be_written_leaves_nothing(predictor: Predictor, tmp_path: Path):
    gallery = predictor.gallery(texts=TEXTS)
    with pytest.raises(UsageError, match="cannot be written"):
        gallery.save(tmp_path / "missing" / "texts.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        gallery.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# --- cache --------------------------------------------------------


def test_a_cache_computes_only_what_is_new(
    predictor: Predictor, images: list[Path], tmp_path: Path, runs: list[str]
):
    cache = tmp_path / "cache"
    predictor.gallery(images=images[:4], cache=cache)
    assert runs.count("vision") == 4
    runs.clear()
    changed = [images[5], images[0], images[2]]
    gallery = predictor.gallery(images=changed, cache=cache)
    assert runs == ["vision"]
    assert _plain(gallery) == _plain(predictor.gallery(images=changed))
    assert _plain(Gallery.load(cache / "images.npz")) == _plain(gallery)


def test_an_unchanged_cache_is_not_written_again(
    predictor: Predictor, images: list[Path], tmp_path: Path, runs: list[str]
):
    predictor.gallery(images=images, cache=tmp_path)
    os.utime(tmp_path / "images.npz", (1, 1))
    runs.clear()
    predictor.gallery(images=images, cache=tmp_path)
    assert runs == []
    assert (tmp_path / "images.npz").stat().st_mtime == 1


def test_another_image_under_an_old_name_is_encoded(
    predictor: Predictor, images: list[Path], tmp_path: Path
):
    before = predictor.gallery(images=images, cache=tmp_path)
    images[0].write_bytes(images[3].read_bytes())
    after = predictor.gallery(images=images, cache=tmp_path)
    assert after.embeddings[0].tolist() == before.embeddings[3].tolist()
    assert after.embeddings[0].tolist() != before.embeddings[0].tolist()


def test_a_renamed_image_keeps_its_features_and_gets_its_name(
    predictor: Predictor, images: list[Path], tmp_path: Path, runs: list[str]
):
    predictor.gallery(images=images, cache=tmp_path)
    moved = images[0].rename(images[0].with_name("moved.png"))
    runs.clear()
    predictor.gallery(images=[moved, *images[1:]], cache=tmp_path)
    assert runs == []
    assert Gallery.load(tmp_path / "images.npz").names[0] == str(moved)


def test_a_cache_of_another_variant_is_refused_or_made_again(
    predictor: Predictor, images: list[Path], tmp_path: Path
):
    predictor.gallery(images=images, cache=tmp_path)
    other = Predictor.load(predictor.bundle.path, variant="fp32")
    with pytest.raises(GalleryError, match="variant 'int8' instead of 'fp32'"):
        other.gallery(images=images, cache=tmp_path)
    again = other.gallery(images=images, cache=tmp_path, on_stale="rebuild")
    assert _plain(again) == _plain(other.gallery(images=images))
    with pytest.raises(GalleryError, match="variant 'fp32' instead of 'int8'"):
        predictor.rank(again, TEXTS)
    with pytest.raises(UsageError, match="'ignore' given"):
        other.gallery(images=images, cache=tmp_path, on_stale="ignore")


def test_a_cache_of_another_bundle_is_refused(
    predictor: Predictor, images: list[Path], tmp_path: Path
):
    predictor.gallery(images=images, cache=tmp_path)
    other = Predictor.load(searchable(tmp_path / "other.umd", prompt="what is"))
    with pytest.raises(GalleryError, match="bundle_sha256"):
        other.gallery(images=images, cache=tmp_path)


def test_texts_have_a_cache_of_their_own(predictor: Predictor, tmp_path: Path, runs: list[str]):
    predictor.gallery(texts=TEXTS, cache=tmp_path)
    runs.clear()
    predictor.gallery(texts=[*TEXTS, "which organ"], cache=tmp_path)
    assert runs == ["text"]
    os.replace(tmp_path / "texts.npz", tmp_path / "images.npz")
    with pytest.raises(GalleryError, match="gallery of texts given"):
        predictor.gallery(images=[gradient()], cache=tmp_path)


# --- damage -------------------------------------------------------


@pytest.fixture
def saved(predictor: Predictor, images: list[Path], tmp_path: Path) -> Path:
    predictor.gallery(images=images, cache=tmp_path)
    return tmp_path / "images.npz"


def _refused(path: Path, predictor: Predictor, images: list[Path]) -> None:
    """Refused when read and when used as a cache; rebuilt where the caller says so."""
    with pytest.raises(GalleryError):
        Gallery.load(path)
    with pytest.raises(GalleryError):
        predictor.gallery(images=images, cache=path.parent)
    rebuilt = predictor.gallery(images=images, cache=path.parent, on_stale="rebuild")
    assert _plain(rebuilt) == _plain(predictor.gallery(images=images))
    assert _plain(Gallery.load(path)) == _plain(rebuilt)


@pytest.mark.parametrize("name", ["about", "digests", "embeddings", "tokens"])
def test_a_changed_byte_is_noticed(
    predictor: Predictor, images: list[Path], saved: Path, name: str
):
    data = bytearray(saved.read_bytes())
    values = _arrays(saved)[name].tobytes()
    data[data.index(values) + len(values) // 2] ^= 0x04
    saved.write_bytes(data)
    _refused(saved, predictor, images)


@pytest.mark.parametrize("length", [0, 1, 100, -1, -100])
def test_a_truncated_file_is_noticed(
    predictor: Predictor, images: list[Path], saved: Path, length: int
):
    saved.write_bytes(saved.read_bytes()[:length])
    _refused(saved, predictor, images)


def _about(arrays: dict[str, np.ndarray], **changes: object) -> np.ndarray:
    document = {**json.loads(arrays["about"].tobytes()), **changes}
    return np.frombuffer(json.dumps(document).encode(), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {"embeddings": a["embeddings"][:-1]},
        lambda a: {"embeddings": a["embeddings"].astype(np.float64)},
        lambda a: {"embeddings": np.asfortranarray(a["embeddings"])},
        lambda a: {"embeddings": a["embeddings"] * np.nan},
        lambda a: {"tokens": a["tokens"][:-1]},
        lambda a: {"tokens": a["tokens"].reshape(-1)},
        lambda a: {"lengths": a["lengths"] * 0},
        lambda a: {"lengths": -a["lengths"]},
        lambda a: {"lengths": a["lengths"] + np.array([1, -1, 0, 0, 0, 0])},
        lambda a: {"digests": a["digests"][:, :31]},
        lambda a: {"outside": a["outside"][:-1]},
        lambda a: {"about": _about(a, names=["a.png"])},
        lambda a: {"about": _about(a, names=[1] * 6)},
        lambda a: {"about": _about(a, kind="sound")},
        lambda a: {"about": _about(a, variant=None)},
        lambda a: {"about": _about(a, format=2)},
        lambda a: {"about": np.frombuffer(b"[]", np.uint8)},
        lambda a: {"about": np.frombuffer(b"\xff", np.uint8)},
        lambda a: {"more": a["lengths"]},
    ],
)
def test_parts_that_do_not_fit_are_refused(
    predictor: Predictor, images: list[Path], saved: Path, change
):
    arrays = _arrays(saved)
    np.savez(saved, **{**arrays, **change(arrays)})
    _refused(saved, predictor, images)


def test_a_pickle_is_never_opened(predictor: Predictor, images: list[Path], saved: Path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(saved.parent / "exploded"),))

    arrays: dict[str, np.ndarray] = {**_arrays(saved), "tokens": np.array([[Bomb()]], object)}
    np.savez(saved, **arrays)
    _refused(saved, predictor, images)
    saved.write_bytes(pickle.dumps(Bomb()))
    _refused(saved, predictor, images)
    assert not (saved.parent / "exploded").exists()


def test_a_header_that_claims_more_than_the_file_is_refused_before_memory_is_taken(
    predictor: Predictor, images: list[Path], saved: Path
):
    arrays = _arrays(saved)
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 8)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(saved, "w") as archive:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.lib.format.write_array(plain, array, (1, 0))
            data = header.getvalue() + bytes(64) if name == "tokens" else plain.getvalue()
            archive.writestr(f"{name}.npy", data)
    _refused(saved, predictor, images)


def test_a_compressed_file_is_refused(predictor: Predictor, images: list[Path], saved: Path):
    arrays = _arrays(saved)
    np.savez_compressed(saved, **arrays)
    _refused(saved, predictor, images)


def test_a_file_beyond_the_limit_is_refused(
    predictor: Predictor, images: list[Path], saved: Path, monkeypatch: pytest.MonkeyPatch
):
    import umd_edge._gallery as gallery
    import umd_edge._retrieval as retrieval

    monkeypatch.setattr(gallery, "MAX_GALLERY_BYTES", 1000)
    with pytest.raises(GalleryError, match="at most 1000 are allowed"):
        Gallery.load(saved)
    monkeypatch.setattr(retrieval, "MAX_GALLERY_BYTES", 1000)
    with pytest.raises(UsageError, match="rank in parts"):
        predictor.gallery(images=[*images, gradient()])


def test_what_is_no_file_is_no_gallery(tmp_path: Path):
    with pytest.raises(GalleryError, match="no gallery at"):
        Gallery.load(tmp_path / "none.npz")
    with pytest.raises(GalleryError, match="no plain file"):
        Gallery.load(tmp_path)


def test_names_that_are_no_text_can_be_kept(predictor: Predictor, tmp_path: Path):
    path = tmp_path / os.fsdecode(b"odd-\xff.png")
    try:
        Image.fromarray(gradient()).save(path)
    except OSError:
        pytest.skip("this file system has no such names")
    gallery = predictor.gallery(images=[path], cache=tmp_path / "cache")
    assert _plain(Gallery.load(tmp_path / "cache" / "images.npz")) == _plain(gallery)


def test_a_repr_names_no_image(predictor: Predictor, images: list[Path]):
    gallery = predictor.gallery(images=images)
    assert str(images[0]) not in repr(gallery)
    assert replace(gallery, names=()).names == ()
