"""The committed generated code is what the .proto files say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_generated_code_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="only with the development requirements")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    module.generate(tmp_path)

    fresh = {path.name: path.read_text() for path in (tmp_path / "hami_dra/_pb").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "hami_dra/_pb").glob("*_pb2.py*")}
    assert committed == fresh
