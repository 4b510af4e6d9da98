"""Lets torchvision be imported beside a torch without its binary operators (a CPU torch and a CUDA torchvision).

torchvision registers shape rules for two operators at import and fails when their schemas are absent, and with it
everything that imports it: open_clip, timm, torchmetrics, parts of transformers and diffusers, Lightning. Declaring the
schemas is enough; nobody here calls the operators. It happens at the moment something first imports torchvision, so a
command that never does pays nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from pathlib import Path

_declared: list = []  # the schemas live as long as this reference


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; it is asked first, and that is the moment."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            declare_operators()
        return


def watch() -> None:
    """Declare the operators before torchvision is imported, whoever imports it."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _BeforeTorchvision) for f in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


def declare_operators() -> str:
    """Load torchvision's own operators, or declare their schemas where its library does not load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return "absent"
    import torch

    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            break
        return "native"
    schemas = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(schemas)
    return "declared"
