"""A record of torch.fx written out as one Python function, for `_remembered.run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from pyflash.nn._remembered import ERRORS, again


def code_of(nodes: list[Node], last_read: dict[Node, list[Node]]) -> Callable:
    """These as a function of (modules, forwards, *inputs); modules and forwards of the calls of modules, in their order.

    Args:
        last_read: of a node, what is read for the last time there.
    """
    names: dict[Node, str] = {}
    constants: dict[str, Any] = {"ERRORS": ERRORS, "again": again}

    def written(value) -> str:
        if isinstance(value, Node):
            return names[value]
        if isinstance(value, (tuple, list)):
            items = "".join(f"{written(item)}, " for item in value)
            return f"[{items}]" if isinstance(value, list) else f"({items})"
        if isinstance(value, dict):
            return "{" + "".join(f"{constant(key)}: {written(item)}, " for key, item in value.items()) + "}"
        if isinstance(value, slice):
            return f"slice({written(value.start)}, {written(value.stop)}, {written(value.step)})"
        return constant(value)

    def constant(value) -> str:
        constants[name := f"c{len(constants)}"] = value
        return name

    calls = 0
    inputs, lines = [], []
    for at, node in enumerate(nodes):
        names[node] = result = f"v{at}"
        given = [written(value) for value in node.args]
        given += [f"{name}={written(value)}" for name, value in node.kwargs.items()]
        arguments = ", ".join(given)
        if node.op == "placeholder":
            inputs.append(result)
        elif node.op == "output":
            lines.append(f"return {given[0]}")
        elif node.op == "call_module":
            lines += ["try:", f" {result} = f{calls}(m{calls}, {arguments})"]
            lines += ["except ERRORS:", f" {result} = again(f{calls}, m{calls}, {arguments})"]
            calls += 1
        elif node.op == "call_method":
            lines.append(f"{result} = {given[0]}.{node.target}({', '.join(given[1:])})")
        else:
            lines.append(f"{result} = {constant(node.target)}({arguments})")
        done = [names[read] for read in last_read[node] if node.op != "output"]
        if done:
            lines.append(f"del {', '.join(done)}")
    for letter, those in (("m", "modules"), ("f", "forwards")):
        lines.insert(0, f"[{', '.join(f'{letter}{at}' for at in range(calls))}] = {those}")
    body = "".join(f"\n    {line}" for line in lines)
    exec(f"def run(modules, forwards, {', '.join(inputs)}):{body}", constants)
    return constants["run"]
