"""Signatures from source agree with the real ones, and values are held against them."""

import importlib
import inspect

import pytest

from vdm.config import type_problem
from vdm.signature import NotFound, signature

REAL = (
    "torch.optim.Adam",
    "torch.optim.lr_scheduler.OneCycleLR",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.loggers.WandbLogger",
    "vdm.stages.base.Stage",
    "vdm.video.encode_mp4",
    "vdm.callbacks.checkpoint.Checkpoint",
)


@pytest.mark.parametrize("target", REAL)
def test_equals_the_imported_signature(target):
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    named = {k for k, p in real.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    required = {k for k in named if real[k].default is inspect.Parameter.empty}
    found = signature(target)
    assert set(found.parameters) == named
    assert found.required == required


@pytest.mark.parametrize("target", ["nowhere.Thing", "vdm.nowhere.Thing", "vdm.video.nowhere", "torch.optim.Admw"])
def test_says_what_is_not_there(target):
    with pytest.raises(NotFound):
        signature(target)


def test_inherited_and_dataclass(tmp_path, monkeypatch):
    source = """
from dataclasses import dataclass
class Base:
    def __init__(self, *, a: int, b: str = "x"): ...
class Same(Base):
    pass
class More(Base):
    def __init__(self, *, c: float, **options): super().__init__(**options)
@dataclass(frozen=True)
class Data:
    x: int
    y: float = 1.0
"""
    (tmp_path / "sample_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert set(signature("sample_module.Same").parameters) == {"a", "b"}
    more = signature("sample_module.More")
    assert set(more.parameters) == {"a", "b", "c"}
    assert more.required == {"a", "c"}
    assert not more.open
    assert signature("sample_module.Data").required == {"x"}


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, "int", True),
        (1.5, "int", False),
        (True, "int", False),
        ("1", "int", False),
        (1, "float", True),
        (float("nan"), "float", False),
        (None, "int | None", True),
        ("x", "int | None", False),
        ("a", "Literal['a', 'b']", True),
        ("c", "Literal['a', 'b']", False),
        ([1, 2], "tuple[int, int]", True),
        ([1, 2, 3], "tuple[int, int]", False),
        ([1, "x"], "list[int]", False),
        ([1, 2, 3], "tuple[int, ...]", True),
        (0, "PositiveInt", False),
        (3, "PositiveInt", True),
        (-0.1, "NonNegativeFloat", False),
        (1.5, "Fraction", False),
        (0.5, "Fraction | None", True),
        ({"_target_": "x"}, "Callable[[int], str]", True),
        (3, "Callable[[int], str]", False),
        ("text", "Any", True),
        ({"a": 1}, "dict[str, int]", True),
        ("x", "Sequence[str]", False),
        (True, "bool", True),
        ("yes", "bool", False),
        ("anything", "SomeClass", True),
        ("datasets", "str | Path", True),
    ],
)
def test_values_against_annotations(value, annotation, fits):
    assert (type_problem(value, annotation) is None) == fits
