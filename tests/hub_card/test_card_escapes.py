"""Strangers' words in a card stay words: rendered, nothing of them is a link, an image, HTML, a heading or a cell."""

from __future__ import annotations

import json
from itertools import count

import pytest
from card_folders import certificate, evaluation, provenance, save_training, source, surgery, write_json
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from test_card_html import Page

from moeba.hub_card import write_card
from moeba.hub_card.text.escapes import cell, code, link

HOSTILE = (
    "[click](https://evil.example)",
    "![beacon](https://evil.example/x.png)",
    "![beacon][1]\n\n[1]: https://evil.example/x.png",
    "<img src=https://evil.example onerror=alert(1)>",
    "<https://evil.example>",
    "https://evil.example/a?b=c",
    "see www.evil.example, or me@evil.example",
    "HTTPS://EVIL.EXAMPLE mailto:me",
    "a | b | c",
    "a \\| b \\\\| c",
    "\n\n# Heading\n\n",
    "# Heading",
    "> quote",
    "- item",
    "+ item",
    "7. item",
    "1) item",
    "---",
    "===",
    "~~~",
    "```",
    "`code` `` and ` more",
    "</details><script>alert(1)</script>",
    "<!-- moeba:end -->",
    "--> <b>bold</b>",
    "*bold* __bold__ ~~gone~~ _a_ $x$",
    "&lt;b&gt; &#60;b&#62; &amp;",
    "trailing \\",
    "javascript:alert(1)",
    "[x](javascript:alert(1))",
    "\u202eelpmaxe.live\u202c\x00",
)
KEPT = {"format_version", "files", "target", "operation", "verdict", "step", "layer"}
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def spans(text: str) -> list:
    """The inline tokens of all of a document, innermost first to last."""
    return [token for block in MARKDOWN.parse(text) for token in (block.children or ())]


def shown(words: str) -> str:
    return "".join(token.content for token in spans(words) if token.type in ("text", "code_inline"))


@pytest.mark.parametrize("escape", [cell, code, link])
@pytest.mark.parametrize("place", ["{}", "- {}", "- **name:** {}", "# {}", "> {}", "**{}** x"])
def test_words_stay_words(escape, place):
    plain = [token.type for token in MARKDOWN.parse(place.format("word"))]
    for text in HOSTILE:
        written = place.format(escape(text))
        if escape is link and escape(text).startswith("<"):
            assert escape(text) == f"<{text}>"  # a plain address, shown in full
            continue
        tokens = MARKDOWN.parse(written)
        assert [token.type for token in tokens] == plain, (text, written)
        for token in spans(written):
            assert token.type in ("text", "code_inline", "strong_open", "strong_close"), (
                text,
                written,
                token,
            )
            assert token.type == "code_inline" or not any(
                sign in token.content.lower() for sign in ("://", "www.", "@")
            ), written  # what some readers make a link of
        assert "word" in shown(place.format(escape("word")))


def test_words_are_all_there():
    """As a reader sees them: what is escaped, or made code of, is not lost."""
    for text in HOSTILE:
        if "`" not in text and "\u202e" not in text:
            assert shown(f"x {cell(text)}") == "x " + " ".join(text.split())
    assert (
        cell("0.5 - 4 of norm_eps in llama3.2") == "0.5 - 4 of norm_eps in llama3.2"
    )  # and no more than needed


@pytest.mark.parametrize("escape", [cell, code, link])
def test_a_cell_stays_one_cell(escape):
    for text in HOSTILE:
        table = f"| a | b |\n| --- | --- |\n| x | {escape(text)} |\n\nafter\n"
        page = Page(MARKDOWN.render(table))
        assert page.tables == [[2, 2]] and page.paragraphs == ["after"] and not page.images, text


