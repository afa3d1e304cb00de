"""What PyTorch does in these programs. It is imported only when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MATRIX: Final = 4096
_WIDTH: Final = 1024
_LAYERS: Final = 24
_PIECE_MIB: Final = 64
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of work that is asked for again and again.

    Attributes:
        run: Ask for one.
        wait: Until all are done.
    """

    run: Callable[[], object]
    wait: Callable[[], object]


def find_missing() -> str | None:
    """Return what PyTorch lacks here; ``None`` if it works with a card."""
    try:
        torch = _import()
    except ImportError as error:
        return f"PyTorch is not installed ({error})"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no card that it can use"
    return None


def make_step(mode: str) -> Step:
    """Return what a program of a kind does.

    Raises:
        ImportError: There is no PyTorch.
        ValueError: There is no such kind.
    """
    torch = _import()
    if mode == "matmul":
        one, other = (
            torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=torch.bfloat16) for _ in "ab"
        )
        return Step(lambda: torch.matmul(one, other), torch.cuda.synchronize)
    if mode not in {"decode", "replay"}:
        raise ValueError(f"{mode!r} is no kind of work")
    token = _make_decoder(torch)
    if mode == "decode":

        def decode() -> None:
            token()
            torch.cuda.synchronize()  # a sampler looks at each token

        return Step(decode, torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    for _ in range(3):
        token()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        token()
    return Step(graph.replay, torch.cuda.synchronize)


def fill(kind: str, most_mib: int) -> float:
    """Return the MiB of tensors that fit, or for cublas those of a matmul's results.

    Raises:
        ImportError: There is no PyTorch.
    """
    torch = _import()
    if kind == "cublas":
        make_step("matmul").run()
        torch.cuda.synchronize()
        return float(torch.cuda.memory_reserved()) / _MIB
    tensors: list[Any] = []
    try:
        while len(tensors) * _PIECE_MIB < most_mib:
            tensors.append(torch.empty(_PIECE_MIB * _MIB, device="cuda", dtype=torch.uint8))
    except torch.cuda.OutOfMemoryError:
        pass
    return float(len(tensors) * _PIECE_MIB)


def _make_decoder(torch: Any) -> Callable[[], object]:
    """Return one step of a small decoder at batch 1: some two hundred short kernels."""
    layers = torch.nn.Sequential(
        *(
            torch.nn.Sequential(
                torch.nn.LayerNorm(_WIDTH),
                torch.nn.Linear(_WIDTH, 4 * _WIDTH),
                torch.nn.GELU(),
                torch.nn.Linear(4 * _WIDTH, _WIDTH),
            )
            for _ in range(_LAYERS)
        )
    ).to(device="cuda", dtype=torch.bfloat16)
    state = torch.randn(1, _WIDTH, device="cuda", dtype=torch.bfloat16)

    def token() -> object:
        with torch.no_grad():
            return layers(state)

    return token


def _import() -> Any:
    return importlib.import_module("torch")
