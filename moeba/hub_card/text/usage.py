"""How to load, train and serve what lies in a folder, as snippets that run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...conversion.families import FAMILIES
from ...tokenization import MoebaTokenizer
from ...tokenization.adopt import PIECES_IN_LLAMA_CPP
from ...tokenization.sentencepiece_form import UNKNOWN
from ..reading.facts import Facts, ModelFacts, TokenizerFacts
from .engines import (
    ENGINES,
    OWN_TOKENIZER,
    OWN_TOKENIZER_COMMAND,
    PIECES_REFUSED,
    Engine,
    advice,
    export_targets,
    limit_of_llama_cpp,
    registering,
)
from .words import code, listing

# Ending of an architecture's name -> (Auto class, task on the Hub, task of PEFT).
TASKS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation", "CAUSAL_LM"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation", "CAUSAL_LM"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification", "SEQ_CLS"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification", "TOKEN_CLS"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering", "QUESTION_ANS"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask", ""),
    "Model": ("AutoModel", "feature-extraction", "FEATURE_EXTRACTION"),
}
_HERE = "path/to/this/folder"


@dataclass(frozen=True)
class Snippet:
    """Code with a sentence before it; folded under `title` where one is given."""

    words: str
    code: str
    language: str = "python"
    title: str = ""


def task_of(model: ModelFacts | None) -> tuple[str, str, str] | None:
    name = (model and model.architecture) or ""
    return next((task for ending, task in TASKS.items() if name.endswith(ending)), None)


def usage(facts: Facts) -> list[Snippet]:
    """What this folder can do; nothing where there are no weights to load."""
    task = task_of(facts.model)
    if facts.model is None or task is None or facts.weights is None:
        return []
    snippets = [_load(facts, task[0])]
    if facts.model.is_moeba and facts.model.carries_code:
        snippets.append(_load_without(facts, task[0]))
    snippets.append(_train(facts))
    if task[2]:
        snippets.append(_adapt(task[2]))
    return snippets


def _load(facts: Facts, auto_class: str) -> Snippet:
    assert facts.model is not None
    lines = ["import moeba  # tells the Auto classes of the model type"] if facts.model.is_moeba else []
    lines += _loading(facts, auto_class, "")
    if facts.tokenizer and auto_class == "AutoModelForCausalLM":
        lines += [
            "",
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))",
        ]
    words = "With `pip install moeba`:" if facts.model.is_moeba else "With transformers:"
    return Snippet(words, "\n".join(lines))


def _load_without(facts: Facts, auto_class: str) -> Snippet:
    words = "Without Moeba, the code in this folder is run; it needs transformers only:"
    return Snippet(words, "\n".join(_loading(facts, auto_class, ", trust_remote_code=True")))


def _loading(facts: Facts, auto_class: str, more: str) -> list[str]:
    lines = [f"from transformers import {auto_class}" + (", AutoTokenizer" if facts.tokenizer else ""), ""]
    lines += ['model_id = "user/name"  # this repository, or a local copy of it']
    lines += [f"model = {auto_class}.from_pretrained(model_id{more})"]
    return lines + ([f"tokenizer = AutoTokenizer.from_pretrained(model_id{more})"] if facts.tokenizer else [])


def _train(facts: Facts) -> Snippet:
    assert facts.model is not None
    arguments = 'model=model, args=TrainingArguments("output"), train_dataset=dataset'
    lines = ["from transformers import Trainer, TrainingArguments", "", f"trainer = Trainer({arguments})"]
    words = "The stock `Trainer` trains it; `dataset` is yours, tokenized:"
    if facts.model.is_moeba and facts.model.is_sparse:
        lines.insert(0, "from moeba.training import RouterStatisticsCallback")
        lines.append("RouterStatisticsCallback().add_to(trainer)  # logs how evenly the experts are used")
    return Snippet(words, "\n".join([*lines, "trainer.train()"]), title="Fine-tune it")


def _adapt(task: str) -> Snippet:
    lines = [
        "from peft import LoraConfig, get_peft_model",
        "",
        f'model = get_peft_model(model, LoraConfig(task_type="{task}", target_modules="all-linear"))',
        "model.print_trainable_parameters()",
    ]
    return Snippet(
        "A low-rank adapter of its linear layers, with PEFT:", "\n".join(lines), title="Fine-tune an adapter"
    )


def serving(facts: Facts) -> list[Snippet]:
    """Starting each engine that knows the model's native layout, or that of an export which can hold it."""
    task, model = task_of(facts.model), facts.model
    if model is None or task is None or facts.weights is None or task[0] != "AutoModelForCausalLM":
        return []
    if not model.is_moeba:
        engines = registering(model.architecture)
        return (
            [
                _serve(
                    f"{_known(engines)} {code(model.architecture)} by name.",
                    engines,
                    model.architecture,
                    _HERE,
                )
            ]
            if engines
            else []
        )
    targets = export_targets(model.config) if model.config else {}
    as_it_is = [Snippet(advice(model.config), "")] if model.config else []
    if not targets:
        names = listing(engine.name for engine in ENGINES)
        return [Snippet(f"No layout that {names} know by name can hold this model exactly.", ""), *as_it_is]
    exports = [_export_and_serve(target, engines) for target, engines in targets.items()]
    return [*as_it_is, *exports, *_own_tokenizer(facts.tokenizer, targets)]


def _own_tokenizer(
    tokenizer: TokenizerFacts | None, targets: Mapping[str, Sequence[Engine]]
) -> Iterator[Snippet]:
    """What llama.cpp's converter must be told of a tokenizer that Moeba trained, in the layout that it knows."""
    layouts = [
        FAMILIES[name].exported_architecture
        for name, known in targets.items()
        if any(engine.name == "llama.cpp" for engine in known)
    ]
    if tokenizer is None or tokenizer.tokenizer_class != MoebaTokenizer.__name__ or not layouts:
        return
    if UNKNOWN not in tokenizer.special_tokens.values():
        yield Snippet(OWN_TOKENIZER, OWN_TOKENIZER_COMMAND, "bash")
    elif not PIECES_IN_LLAMA_CPP.issuperset(layouts):
        yield Snippet(PIECES_REFUSED, "")


def _export_and_serve(target: str, engines: Sequence[Engine]) -> Snippet:
    name = FAMILIES[target].exported_architecture
    words = (
        f"{_known(engines)} {code(name)} by name. The config of this model fits that native layout, so export it to "
        f"{code(target)} first."
    )
    return _serve(words, engines, name, "exported", f"moeba export {_HERE} exported --to {target}\n\n")


def _known(engines: Sequence[Engine]) -> str:
    return f"{listing(engine.name for engine in engines)} {'know' if len(engines) > 1 else 'knows'}"


def _serve(
    words: str, engines: Sequence[Engine], architecture: str | None, folder: str, before: str = ""
) -> Snippet:
    if any(engine.name == "llama.cpp" for engine in engines):
        words += limit_of_llama_cpp(architecture)
    commands = [f"# {engine.name}\n{engine.command.format(folder=folder)}" for engine in engines]
    return Snippet(words, before + "\n\n".join(commands), "bash")
