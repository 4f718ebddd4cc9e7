"""The card as a page: rendered to HTML, its structure is sound. A reviewed picture of one lies in artefacts/."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from card_folders import certificate, write_json
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from moeba.hub_card import write_card

VOID = {"img", "br", "hr"}
CASES = ("dense", "upcycled", "trained", "merged", "proven")


class Page(HTMLParser):
    """What a browser would make of it: headings, images, tables, and tags that are left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.images: list[dict[str, str | None]] = []
        self.tables: list[list[int]] = []
        self.paragraphs: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][-1] += 1
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and re.fullmatch("h[1-6]", self.open[0 if len(self.open) == 1 else -1]):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)
        if "p" in self.open:
            self.paragraphs[-1] += data


@pytest.fixture(params=CASES)
def case(request) -> tuple[str, Path]:
    if request.param != "proven":
        return request.param, request.getfixturevalue(request.param)
    folder = request.getfixturevalue("upcycled")
    write_json(folder, "parity.json", certificate(folder))
    return request.param, folder


def test_the_page_is_sound(case):
    name, folder = case
    text = write_card(folder).read_text(encoding="utf-8")
    body = text.split("---\n", 2)[2]
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    assert not page.wrong and not page.open
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    names = [title for _, title in page.headings]
    assert len(set(names)) == len(names) and all(names)
    assert page.tables and all(len(set(rows)) == 1 and len(rows) > 1 for rows in page.tables)
    assert len(page.images) == (3 if name == "trained" else 0)
    for image in page.images:
        assert len(image["alt"]) > 40 and (folder / image["src"]).is_file()
    # Markdown that was not understood stays in the text as it is.
    assert not any(re.search(r"\|\s*---|```|\*\*|^#+ |<details", words) for words in page.paragraphs)
    assert "\n\n\n" not in re.sub(r"```.*?```", "code", body, flags=re.DOTALL)
    assert "None" not in body and "{{" not in body and "undefined" not in body.lower()


def test_the_first_screen_says_what_matters(case):
    name, folder = case
    text = write_card(folder).read_text(encoding="utf-8")
    first = text.split("# ", 1)[1].split("\n## ")[0]
    assert first.count("\n") < 20
    said = {
        "dense": ["Dense decoder", "text generation, with a chat template"],
        "upcycled": ["Untrained router", "4 experts, of which a token visits 2", "unverified"],
        "trained": [
            "changed by training since `upcycle`",
            "60 steps, loss 5.26 → 2.35; the router was trained",
        ],
        "merged": [
            "Untrained router",
            "`user/one` and `user/two`",
            "KL divergence",
            "perplexity 21.8",
            "llama3.2",
        ],
        "proven": [
            "**verified** to compute the same function",
            "differ by at most 1.5e-06; 1 of 1 planted faults",
        ],
    }
    for words in said[name]:
        assert words in first, words


def test_the_metadata_is_what_the_hub_takes(case):
    """The rules of the Hub's own check, as far as its client and its documentation tell them."""
    _, folder = case
    text = write_card(folder).read_text(encoding="utf-8")
    data = yaml.safe_load(text.split("---\n")[1])
    known = {"library_name", "pipeline_tag", "tags", "language", "datasets", "metrics", "base_model",
             "base_model_relation", "license", "license_name", "license_link", "model-index"}  # fmt: skip
    assert set(data) <= known
    assert data.get("base_model_relation") in (None, "adapter", "merge", "quantized", "finetune")
    assert ("base_model" in data) == ("base_model_relation" in data)
    for key in ("tags", "language", "datasets", "metrics"):
        assert all(isinstance(item, str) and item == item.strip() for item in data.get(key, []))
    assert data.get("license") != "other" or "license_name" in data
    for entry in data.get("model-index", []):
        assert entry["name"] and entry["results"]
        for result in entry["results"]:
            assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
            assert all(metric["type"] and isinstance(metric["value"], float) for metric in result["metrics"])
    assert ModelCard(text, ignore_metadata_errors=False).data.to_dict() == data


def test_the_reviewed_picture_is_a_picture():
    """Its card was written by this version of the template; light on the left, dark on the right."""
    picture = Path(__file__).parent / "artefacts" / "card.png"
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20], "big") > 1000 and picture.stat().st_size < 400_000
