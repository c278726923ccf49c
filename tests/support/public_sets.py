"""Small copies of the layouts in which public data sets are published, with generated pictures."""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PAD_COLUMNS = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,"
    "skin_cancer_history,cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,"
    "diameter_1,diameter_2,diagnostic,itch,grew,hurt,changed,bleed,elevation,img_id,biopsed"
).split(",")


def picture(path: Path, seed: int | None = None) -> Path:
    """Write a small picture, unlike every other one; the name decides unless a seed is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()) if seed is None else seed)
    pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def json_file(path: Path, value: Any) -> Path:
    return text(path, json.dumps(value, indent=1))


def json_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> Path:
    return text(path, "".join(json.dumps(value) + "\n" for value in values))


def csv_file(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text(path, out.getvalue())


def rad_question(
    number: int, image: str, phrase: str = "freeform", **changes: Any
) -> dict[str, Any]:
    return {
        "qid": str(number),
        "phrase_type": phrase,
        "qid_linked_id": "x",
        "image_case_url": f"https://medpix.nlm.nih.gov/case?id={image}",
        "image_name": f"{image}.jpg",
        "image_organ": "HEAD",
        "question": f"Is finding  {number} there? ",
        "question_type": "PRES",
        "answer": "Yes" if number % 2 else 3,
        "answer_type": "CLOSED " if number % 2 else "OPEN",
        **changes,
    }


def vqa_rad(folder: Path, pictures: int = 12) -> Path:
    questions = []
    for n in range(pictures):
        picture(folder / "VQA_RAD Image Folder" / f"synpic{n}.jpg")
        questions += [
            rad_question(2 * n, f"synpic{n}"),
            rad_question(2 * n + 1, f"synpic{n}", "test_para" if n % 3 == 0 else "para"),
        ]
    json_file(folder / "VQA_RAD Dataset Public.json", questions)
    return folder


def slake_question(number: int, image: int, language: str = "en", **changes: Any) -> dict[str, Any]:
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": "What modality is used?" if language == "en" else "\u4ec0\u4e48\u6a21\u6001?",
        "answer": "MRI",
        "q_lang": language,
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": number,
        **changes,
    }


def slake(folder: Path) -> Path:
    number = 0
    for name, images in {
        "train": range(8),
        "validate": range(8, 10),
        "test": range(10, 13),
    }.items():
        questions = []
        for image in images:
            picture(folder / "imgs" / f"xmlab{image}" / "source.jpg")
            questions += [slake_question(number, image), slake_question(number + 1, image, "zh")]
            number += 2
        json_file(folder / f"{name}.json", questions)
    return folder


def vqa_med(folder: Path) -> Path:
    parts = {
        "train": ("ImageClef-2019-VQA-Med-Training", "Train_images", range(8)),
        "val": ("ImageClef-2019-VQA-Med-Validation", "Val_images", range(8, 11)),
    }
    for split, (name, images, numbers) in parts.items():
        lines: dict[str, list[str]] = {}
        for n in numbers:
            picture(folder / name / images / f"synpic{n}.jpg")
            lines.setdefault("C1_Modality", []).append(f"synpic{n}|is this a ct scan?|yes")
            lines.setdefault("C2_Plane", []).append(f"synpic{n}|what plane is this?|axial")
            lines.setdefault("C3_Organ", []).append(f"synpic{n}|what organ is shown?|skull")
            lines.setdefault("C4_Abnormality", []).append(f"synpic{n}|what is wrong?|cyst, {n}")
        for category, some in lines.items():
            path = folder / name / "QAPairsByCategory" / f"{category}_{split}.txt"
            text(path, "\n".join(some) + "\n")
        everything = "\n".join(line for some in lines.values() for line in some)
        text(folder / name / f"All_QA_Pairs_{split}.txt", everything + "\n")
    tests = [
        "synpic20|modality|is this a ct scan?|no",
        "synpic21|abnormality|what is wrong?|(large) cyst#multi-cystic mass",
    ]
    for n in (20, 21):
        picture(folder / "VQAMed2019Test" / "VQAMed2019_Test_Images" / f"synpic{n}.jpg")
    name = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
    text(folder / "VQAMed2019Test" / name, "\n".join(tests))
    return folder


def roco(folder: Path) -> Path:
    number = 0
    for split, count in {"train": 10, "validation": 5, "test": 5}.items():
        part = folder / "data" / split / "radiology"
        captions, licences = [], ["ROCO_ID,PMC_ID,CC"]
        for _ in range(count):
            number += 1
            file = f"PMC{1000 + number // 2}_fig-{number}.jpg"
            # Two namings are in use: the article's file, and the record's id.
            picture(part / "images" / (file if number % 2 else f"ROCO_{number:05d}.jpg"))
            captions.append(f"ROCO_{number:05d}\t Axial  CT scan number {number}.")
            code = ("CC BY", "CC BY-NC-SA", "NO-CC CODE")[number % 3]
            licences.append(f"ROCO_{number:05d},{file},{code}")
        text(part / "captions.txt", "\n".join(captions) + "\n")
        text(part / "licences.txt", "\n".join(licences) + "\n")
    return folder


def medicat_figure(article: int, figure: int, **changes: Any) -> dict[str, Any]:
    return {
        "pdf_hash": f"{article:040x}",
        "fig_key": f"Figure{figure}",
        "fig_uri": f"{figure}-Figure{figure}-1.png",
        "s2_caption": f"Figure {figure}. Barium\n enema of patient {article}.",
        "s2orc_caption": "unused",
        "s2orc_references": [f"An enema showed a stenosis (Figure {figure}).", "Too short"],
        "radiology": True,
        "scope": True,
        "predicted_type": "Medical images",
        "oa_info": {
            "doi_url": f"https://doi.org/10.1/{article}",
            "oa": {"license": "cc-by-nc-nd"},
        },
        **changes,
    }


MEDICAT_FILE = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"


def medicat(folder: Path, articles: int = 10) -> Path:
    figures = [medicat_figure(a, f) for a in range(articles) for f in (1, 2)]
    figures += [medicat_figure(99, 1, radiology=False, s2orc_references=None)]
    for figure in figures[:-1]:
        name = f"{figure['pdf_hash']}_{figure['fig_uri']}"
        picture(folder / "release" / "figures" / name)
    json_lines(folder / "release" / MEDICAT_FILE, figures)
    return folder


MELINDA_COLUMNS = ("figure_file", "caption", "i_meth", "p_meth", "i_meth_label", "p_meth_label")


def melinda(folder: Path) -> Path:
    number = 0
    for name, count in {"train": 8, "dev": 3, "test": 3}.items():
        rows = []
        for _ in range(count):
            number += 1
            file = f"{12345000 + number}_Figure_1.jpg"
            picture(folder / "melinda_images" / file)
            caption = f'Blot, "lane" {number},\nwith a second line'
            rows.append(
                dict(
                    zip(MELINDA_COLUMNS, (file, caption, "pull down", "WB", "A", "B"), strict=True)
                )
            )
        csv_file(folder / f"{name}.csv", MELINDA_COLUMNS, rows)
    return folder


def pad_row(patient: int, lesion: int, **changes: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(PAD_COLUMNS, ""),
        "patient_id": f"PAT_{patient}",
        "lesion_id": str(lesion),
        "img_id": f"PAT_{patient}_{lesion}_7.png",
        "age": "55",
        "region": "NECK",
        "diagnostic": "NEV",
        "itch": "False",
        "grew": "UNK",
        "biopsed": "False",
        **changes,
    }


def pad_ufes(folder: Path, patients: int = 12) -> Path:
    rows = [pad_row(p, 10 * p + k) for p in range(patients) for k in range(1 + p % 2)]
    for n, row in enumerate(rows):
        picture(folder / "images" / f"imgs_part_{n % 3 + 1}" / row["img_id"])
    csv_file(folder / "metadata.csv", PAD_COLUMNS, rows)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "vqa-rad": vqa_rad,
    "slake": slake,
    "vqa-med-2019": vqa_med,
    "roco": roco,
    "medicat": medicat,
    "melinda": melinda,
    "pad-ufes-20": pad_ufes,
}
