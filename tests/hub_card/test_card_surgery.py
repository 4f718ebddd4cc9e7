"""The record of surgery: the recipe verbatim, the gap as a table, reports in words."""

from card_folders import save_model, surgery, write_json

from moeba.hub_card import gather_facts, write_card


def text_of(folder):
    return write_card(folder).read_text(encoding="utf-8")


def test_recipe_gap_and_reports(merged):
    text = text_of(merged)
    assert "```yaml\n# mine\nrouter: centroids   # of true inputs\n```" in text
    assert "## What `merge` measured\n\nThis operation does not keep the function. " in text
    assert "| calibration.txt | 1,024 | 2.0000 | 2.1000 | 0.07 | 87.1% |" in text
    assert "| user/one | 512 | 1.8000 | 1.9000 | 0.09 | 88.3% |" in text
    assert "- **router degeneracy, layer 1:** largest cosine 0.25" in text
    assert "- **identical experts:** no" in text
    assert (
        "| **Function** | changed on purpose: KL divergence from its source at most 0.09 nats a token |"
        in text
    )
    assert "have changed since" not in text and "there is no certificate" not in text


def test_a_gap_of_other_weights_says_so(merged):
    save_model(merged, num_experts=4)
    assert gather_facts(merged).surgery.is_of_these_weights is False
    text = text_of(merged)
    assert "**The weights have changed since**" in text and "changed on purpose" not in text


def test_without_hashes_it_is_said_too(merged):
    (merged / "moeba_provenance.json").unlink()
    assert "No hashes tell whether" in text_of(merged)


def test_absent_keys_are_absent(merged):
    write_json(merged, "surgery.json", {"format_version": 1, "operation": "merge"})
    text = text_of(merged)
    assert "measured" not in text and '"num_experts": 4' in text  # the recipe of the provenance
    write_json(
        merged, "surgery.json", surgery(gap={"kl": 0.5, "per_source": "x"}, reports=None, recipe_text=None)
    )
    assert "| all text |  |  |  | 0.5 |  |" in text_of(merged)


def test_many_reports_are_folded_and_empty_ones_left_out(merged):
    layers = {str(layer): {"kept": 4, "visits_lost": 0.5} for layer in range(9)}
    write_json(merged, "surgery.json", surgery(reports={"pruned_layers": layers, "layers": {}}))
    text = text_of(merged)
    assert "<summary>9 reports</summary>\n\n- **pruned layers, layer 0:** kept 4, visits lost 0.5\n" in text
    assert "- **pruned layers, layer 8:** kept 4, visits lost 0.5\n\n</details>\n" in text
    assert "- **layers" not in text


def test_a_recipe_cannot_leave_its_block(merged):
    write_json(merged, "surgery.json", surgery(recipe_text="a: |\n  ```\n  <!-- moeba:end -->x\n  ```\n"))
    text = text_of(merged)
    assert "````yaml\na: |\n" in text
    assert text_of(merged) == text
