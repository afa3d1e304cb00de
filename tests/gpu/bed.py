"""The machine that is measured, and what it lacks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hami_dra.testing.simgpu import A100, T4, write_cards
from tests.gpu.running import WorkerError, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gpu.setups import Setup


@dataclass(frozen=True, slots=True)
class Card:
    """The card that programs find first."""

    name: str
    uuid: str
    cuda: int
    mib: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is.

    Attributes:
        card: ``None`` if no program can use one.
        missing: What is missing, a sentence each; empty if nothing is.
        torch: Whether PyTorch can use the card.
    """

    card: Card | None
    missing: tuple[str, ...]
    torch: bool

    def note(self) -> str:
        """Return the sentence that stands above the figures."""
        if self.card is None:
            return f"Not measured yet: {'; '.join(self.missing)}."
        text = f"Measured on {self.card.name}, CUDA {self.card.cuda // 1000}."
        text += f"{self.card.cuda % 1000 // 10}."
        return f"{text} Not measured: {'; '.join(self.missing)}." if self.missing else text


def look(native: Setup, directory: Path) -> Machine:
    """Return what the machine has, as a program without any library finds it."""
    try:
        facts = ask({"what": "facts"}, native.environment(None, directory))
    except WorkerError as error:
        return Machine(None, (explain(str(error)),), torch=False)
    return judge_facts(facts)


def judge_facts(facts: dict[str, Any]) -> Machine:
    """Return the machine that a worker described."""
    card = Card(facts["name"], facts["uuid"], facts["cuda"], facts["mib"])
    missing = (facts["torch"],) if facts["torch"] else ()
    return Machine(card, missing, torch=not missing)


def explain(said: str) -> str:
    """Say in words of this page why no program can use a card."""
    if "libcuda.so.1" in said:
        return "there is no NVIDIA driver here (libcuda.so.1 is not found)"
    if "cuInit answered 100" in said:
        return "the driver finds no card (cuInit answered 100, CUDA_ERROR_NO_DEVICE)"
    return f"no program can use a card here ({said})"


@contextmanager
def simulate(build: Path) -> Iterator[dict[str, str]]:
    """Make simulated cards, and yield what programs need in their environment to find them."""
    with TemporaryDirectory(prefix="hami-dra-gpu-") as text:
        directory = Path(text)
        write_cards(directory, [A100, T4])
        for card in (A100, T4):
            (directory / f"nvidia{card.minor}").touch()
        yield {
            "LD_LIBRARY_PATH": str(build / "sim"),
            "VGPU_SIM_DIR": text,
            "VGPU_SIM_DEV": text,
        }
