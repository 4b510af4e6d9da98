"""Signatures read from source text: what a `_target_` accepts, without importing it.

Importing the training stack takes ten seconds; a misspelt key must be reported in one. So a dotted path is followed to
its file, through re-exports and base classes, and the constructor is read with `ast`.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Signature:
    """Parameter names with the source text of their annotations; `open` when any further keyword is taken."""

    parameters: dict[str, str | None] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    open: bool = False


class NotFound(Exception):
    """The dotted path leads nowhere; the message says how far it goes."""


def signature(target: str) -> Signature | None:
    """Signature of a class or function by dotted path, None when it is not Python source."""
    module, _, name = target.rpartition(".")
    file = _module_file(module)
    if file is None:
        return None
    return _read(file, name, target)


@lru_cache(maxsize=512)
def _module_file(module: str) -> Path | None:
    """File of a module, located without importing any package above it; None for extension modules."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise NotFound(f"no module named {top!r}")
    path = Path(spec.origin)
    for depth, part in enumerate(rest):
        folder = path.parent
        if path.name == "__init__.py" and (folder / part / "__init__.py").exists():
            path = folder / part / "__init__.py"
        elif path.name == "__init__.py" and (folder / f"{part}.py").exists():
            path = folder / f"{part}.py"
        elif path.name == "__init__.py" and list(folder.glob(f"{part}.*.so")):
            return None
        else:
            raise NotFound(f"{'.'.join([top, *rest[:depth]])} has no module {part!r}")
    return path if path.suffix == ".py" else None


@lru_cache(maxsize=256)
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _read(file: Path, name: str, target: str, depth: int = 0) -> Signature | None:
    if depth > 8:
        return None
    found = _definition(file, name)
    if found is None:
        raise NotFound(f"{file.stem if file.stem != '__init__' else file.parent.name} has no {name!r}")
    if isinstance(found, tuple):  # imported there from elsewhere
        module, original = found
        origin = _module_file(module)
        return None if origin is None else _read(origin, original, target, depth + 1)
    if isinstance(found, ast.FunctionDef):
        return _of_function(found, skip_first=False)
    if not isinstance(found, ast.ClassDef):
        return None
    return _of_class(found, file, target, depth)


def _of_class(node: ast.ClassDef, file: Path, target: str, depth: int) -> Signature | None:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            own = _of_function(member, skip_first=True)
            if not own.open:
                return own
            above = _of_bases(node, file, target, depth)  # **options are handed on whole
            if above is None:
                return None
            merged = {**above.parameters, **own.parameters}
            return Signature(merged, (above.required - own.parameters.keys()) | own.required, above.open)
    if any(_tail(decorator) == "dataclass" for decorator in node.decorator_list):
        return _of_dataclass(node)
    return _of_bases(node, file, target, depth)


def _of_bases(node: ast.ClassDef, file: Path, target: str, depth: int) -> Signature | None:
    for base in node.bases:
        text = ast.unparse(base).split("[")[0]
        if text.split(".")[-1] in ("ABC", "Protocol", "Generic", "object"):
            continue
        try:
            return _read(file, text, target, depth + 1) if "." not in text else None
        except NotFound:
            return None
    return Signature()


def _of_dataclass(node: ast.ClassDef) -> Signature:
    fields = [m for m in node.body if isinstance(m, ast.AnnAssign) and isinstance(m.target, ast.Name)]
    names = {m.target.id: ast.unparse(m.annotation) for m in fields}
    return Signature(names, frozenset(m.target.id for m in fields if m.value is None))


def _of_function(node: ast.FunctionDef, *, skip_first: bool) -> Signature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = len(arguments.defaults)
    required = {a.arg for a in positional[: len(positional) - with_default or None]} if positional else set()
    if with_default and with_default == len(positional):
        required = set()
    required |= {a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None}
    everything = [*positional, *arguments.kwonlyargs]
    if skip_first and positional:
        required.discard(positional[0].arg)
        everything = everything[1:]
    names = {a.arg: ast.unparse(a.annotation) if a.annotation else None for a in everything}
    return Signature(names, frozenset(required), open=arguments.kwarg is not None)


def _definition(file: Path, name: str):
    """The node that defines a name at the top of a module, or (module, name) where it is imported from."""
    imported = None
    for node in _statements(_parse(file).body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    imported = _absolute(file, node), alias.name
    return imported


def _statements(body: list[ast.stmt]):
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)


def _absolute(file: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    folder = file.parent
    for _ in range(node.level - 1):
        folder = folder.parent
    parts = [node.module] if node.module else []
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def _tail(node: ast.expr) -> str:
    return ast.unparse(node).split("(")[0].split(".")[-1]
