"""The page and the card of a model folder: for a person, from the folder's own numbers, and safe to mail."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from llmkit.evaluation.card import write_card
from llmkit.evaluation.report import write_report

LOADING_ATTRIBUTES = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "formaction", "background"}
LOADING_TAGS = {"script", "link", "iframe", "object", "embed", "base", "img", "image", "audio", "video", "form"}
EVIL = "<script>alert('read me')</script><img src=https://example.com/x.png onerror=alert(1)> & so on"


class Page(HTMLParser):
    """The elements, their attributes and the text of a page, as a browser finds them."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def page_of(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def copy(gpt, tmp_path):
    """The folder under another name, to be written into."""
    return shutil.copytree(gpt, tmp_path / "copied")


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def log(folder, **values):
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(values) + "\n")


# ---------------------------------------------------------------------------------------------- the report


def test_the_report_loads_nothing(gpt):
    page = page_of(gpt)
    assert not LOADING_TAGS & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), attributes
            if name in LOADING_ATTRIBUTES:
                assert value.startswith("#"), attributes  # a reference into the page itself, as SVG makes them
    html = (gpt / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", html)
    policies = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")


def test_the_report_shows_curves_figures_samples_and_options(gpt):
    page = page_of(gpt)
    metrics = json.loads((gpt / "metrics.json").read_text())
    record = json.loads((gpt / "llmkit.json").read_text())
    assert sum(tag == "svg" for tag, _ in page.elements) >= 3  # loss, bits per byte, learning rate …
    for name in ("bits_per_byte", "tokens_per_second", "max_steps", "muon_learning_rate", "depth"):
        assert name in page.text
    assert f"{metrics['bits_per_byte']:.4g}" in page.text
    assert f"{metrics['bits_per_byte_n']:,}" in page.text
    assert record["options"]["warmup_steps"]["reason"] in page.text
    assert record["command"] in page.text
    assert "Samples" in page.text


def test_the_report_names_the_data_and_says_how_the_model_compares_with_its_baseline(gpt):
    (summary,) = re.findall(r'<p class="summary">(.*?)</p>', (gpt / "report.html").read_text(encoding="utf-8"))
    metrics = json.loads((gpt / "metrics.json").read_text())
    assert "tales.txt" in summary
    assert f"{metrics['bits_per_byte']:.4g}" in summary
    assert f"{metrics['xz_bits_per_byte']:.4g}" in summary
    assert ("not better" in summary) == (metrics["bits_per_byte"] > metrics["xz_bits_per_byte"])


def test_every_chart_says_in_words_what_it_shows(gpt):
    labels = [a.get("aria-label") for tag, a in page_of(gpt).elements if tag == "svg"]
    assert all("at step" in label for label in labels)
    assert len(set(labels)) == len(labels)


def test_identifiers_are_used_once(gpt):
    identifiers = [a["id"] for _, a in page_of(gpt).elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)


def test_what_a_model_writes_is_text_and_never_markup(copy):
    log(copy, step=10**6, samples=[{"prompt": EVIL, "text": EVIL, "longest_copied_words": 0}])
    write_report(copy)
    page = page_of(copy)
    assert page.text.count(EVIL) == 2
    assert not LOADING_TAGS & {tag for tag, _ in page.elements}
    assert "<script" not in (copy / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "value"),
    [("command", EVIL), ("data", {"name": EVIL, "documents": 3}), ("recipe", EVIL), ("versions", {EVIL: EVIL})],
)
def test_what_a_user_named_is_text_and_never_markup(copy, field, value):
    change_json(copy / "llmkit.json", **{field: value})
    write_report(copy)
    assert EVIL in page_of(copy).text
    assert not LOADING_TAGS & {tag for tag, _ in page_of(copy).elements}


def test_a_folder_whose_name_is_markup_is_named_as_text(copy):
    folder = copy.rename(copy.with_name("<b>bold<script>"))
    write_report(folder)
    assert "<b>bold<script>" in page_of(folder).text
    assert "script" not in {tag for tag, _ in page_of(folder).elements}


def test_half_a_character_is_no_reason_to_fail(copy):
    log(copy, step=10**6, samples=[{"prompt": "", "text": "half \ud83d of it", "longest_copied_words": 1}])
    write_report(copy)
    assert "half ? of it" in page_of(copy).text


def test_the_same_run_gives_the_same_bytes(gpt, copy):
    """Written again in this process, with other pictures drawn before it."""
    folder = copy.rename(copy.parent / gpt.name)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert first == (gpt / "report.html").read_bytes()


def test_nothing_but_the_page_is_written(gpt, copy):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    write_report(copy)
    after = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {"report.html"}


def test_a_run_that_is_not_finished_has_a_report_that_says_so(copy):
    (copy / "metrics.json").unlink()
    change_json(copy / "llmkit.json", status="running", finished=None)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join([*lines[:6], lines[6][:10]]))  # killed within a line
    write_report(copy)
    assert "not finished" in page_of(copy).text
    assert "svg" in {tag for tag, _ in page_of(copy).elements}


def test_a_finished_run_is_not_called_unfinished(gpt):
    assert "not finished" not in page_of(gpt).text


def test_a_run_that_only_started_has_a_report_too(copy):
    (copy / "metrics.json").unlink()
    (copy / "metrics.jsonl").unlink()
    write_report(copy)
    assert "svg" not in {tag for tag, _ in page_of(copy).elements}
    assert "pretrain_gpt" in page_of(copy).text


def test_steps_that_were_logged_twice_count_as_they_were_logged_last(copy):
    """A resumed run logs the steps since its checkpoint again."""
    (copy / "metrics.jsonl").unlink()
    for step, loss in [(1, 5.0), (2, 4.0), (3, 9.0), (3, 3.5), (4, 3.25)]:
        log(copy, step=step, loss=loss)
    write_report(copy)
    (label,) = [a["aria-label"] for tag, a in page_of(copy).elements if tag == "svg"]
    assert "from 5 at step 1 to 3.25 at step 4" in label
    assert "9" not in label


def test_a_broken_line_in_the_middle_is_named(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", *lines[1:]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        write_report(copy)


# ---------------------------------------------------------------------------------------------- the model card


def test_the_card_has_the_figures_of_the_run(gpt):
    card = (gpt / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((gpt / "metrics.json").read_text())
    rows = dict(re.findall(r"^\| (\w+) \| (.*?) \|$", card, flags=re.MULTILINE))
    low, high = metrics["bits_per_byte_ci"]
    value, count = metrics["bits_per_byte"], metrics["bits_per_byte_n"]
    assert rows["bits_per_byte"] == f"{value:.4g} ({low:.4g} to {high:.4g}), n = {count:,}"
    assert rows["parameters"] == f"{metrics['parameters']:,}"
    assert rows.keys() - {"figure"} == {name for name in metrics if not name.endswith(("_ci", "_n"))}


def test_the_card_begins_with_the_metadata_that_the_hub_reads(gpt):
    import yaml

    _, front, body = (gpt / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmkit"],
    }
    assert body.lstrip().startswith(f"# {gpt.name}\n")


def test_the_card_has_the_command_and_the_data(gpt):
    card = (gpt / "README.md").read_text(encoding="utf-8")
    record = json.loads((gpt / "llmkit.json").read_text())
    assert record["command"] in card
    assert record["data"]["fingerprint"] in card
    assert "tales.txt" in card


def test_the_card_written_again_is_the_same(gpt, copy):
    folder = copy.rename(copy.parent / gpt.name)
    assert write_card(folder).read_bytes() == (gpt / "README.md").read_bytes()
