from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umd_edge._answers import normalise_answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Right lung.", "right lung"),
        ("Two", "2"),
        ("ten", "10"),
        ("a mass", "mass"),
        ("Yes!", "yes"),
        ("x-ray", "X-Ray"),
        ("1,000", "1000"),
        ("patient's left", "patients left"),
        ("patient\u2019s left", "patient's left"),
        ("upper  left\tlobe", "upper left lobe"),
        ("\uff34\uff32", "TR"),
        ("(brain)", "brain"),
        ("lung; heart", "lung heart"),
    ],
)
def test_spellings_that_count_as_the_same(one: str, other: str):
    assert normalise_answer(one) == normalise_answer(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left", "right"),
        ("2.5 cm", "25 cm"),
        ("t1", "t2"),
        ("5%", "5"),
        ("yes", "no"),
        ("one", "11"),
        ("10", "1 0"),
        ("t1+c", "t1 c"),
    ],
)
def test_answers_that_stay_different(one: str, other: str):
    assert normalise_answer(one) != normalise_answer(other)


@pytest.mark.parametrize("answer", ["the", "a", "An", "the a"])
def test_an_answer_of_articles_alone_is_kept(answer: str):
    assert normalise_answer(answer) == answer.lower()


@pytest.mark.parametrize("answer", ["", " ", "...", "?!", "_"])
def test_nothing_stays_nothing(answer: str):
    assert normalise_answer(answer) == ""


WORDS = st.lists(
    st.sampled_from(["The", "a", "left", "Two", "lung,", "x-ray", "1,000", "2.5", "(mass)", "%"])
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20) | WORDS)
def test_normalising_twice_changes_nothing_more(answer: str):
    once = normalise_answer(answer)
    assert normalise_answer(once) == once
    assert once == " ".join(once.split())


@settings(max_examples=100, deadline=None)
@given(WORDS)
def test_case_and_space_never_matter(answer: str):
    assert normalise_answer(f"  {answer.upper()} ") == normalise_answer(answer)
