"""What is measured, what is promised, and what a machine may lack."""

from tests.gpu import bed, cases
from tests.gpu.cases import ComputeCase, MemoryCase, TenantsCase
from tests.gpu.figures import Accuracy


def test_the_grid_has_each_limit_once_for_each_program() -> None:
    grid = list(cases.list_compute())

    assert len(grid) == len(set(grid)) == (3 * len(cases.KERNELS_US) + 3) * len(cases.LIMITS)
    assert {case.mode for case in grid if case.needs_torch} == set(cases.TORCH_MODES)
    assert all(case.kernel_us == 0 for case in grid if case.needs_torch)
    assert {case.mode for case in cases.thin(grid)} == {case.mode for case in grid}


def test_a_share_is_held_within_a_point_and_two_of_distance() -> None:
    case = ComputeCase("loop", 50, 200)

    assert cases.share_row(case, "ours", Accuracy(50.9, 0.9, 1.9)).held
    assert cases.share_row(case, "ours", Accuracy(51.1, 1.1, 1.1)).held is False
    assert cases.share_row(case, "ours", Accuracy(50.0, 0.0, 2.1)).held is False
    other = cases.share_row(case, "other", Accuracy(90.0, 40.0, 40.0))
    assert (other.held, other.target) == (None, "")
    nothing = cases.share_row(case, "ours", None)
    assert (nothing.figure, nothing.held) == ("not measured", None)


def test_a_program_that_cannot_use_its_limit_is_expected_to_get_what_it_can() -> None:
    row = cases.share_row(ComputeCase("sync", 90, 20), "ours", Accuracy(60.0, 0.0, 0.1), 60.0)

    assert row.target.startswith("60 ± 1")
    assert row.held
    assert cases.expect(30, 60.0) == 30


def test_two_tenants_split_the_card_by_their_limits() -> None:
    case = TenantsCase("loop", (30, 70), (20, 1000))

    assert cases.split_row(case, "ours", 31.9).held
    assert cases.split_row(case, "ours", 32.1).held is False
    assert cases.split_row(case, "ours", None).held is None
    assert "20 µs and 1 ms" in case.title("ours")
    assert TenantsCase("matmul", (50, 50)).promised == 50


def test_memory_is_never_above_its_limit_and_hardly_below() -> None:
    case = MemoryCase("plain", "pieces", 2048, 32)

    assert [case.row("ours", mib).held for mib in (2048, 2016, 2050, 2015)] == [
        True,
        True,
        False,
        False,
    ]
    assert case.row("ours", None).held is None
    assert MemoryCase("context", "context").row("ours", 400).held is None


def test_what_is_missing_is_said_plainly() -> None:
    no_driver = bed.explain("OSError: libcuda.so.1: cannot open shared object file")
    no_card = bed.explain("CudaError: cuInit answered 100")
    facts = {"name": "A card", "uuid": "GPU-1", "cuda": 13040, "mib": 1, "torch": "PyTorch is not"}

    assert "no NVIDIA driver" in no_driver
    assert "finds no card" in no_card
    assert "cuInit answered 999" in bed.explain("CudaError: cuInit answered 999")
    assert bed.Machine(None, (no_card,), torch=False).note().startswith("Not measured yet: ")
    partly = bed.judge_facts(facts)
    assert not partly.torch
    assert partly.note() == "Measured on A card, CUDA 13.4. Not measured: PyTorch is not."
    assert bed.judge_facts({**facts, "torch": None}).note() == "Measured on A card, CUDA 13.4."
