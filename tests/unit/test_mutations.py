"""The list of faults that the tests are tried with fits the source as it is."""

import ast
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_each_fault_can_be_put_into_the_source_at_one_place_and_is_tried_with_tests_that_exist() -> None:
    mutations = yaml.safe_load((ROOT / "tests" / "mutations.yaml").read_text())
    assert len(mutations) >= 30
    for mutation in mutations:
        source = (ROOT / "esper_ray" / mutation["file"]).read_text()
        assert source.count(mutation["old"]) == 1, mutation
        ast.parse(source.replace(mutation["old"], mutation["new"]))
        assert (ROOT / "tests" / mutation["tests"]).is_file(), mutation
