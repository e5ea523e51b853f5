"""Heat maps and tables of an analysis hold what was measured, as means over seeds."""

import json

import numpy as np
import pytest
from support import made_sweep

from jaxtune.errors import UserError
from jaxtune.sweeps import analysed, heat, heat_plot, stats

GIVEN = made_sweep.config(made_sweep.lora([1, 4]), made_sweep.prefix([5]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("made") / "sweep"
  results = made_sweep.write(folder, GIVEN)
  analysis = made_sweep.analyse(folder, results)
  return folder, analysis, analysed.configurations(stats.group(results), analysis)


def find(maps, group, **choices):
  (found,) = [m for m in maps if m["group"] == group and m["choices"].items() >= choices.items()]
  return found


def test_maps_are_means_over_seeds(made):
  _, analysis, measured = made
  maps = heat.of_analysis(measured, analysis)
  label = next(one.label for one in measured if "rank=4" in one.label)
  trials = [entry for name, entry in analysis["trials"].items() if "rank=4" in name]
  found = find(maps, heat.WEIGHTS, configuration=label, measure="amplification factor")
  assert found["rows"] == ["0", "1", "2"] and found["columns"] == ["q_proj", "v_proj"]
  matrix = lambda entry, name: entry["weights"][f"trunk/layers/attn/{name}/kernel"]
  of_v = [matrix(entry, "v_proj")["amplification"]["factor"][2] for entry in trials]
  assert found["values"][2][1] == pytest.approx(np.mean(of_v))
  cuts = find(maps, heat.CUTS)
  assert cuts["columns"] == ["0", "1", "4"]
  assert cuts["values"][0][2] is None, "rank 1 has no change of rank 4"
  expected = np.mean([entry["truncated"]["loss"][2] for entry in trials])
  assert cuts["values"][cuts["rows"].index(label)][2] == pytest.approx(expected)
  shared = find(maps, heat.SHARED, dimensions="4", **{"directions of": "outputs"})
  assert shared["values"] == [[None, None], [None, pytest.approx(0.7)]]
  heads = [
    e["attention"]["trunk/attn"]["mass"] for e in analysis["trials"].values() if not e["weights"]
  ]
  np.testing.assert_allclose(find(maps, heat.ATTENTION)["values"], np.mean(heads, 0))


def test_modules_have_short_names_that_differ():
  paths = [f"trunk/layers/{part}/kernel" for part in ("attn/q_proj", "cross/q_proj", "mlp/up_proj")]
  assert heat.modules(paths) == ["attn/q_proj", "cross/q_proj", "mlp/up_proj"]
  assert heat.modules(paths[1:]) == ["q_proj", "up_proj"]
  both = ["encoder/layers/mlp/up_proj/kernel", "decoder/layers/mlp/up_proj/kernel"]
  assert heat.modules(both) == ["encoder mlp/up_proj", "decoder mlp/up_proj"]


def test_tables_say_the_same(made):
  _, analysis, measured = made
  tables = analysed.tables(measured, analysis)
  changes, cuts = tables["What training changed"], tables["Loss with changes cut to a rank"]
  (row,) = [dict(zip(changes.header, r, strict=True)) for r in changes.rows if "rank=4" in r[0]]
  trials = [entry for name, entry in analysis["trials"].items() if "rank=4" in name]
  relative = [x for e in trials for w in e["weights"].values() for x in w["relative"]]
  factors = [x for e in trials for w in e["weights"].values() for x in w["amplification"]["factor"]]
  assert float(row["change of W (%)"]) == pytest.approx(100 * np.mean(relative), rel=0.01)
  assert float(row["amplification"]) == pytest.approx(np.exp(np.mean(np.log(factors))), rel=0.01)
  assert row["attention to virtual tokens (%)"] == "-" and cuts.header[1:] == ["0", "1", "4"]
  (pair,) = [r for r in tables["Shared subspaces"].rows if "rank=1" in r[0] and "rank=1" in r[1]]
  assert pair[2:8] == ["1", "different", "0.5", "0.125", "0.5", "0.125"]
  (_, of, tokens) = tables["Nearest tokens"].rows[-1]
  assert of == "keys of trunk/attn, layer 2" and tokens.startswith('"a" 0.50, ')


def test_every_group_has_a_plot(made):
  _, analysis, measured = made
  assert heat_plot.figures(measured, analysis).keys() == {
    "change_of_weights", "shared_subspaces", "attention_to_virtual_tokens", "change_of_states",
    "loss_with_changes_cut",
  }  # fmt: skip


def test_a_trial_that_was_trained_again_is_left_out(made):
  _, analysis, _ = made
  rows = stats.group(made_sweep.write(made[0].with_name("again"), GIVEN))
  again = [rows[0]._replace(results=tuple(r | {"sha256": "0"} for r in rows[0].results)), *rows[1:]]
  every, some = (analysed.configurations(x, analysis) for x in (rows, again))
  assert [one.label for one in every[1:]] == [one.label for one in some]


def test_a_file_that_was_changed_by_hand_is_refused(made, tmp_path):
  content = (made[0] / "analysis.json").read_text()
  assert analysed.read(made[0]) is not None and analysed.read(tmp_path) is None
  (tmp_path / "analysis.json").write_text(content.replace('"loss"', '"lost"'))
  with pytest.raises(UserError, match=r"analysis.json was changed .* run `jaxtune analyse"):
    analysed.read(tmp_path)
  (tmp_path / "analysis.json").write_text('{"examples": 3}')
  with pytest.raises(UserError, match=r"analysis.json.*is missing"):
    analysed.read(tmp_path)


def test_analyses_are_joined_under_the_names_of_their_sweeps(made):
  _, analysis, _ = made
  with pytest.raises(UserError, match="analysed on .* and .*, expected the same"):
    analysed.join({"a/": analysis, "b/": {**analysis, "split": "test"}})
  joined = analysed.join({"a/": analysis, "b/": None, "c/": json.loads(json.dumps(analysis))})
  assert len(joined["trials"]) == 2 * len(analysis["trials"])
  assert {name[:2] for pair in joined["similarity"] for name in pair["a"]} == {"a/", "c/"}
  assert analysed.join({"": None}) is None
