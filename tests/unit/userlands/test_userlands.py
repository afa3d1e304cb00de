"""The parts of the userlands' table that need no userland."""

from pathlib import Path

import pytest

from tests.gpu.table import split_page
from tests.userlands.container import Outcome, place_in
from tests.userlands.injection import BindMount, resolve
from tests.userlands.page import Cell, render_table, write_table
from tests.userlands.programs import COMPARED, HELD
from tests.userlands.roots import OLDEST, RELEASES, Release

CELLS = (
    Cell("perl", "old (1)", "same", good=True),
    Cell("git", "old (1)", "same", good=False),
    Cell("perl", "new (2)", "same", good=True),
)


def test_a_difference_in_anything_is_seen() -> None:
    one = Outcome(0, "out", "", ("tmp/x: file 1, mode 644",), ())

    assert one.differences(one) == []
    assert one.differences(Outcome(0, "out", "", (), ("sleep",))) == ["files", "left"]
    assert one.differences(Outcome(1, "", "w", one.files, ())) == ["status", "stdout", "stderr"]


def test_edits_of_cdi_devices_become_mounts_in_their_order_and_once() -> None:
    library = {"hostPath": "/h/l.so", "containerPath": "/lib/l.so", "options": ["ro", "rbind"]}
    region = {"hostPath": "/h/region", "containerPath": "/run/r", "options": ["rw"]}
    card = {
        "kind": "v/card",
        "containerEdits": {"env": ["A=1"], "mounts": [library]},
        "devices": [
            {"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/n"}]}},
            {"name": "b", "containerEdits": {"env": ["B=2"]}},
        ],
    }
    share = {"kind": "v/claim", "devices": [{"name": "s", "containerEdits": {"mounts": [region]}}]}

    found = resolve(["v/card=a", "v/claim=s", "v/card=a"], [card, share])

    assert found.mounts == (
        BindMount(Path("/dev/n"), "/dev/n", read_only=False),
        BindMount(Path("/h/l.so"), "/lib/l.so", read_only=True),
        BindMount(Path("/h/region"), "/run/r", read_only=False),
    )
    assert found.environment == (("A", "1"),)
    with pytest.raises(KeyError):
        resolve(["v/card=c"], [card])


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("/usr/lib/x", "usr/lib/x"),
        ("/lib/x", "usr/lib/x"),
        ("/var/run/a/x", "run/a/x"),
        ("/etc/new/x", "etc/new/x"),
    ],
)
def test_links_of_a_root_stay_in_it(tmp_path: Path, target: str, place: str) -> None:
    for folder in ("usr/lib", "run", "var", "etc"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "var/run").symlink_to("/run")

    assert place_in(tmp_path, target) == Path(place)


def test_the_table_has_a_row_for_each_program_and_says_what_differs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- userlands: begin -->\n<!-- userlands: end -->\nafter\n")

    write_table(page, CELLS)
    write_table(page, CELLS)

    assert split_page(page.read_text(), "userlands")[1] == f"{render_table(CELLS)}\n"
    assert render_table(CELLS).splitlines() == [
        "| program | old (1) | new (2) |",
        "|---|---|---|",
        "| perl | same | same |",
        "| git | **differs** | not run |",
    ]


def test_another_set_of_packages_is_another_root() -> None:
    assert len({release.key for release in RELEASES}) == len(RELEASES)
    assert Release(name=OLDEST.name, packages=("git",)).key != OLDEST.key


def test_each_program_has_a_row_of_its_own() -> None:
    names = [program.name for program in (*COMPARED, *HELD)]
    assert len(set(names)) == len(names)