@pytest.mark.parametrize(
    "address, is_link",
    [
        ("https://example.org/LICENSE?a=b#c", True),
        ("http://example.org", True),
        ("https://huggingface.co@evil.example/x", False),
        ("https://a.b/x|y", False),
        ("https://a.b/x>y", False),
        ("https://a.b/(x) y", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("LICENSE", False),
        ("//evil.example", False),
        ("https://evil\u0435.example", False),
    ],
)
def test_a_link_shows_where_it_leads(address, is_link):
    assert link(address) == (f"<{address}>" if is_link else code(address))


def poisoned(value, numbers, key=""):
    """A record with every text in it replaced by a hostile one, and names of fields where it is free."""
    if isinstance(value, dict):
        changed = {k: v if k in KEPT else poisoned(v, numbers, k) for k, v in value.items()}
        free = key in ("recipe", "settings", "figures", "reports", "metrics", "versions")
        return (
            {f"{k} {HOSTILE[next(numbers) % len(HOSTILE)]}": v for k, v in changed.items()}
            if free
            else changed
        )
    if isinstance(value, list):
        return [poisoned(item, numbers, key) for item in value]
    return f"{key} {HOSTILE[next(numbers) % len(HOSTILE)]}" if isinstance(value, str) else value


def records(folder):
    """One of everything that a card is made of."""
    parents = [
        source(repo_id=f"user/{name}", license="other", license_name=f"licence {name}", license_link="link",
               revision="main", language=["en"], datasets=["a/b"])
        for name in ("one", "two")
    ]  # fmt: skip
    made = provenance(
        "merge", source=parents[0], sources=parents[1:], notes=["a note", "another"], lossy=True
    )
    proof = certificate(folder, first_divergence="model.layers.0")
    proof["keys"]["round_trip"] = "same bytes"
    return {
        "moeba_provenance.json": made,
        "parity.json": proof,
        "surgery.json": surgery(),
        "evaluation.json": evaluation(folder),
        "eval_results.json": {"eval_loss": 2.0},
        "training_args.json": {"optim": "adamw", "lr_scheduler_type": "linear", "seed": 3},
        "tokenizer_config.json": {
            "tokenizer_class": "Fast", "bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "[UNK]",
        },
    }  # fmt: skip


@pytest.mark.parametrize("first", range(0, len(HOSTILE), 8))
def test_a_card_of_hostile_records_is_the_same_page(first, upcycled):
    save_training(upcycled)
    pages = []
    for numbers in (None, count(first)):
        for name, record in records(upcycled).items():
            write_json(upcycled, name, record if numbers is None else poisoned(record, numbers))
        text = write_card(upcycled).read_text(encoding="utf-8")
        body = ModelCard(text).text
        tokens = MARKDOWN.parse(body)
        inline = [token for token in tokens for token in (token.children or ())]
        pages.append(
            {
                "blocks": [token.type for token in tokens if token.type != "fence"],
                "html": [token.content for token in tokens if token.type == "html_block"],
                "images": [token.attrs["src"] for token in inline if token.type == "image"],
                "links": [token for token in inline if token.type == "link_open"],
                "html_inline": [token.content for token in inline if token.type == "html_inline"],
                "inline": {token.type for token in inline},
                "tables": Page(MARKDOWN.render(body)).tables,
            }
        )
        assert not any(
            "://" in token.content or "www." in token.content for token in inline if token.type == "text"
        )
        write_card(upcycled)  # its marks are still found, once each
    plain, hostile = pages
    assert hostile["images"] == plain["images"] and len(plain["images"]) == 3
    assert not hostile["html_inline"]
    assert not hostile["links"] and hostile["inline"] <= {*plain["inline"], "strong_open", "strong_close"}
    assert [block.split(" -->")[0] for block in hostile["html"] if "moeba:metadata" not in block] == [
        block.split(" -->")[0] for block in plain["html"] if "moeba:metadata" not in block
    ]
    assert hostile["tables"] == plain["tables"]
    assert hostile["blocks"] == plain["blocks"]


def test_a_plain_licence_link_is_shown_in_full(upcycled):
    made = provenance(
        source=source(license="other", license_name="mine", license_link="https://example.org/l")
    )
    write_json(upcycled, "moeba_provenance.json", made)
    text = write_card(upcycled).read_text(encoding="utf-8")
    assert "| **Licence** | mine, <https://example.org/l> |" in text
    assert "license_link: https://example.org/l" in text
    for address in ("javascript:alert(1)", "[x](https://evil.example)", "https://a.b/ c"):
        made["source"]["license_link"] = address
        write_json(upcycled, "moeba_provenance.json", made)
        assert "license_link" not in write_card(upcycled).read_text(encoding="utf-8").split("---\n")[1]
    made["source"]["license_link"] = "LICENSE.md"  # a file of the repository
    write_json(upcycled, "moeba_provenance.json", made)
    assert "license_link: LICENSE.md" in write_card(upcycled).read_text(encoding="utf-8")
    assert json.loads((upcycled / "moeba_provenance.json").read_text())["source"]["license_name"] == "mine"
