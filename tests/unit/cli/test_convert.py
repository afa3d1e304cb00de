"""``hami-dra convert``: golden files for what people see."""

from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from click.testing import CliRunner, Result

from hami_dra.cli.convert import convert
from hami_dra.cli.manifesttext import read_documents, write_document
from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.policy.convert import convert_object

GOLDEN: Final = Path(__file__).parents[2] / "golden" / "convert"
CASES: Final = yaml.safe_load((GOLDEN / "cases.yaml").read_text())


def run(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(convert, arguments, input=text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_golden(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    done = run(*case.get("options", ()), case["file"])
    if "error" in case:
        assert done.exit_code != 0
        assert done.output == ""
        said = str(done.exception).splitlines()
        assert len(said) == len(case["error"])
        assert all(line.startswith(want) for line, want in zip(said, case["error"], strict=True))
    else:
        assert done.exit_code == 0, done.exception
        assert done.output == (GOLDEN / case["out"]).read_text()


@pytest.mark.parametrize("name", ["mixed.out.yaml", "workloads.out.yaml", "percent.out.yaml"])
def test_what_is_printed_is_printed_again_as_it_is(name: str) -> None:
    text = (GOLDEN / name).read_text()
    assert run("-", text=text).output == text


def test_what_people_write_in_yaml_keeps_its_meaning() -> None:
    text = 'a: {on: 1, b: y, c: "1e3", d: 22:22, e: 2026-01-01, f: 0644, g: "0644", h: "a\\nb\\n"}'
    (document,) = read_documents(text)
    written = write_document(document.body)
    assert yaml.safe_load(written)["a"]["e"] == "2026-01-01"
    assert yaml.safe_load(written)["a"]["d"] == "22:22"
    assert next(iter(read_documents(written))).body == document.body
    assert 'b: "y"\n' in written
    assert "f: 420\n" in written
    assert 'g: "0644"\n' in written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]\nkind: Pod\n", ""),
        ("\x00", "document 1: cannot be read"),
        ("a: [", "document 1: cannot be read"),
        ("{a: 1, ]", "document 1: cannot be read"),
        ("[" * 5000, "document 1: cannot be read"),
        ("42", ""),
        ("", ""),
        ("apiVersion: v1\nkind: Pod\nspec: 7\n", "the pod cannot be read"),
    ],
)
def test_odd_input_is_passed_through_or_refused(text: str, said: str) -> None:
    done = run("-", text=text)
    if said:
        assert isinstance(done.exception, UserError)
        assert said in str(done.exception)
    else:
        assert done.exit_code == 0, done.exception
        assert done.output == text


def test_sizes_are_numbers() -> None:
    assert "'x' is not a number of MiB" in run("--sizes", "16384,x", "-").output


def test_a_file_that_is_not_there() -> None:
    assert "cannot be read: No such file" in str(run("absent.yaml").exception)


def test_templates_of_pods_deep_in_a_list_of_lists_are_found() -> None:
    template = {
        "spec": {"containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}
    }
    body = {"kind": "Set", "spec": {"roles": [{"groups": [{"template": template}]}]}}
    done = convert_object(body, DEFAULT_SETTINGS)
    (claim,) = done.body["spec"]["roles"][0]["groups"][0]["template"]["spec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == done.templates[0][0]["metadata"]["name"]
    assert "resourceClaims" not in template["spec"]
