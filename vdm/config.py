"""Checks a composed configuration before anything is imported or built: keys, types, ranges, then the parts together.

Every `_target_` node is held against the signature of what it names, read from source. What concerns several groups at
once is written in the configuration itself, as `checks`: light functions that get the numbers they compare.
"""

from __future__ import annotations

import ast
import importlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from vdm.bounds import BOUNDS
from vdm.errors import ConfigError, suggest
from vdm.signature import NotFound, signature

INTERPOLATION = re.compile(r"\$\{(\w[\w.]*)\}")
HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}

# A configuration can come out of somebody's checkpoint: only these may be named by it.
ALLOWED_TARGETS = ("vdm.", "data.", "dysen.", "torch.optim.", "torch.nn.", "pytorch_lightning.")
FORBIDDEN_TARGETS = ("torch.nn.modules.module.Module.load", "vdm.launch", "vdm.checkpoint.")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain Python, every interpolation replaced."""
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key or error).split()[-1]
        raise ConfigError("a value is required here", key=key, got="???", remedy=f"give it: {key}=<value>") from None
    except (InterpolationKeyError, InterpolationResolutionError) as error:
        reason = str(error.msg or error).splitlines()[0]
        raise ConfigError("a value refers to something that is not there", key=error.full_key, got=reason) from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], key=str(error.full_key or "")) from None


def check(cfg: DictConfig, known: Collection[str]) -> None:
    """Raise ConfigError for the first thing wrong, under the key a user would change. `known` are the top-level keys."""
    for key in cfg:
        if key not in known:
            remedy = suggest(str(key), known) or f"remove +{key}"
            raise ConfigError(
                "this is not a setting", key=str(key), got=f"{key}={cfg[key]}", allowed=sorted(known), remedy=remedy
            )
    try:
        check_resolved(resolve(cfg))
    except ConfigError as error:
        origin = key_of_origin(cfg, error.key)
        if origin == error.key:
            raise
        remedy = error.remedy.replace(error.key, origin)
        raise ConfigError(error.what, key=origin, got=error.got, allowed=error.allowed, remedy=remedy) from None


def key_of_origin(cfg: DictConfig, key: str) -> str:
    """Follows interpolations: what is wrong with `stage.autoencoder.stride` is to be mended at `autoencoder.stride`."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        node = OmegaConf.select(cfg, ".".join(parts[: count - 1])) if count > 1 else cfg
        if not OmegaConf.is_dict(node) or parts[count - 1] not in node:
            return key
        raw = node._get_node(parts[count - 1])
        text = raw._value() if raw is not None and raw._is_interpolation() else None
        if text is not None and (match := INTERPOLATION.fullmatch(text)):
            return key_of_origin(cfg, ".".join([match[1], *parts[count:]]))
    return key


def check_resolved(config: Mapping[str, Any]) -> None:
    """The same for a configuration whose interpolations have been replaced."""
    for key, value in config.items():
        if key not in ("hydra", "checks"):
            _check_node(value, key)
    for name, node in (config.get("checks") or {}).items():
        if node is not None:
            _check_node(node, f"checks.{name}")
    for node in (config.get("checks") or {}).values():
        if node is not None:
            call_check(node)


def call_check(node: Mapping[str, Any]) -> None:
    """Run one light check: a function of this project, by dotted path."""
    module, _, name = node["_target_"].rpartition(".")
    function = getattr(importlib.import_module(module), name)
    function(**{key: value for key, value in node.items() if key not in HYDRA_KEYS})


def check_target(target: Any, key: str) -> None:
    """Only code on the allow list may be named by a configuration."""
    allowed = isinstance(target, str) and target.startswith(ALLOWED_TARGETS)
    if not allowed or target.startswith(FORBIDDEN_TARGETS) or "._" in target:
        raise ConfigError(
            "this code may not be named by a configuration",
            key=f"{key}._target_",
            got=target,
            allowed=[prefix + "*" for prefix in ALLOWED_TARGETS],
        )


