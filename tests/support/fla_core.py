"""fla-core's reference functions, by the paths of their files: the package itself needs Triton to be imported."""

import ast
import importlib.metadata
import importlib.util

import pytest


def path_of(rule, file):
    """Where fla/ops/<rule>/<file> is."""
    pytest.importorskip("einops")
    try:
        files = importlib.metadata.files("fla-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fla-core is not installed")
    return next(path.locate() for path in files if path.match(f"fla/ops/{rule}/{file}"))


def naive(rule, name):
    """A function of a rule's naive.py."""
    spec = importlib.util.spec_from_file_location(f"naive_{rule}", path_of(rule, "naive.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def naive_gate(rule, name):
    """A function of a rule's gate.py, whose other functions need a GPU compiler: it is taken out alone."""
    import torch

    tree = ast.parse(path_of(rule, "gate.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    names = {"torch": torch, "F": torch.nn.functional}
    exec(compile(tree, name, "exec", flags=__import__("__future__").annotations.compiler_flag), names)
    return names[name]
