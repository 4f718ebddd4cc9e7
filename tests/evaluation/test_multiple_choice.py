"""The answer is the choice that the model finds likeliest, in whatever form the rows have it."""

import math

import pytest
import torch
from support import tiny_model

from moeba.evaluation import multiple_choice
from moeba.evaluation.multiple_choice import Question, question_from, score_questions
from moeba.evaluation.scoring import score

QUESTION = {"q": "What is it?", "topic": "animals", "options": ["a cat", "a dog"], "right": 1}


def encode(text):
    return [1 + byte % 66 for byte in text.encode()]


def questions():
    texts = ["the cat sat on", "a dog saw", "the dog", "and"]
    choices = [
        ["the mat", "a dog and a log"],
        ["the cat", "the", "mat mat"],
        ["cat", "log"],
        ["a", "on", "of", "é"],
    ]
    return [
        Question(text, listed, i % 2) for i, (text, listed) in enumerate(zip(texts, choices, strict=True))
    ]


def likelihood(model, context, choice, start):
    """Of a choice after its context, by the chain rule, one forward pass for each token."""
    before, whole = encode(context), encode(f"{context} {choice}")
    total = 0.0
    for place in range(len(before), len(whole)):
        with torch.no_grad():
            logits = model(torch.tensor([start + whole[:place]])).logits[0, -1].double()
        total += logits.log_softmax(-1)[whole[place]].item()
    return total


@pytest.mark.parametrize("start", [[], [0]])
def test_accuracy_is_that_of_the_likeliest_choice(start):
    model = tiny_model("moe", pad_token_id=None)
    plain = norm = 0
    for question in questions():
        found = [likelihood(model, question.context, choice, start) for choice in question.choices]
        each = [value / len(choice) for value, choice in zip(found, question.choices, strict=True)]
        plain += found.index(max(found)) == question.answer
        norm += each.index(max(each)) == question.answer
    for batch_size in (1, 3, 50):
        done = []
        figures, errors, count = score_questions(
            model, encode, questions(), window=64, start=start, batch_size=batch_size, progress=done.append
        )
        assert (figures["accuracy"], figures["accuracy_norm"]) == (plain / 4, norm / 4)
        assert errors["accuracy"] == pytest.approx(math.sqrt(plain / 4 * (1 - plain / 4) / 3))
        assert (count, done) == (4, [1, 2, 3, 4])


def test_the_right_answers_can_be_told_from_wrong_ones():
    """A model's own favourites are all right, and with the labels moved, all wrong."""
    model = tiny_model("moe", pad_token_id=None)
    for shift, accuracy in ((0, 1.0), (1, 0.0)):
        chosen = []
        for question in questions():
            found = [likelihood(model, question.context, choice, []) for choice in question.choices]
            answer = (found.index(max(found)) + shift) % len(found)
            chosen.append(Question(question.context, question.choices, answer))
        figures, _, _ = score_questions(model, encode, chosen, window=64, start=[], batch_size=4)
        assert figures["accuracy"] == accuracy


def test_choices_that_change_the_tokens_before_them_are_scored_from_there(monkeypatch):
    """A space and what follows melt with the letter before, as in a byte pair tokenizer, for one choice only."""

    def melting(text):
        return encode(text.replace("e a", "!"))

    seen = []

    def watched(model, windows, batch_size):
        for window in windows:
            seen.append((window.tokens, window.scored))
            yield from score(model, [window], batch_size)

    monkeypatch.setattr(multiple_choice, "score", watched)
    question = Question("one", ["a", "b"], 0)
    score_questions(tiny_model(), melting, [question], window=64, start=[], batch_size=2)
    assert seen == [(encode("on!"), 1), (encode("one b"), 3)]


def test_a_long_question_loses_its_beginning():
    model = tiny_model(pad_token_id=None)
    long = [Question("x" * 50 + "the cat sat on", ["mat", "dog"], 0)]
    short = [Question("xxxthe cat sat on", ["mat", "dog"], 0)]
    # 17 characters, a space and 3 more fill the window: in both, the same tokens are left.
    kept, same = (
        score_questions(model, encode, asked, window=21, start=[], batch_size=2) for asked in (long, short)
    )
    assert kept == same
    with pytest.raises(ValueError, match="choice 0 has 9 tokens, and a window 9"):
        score_questions(
            model, encode, [Question("the", ["long mat", "cat"], 0)], window=9, start=[], batch_size=2
        )


@pytest.mark.parametrize(
    ("options", "right", "index"),
    [
        (["a", "b"], 1, 1),
        (["a", "b"], "1", 1),
        (["a", "b"], "b", 1),
        ({"text": ["a", "b"], "label": ["A", "B"]}, "B", 1),
        ({"text": ["a", "b"], "label": ["1", "2"]}, "1", 0),
        (["0", "1", "2"], "2", 2),
        (["1", "0"], "0", 1),
    ],
)
def test_labels_in_the_forms_that_datasets_have(options, right, index):
    row = {**QUESTION, "options": options, "right": right}
    found = question_from(row, 0, "About {topic}: {q} ", "options", "right")
    assert (found.context, found.answer) == ("About animals: What is it?", index)


@pytest.mark.parametrize(
    ("change", "prompt", "says"),
    [
        ({"right": 2}, "{q}", "row 7: 'right' must be a choice, or an index from 0 to 1, not 2"),
        ({"right": -1}, "{q}", "not -1"),
        ({"right": True}, "{q}", "not True"),
        ({"right": "C"}, "{q}", "not 'C'"),
        ({"options": ["a"]}, "{q}", "row 7: 'options' must hold at least two texts"),
        ({"options": "ab"}, "{q}", "at least two texts"),
        ({"options": ["a", " "]}, "{q}", "at least two texts"),
        ({"options": ["a", None]}, "{q}", "at least two texts"),
        (
            {},
            "{question}",
            "row 7 does not fit the prompt '{question}': KeyError 'question'; its fields are q, topic",
        ),
        ({}, "{", "does not fit the prompt"),
        ({"q": " "}, "{q}", "the prompt '{q}' is empty"),
    ],
)
def test_rows_that_are_no_question(change, prompt, says):
    with pytest.raises(ValueError) as error:
        question_from({**QUESTION, **change}, 7, prompt, "options", "right")
    assert says in str(error.value)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="row 0 has no field 'answer': it has q, topic, options, right"):
        question_from(QUESTION, 0, "{q}", "options", "answer")


def test_no_question_at_all():
    with pytest.raises(ValueError, match="no question"):
        score_questions(tiny_model(), encode, [], window=8, start=[], batch_size=1)