def _check_node(node: Any, key: str) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, key)
        for name, value in node.items():
            _check_node(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for position, value in enumerate(node):
            _check_node(value, f"{key}[{position}]")


def _check_call(node: Mapping[str, Any], key: str) -> None:
    target = node["_target_"]
    check_target(target, key)
    try:
        accepted = signature(target)
    except NotFound as error:
        raise ConfigError(f"nothing is found under this name: {error}", key=f"{key}._target_", got=target) from None
    if accepted is None:
        return
    given = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    who = "this setting" if key.startswith("checks.") else target.rpartition(".")[2]  # nobody knows the names of checks
    for name, value in given.items():
        if name not in accepted.parameters:
            if accepted.open:
                continue
            raise ConfigError(
                f"{target.rpartition('.')[2]} has no setting {name!r}",
                key=f"{key}.{name}",
                got=f"{name}={value}",
                allowed=sorted(accepted.parameters),
                remedy=suggest(name, accepted.parameters) or "remove it",
            )
        if problem := type_problem(value, accepted.parameters[name]):
            raise ConfigError(
                f"{who} cannot take this value",
                key=f"{key}.{name}",
                got=f"{value!r} ({type(value).__name__})",
                allowed=problem,
                remedy=f"set {key}.{name}=<{problem}>",
            )
    absent = accepted.required - given.keys()
    if absent and not node.get("_partial_"):
        name = sorted(absent)[0]
        raise ConfigError(f"{who} needs a value", key=f"{key}.{name}", remedy=f"{key}.{name}=<value>")


def type_problem(value: Any, annotation: str | None) -> str | None:
    """What would have been right, or None when the value fits or the annotation is beyond plain values."""
    if annotation is None:
        return None
    try:
        node = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return None
    return None if _fits(value, node) is not False else _words(node)


def _fits(value: Any, node: ast.expr) -> bool | None:
    """True, False, or None where the annotation is a class this check does not know."""
    if isinstance(node, ast.BinOp):  # X | Y
        sides = (_fits(value, node.left), _fits(value, node.right))
        return True if True in sides else (None if None in sides else False)
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # a quoted annotation
            return _fits(value, ast.parse(node.value, mode="eval").body)
        return value is None if node.value is None else None
    if isinstance(node, ast.Subscript):
        return _fits_generic(value, node)
    name = ast.unparse(node).split(".")[-1]
    if name in BOUNDS:
        base, test, _ = BOUNDS[name]
        return _is(value, base) and test(value)
    plain = {
        "int": int,
        "float": float,
        "bool": bool,
        "str": str,
        "Path": str,
        "list": list,
        "tuple": list,
        "dict": Mapping,
    }
    if name in plain:
        return _is(value, plain[name])
    return (
        None
        if value is None or isinstance(value, Mapping | list) or name in ("Any", "object")
        else _unknown(name, value)
    )


def _unknown(name: str, value: Any) -> bool | None:
    """A plain number or string can never be one of our classes; for other annotations we do not know."""
    return False if name in ("Callable", "Optimizer", "Module", "VideoAutoencoder") else None


def _fits_generic(value: Any, node: ast.Subscript) -> bool | None:
    name = ast.unparse(node.value).split(".")[-1]
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return value in [part.value for part in parts if isinstance(part, ast.Constant)]
    if name == "Optional":
        return True if value is None else _fits(value, parts[0])
    if name == "Union":
        answers = [_fits(value, part) for part in parts]
        return True if True in answers else (None if None in answers else False)
    if name in ("list", "List", "Sequence", "Iterable", "tuple", "Tuple"):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        fixed = name in ("tuple", "Tuple") and not (len(parts) == 2 and ast.unparse(parts[1]) == "...")
        if fixed and len(parts) != len(value):
            return False
        each = parts if fixed else [parts[0]] * len(value)
        return all(_fits(v, part) is not False for v, part in zip(value, each, strict=True))
    if name in ("dict", "Mapping", "Dict"):
        return isinstance(value, Mapping)
    if name == "Callable":
        return isinstance(value, Mapping)
    return None


def _is(value: Any, base: type) -> bool:
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, base)


def _words(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp):
        return f"{_words(node.left)} or {_words(node.right)}"
    if isinstance(node, ast.Constant) and node.value is None:
        return "null"
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return " or ".join(str(ast.literal_eval(part)) for part in parts)
    name = ast.unparse(node)
    plain = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "Path": "a path"}
    if name.split(".")[-1] in BOUNDS:
        return BOUNDS[name.split(".")[-1]][2]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "tuple":
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return "[" + ", ".join(_words(part) for part in parts) + "]"
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("list", "Sequence"):
        return f"a list, each {_words(node.slice)}"
    return plain.get(name, name)
