"""Renders the tables of activations and of losses to Triton, C++, functions and modules: `python tools/generate.py [--check]`."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "pyflash"))  # the tables alone: pyflash imports what is made here

from activations import ACTIVATIONS, FUNCTIONS, Activation, rows_by  # noqa: E402
from losses import FUNCTIONS as LOSS_FUNCTIONS  # noqa: E402
from losses import LOSSES, Loss  # noqa: E402

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}


class Renderer:
    """One expression to one language: `functions` maps the table's names, `number` writes a constant, `parameter` one of
    the row's, `last` is what a function takes after its arguments; `tensors` are the names of what is computed with."""

    def __init__(
        self,
        functions: dict[str, str],
        number: str,
        parameter: str,
        last: dict[str, list[str]] | None = None,
        tensors: tuple[str, ...] = ("x", "y", "dy", "ddx"),
    ):
        self.functions, self.number, self.parameter, self.last = functions, number, parameter, last or {}
        self.tensors = tensors

    def __call__(self, expression: str) -> str:
        return self.render(ast.parse(expression, mode="eval").body, outermost=True)

    def render(self, node: ast.expr, outermost: bool = False) -> str:
        match node:
            case ast.Name(id=name) if name in self.tensors:
                return name
            case ast.Name():
                return self.parameter.format(node.id)
            case ast.Constant():
                return self.number.format(float(node.value))
            case ast.UnaryOp(op=ast.USub()):
                return f"-{self.render(node.operand)}"
            case ast.BinOp():
                text = f"{self.render(node.left)} {OPERATORS[type(node.op)]} {self.render(node.right)}"
                return text if outermost else f"({text})"
            case ast.Compare(ops=[op], comparators=[right]):
                return f"{self.render(node.left, True)} {COMPARISONS[type(op)]} {self.render(right, True)}"
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                arguments = [self.render(a, True) for a in node.args]
                return f"{self.functions[name]}({', '.join(arguments + self.last.get(name, []))})"
        raise ValueError(f"a table cannot use {ast.unparse(node)!r}")


# Of these there is a short form for results that are rounded to 16 bits.
COARSE = "exp", "expm1", "log1p", "tanh", "sigmoid", "gelu_sigmoid", "normal_cdf", "normal_pdf"

TRITON = Renderer(
    {name: f"primitives.{name}" for name in FUNCTIONS} | {"where": "tl.where", "abs": "tl.abs"},
    number="{!r}",
    parameter="{}",
    last={name: ["COARSE"] for name in COARSE},
)
CPP = Renderer(
    {name: name for name in FUNCTIONS} | {"where": "select"}, number="constant<V>({!r})", parameter="constant<V>({})"
)

LINE_LENGTH = 120  # of pyproject.toml
PARAMETERS = ("first", "second")  # as the kernels name the values of a row's, which they are handed


def names_of(row: Activation) -> list[str]:
    return [name for name, _ in row.parameters]


def triton_row(row: Activation) -> str:
    parameters = "".join(f"{name}, " for name in names_of(row))
    double_backward = (
        f"""

@triton.jit
def {row.name}_bwd_bwd(ddx, dy, {row.saves}, {parameters}COARSE: tl.constexpr):
    return {TRITON(row.double_backward)}
"""
        if row.double_backward
        else ""
    )
    return f"""

@triton.jit
def {row.name}_fwd(x, {parameters}COARSE: tl.constexpr):
    return {TRITON(row.forward)}


@triton.jit
def {row.name}_bwd(dy, {row.saves}, {parameters}COARSE: tl.constexpr):
    return {TRITON(row.backward)}
{double_backward}"""


def triton_file() -> str:
    def called(row: Activation, direction: str, arguments: str) -> str:
        first = arguments.partition(",")[0]
        values = [f"primitives.scalar({name}, {first}.dtype)" for name in PARAMETERS[: len(row.parameters)]]
        return f"{row.name}_{direction}({', '.join([arguments, *values, 'COARSE'])})"

    rows = list(ACTIVATIONS.items())
    curved = [(name, row) for name, row in rows if row.double_backward]
    choose = "".join(
        f"""

@triton.jit
def {direction}({arguments}, {", ".join(PARAMETERS)}, ACTIVATION: tl.constexpr, COARSE: tl.constexpr = False):
    # first, second: the values of the row's parameters. COARSE: the result will be rounded to 16 bits
"""
        + "".join(
            f'    {"if" if i == 0 else "elif"} ACTIVATION == "{name}":\n        return {called(row, direction, arguments)}\n'
            for i, (name, row) in enumerate(rows)
        )
        + "    else:\n"
        + f'        tl.static_assert({none}, "no such activation")\n        return {arguments.split(",")[0]}\n'
        for direction, arguments, rows, none in (
            ("fwd", "x", rows, 'ACTIVATION == ""'),
            ("bwd", "dy, saved", rows, 'ACTIVATION == ""'),
            ("bwd_bwd", "ddx, dy, saved", curved, "False"),  # what is saved's; dy's is bwd of ddx
        )
    )
    from_output = ", ".join(f'"{name}"' for name, row in ACTIVATIONS.items() if row.saves == "y")
    of_curved = ", ".join(f'"{name}"' for name, _ in curved)
    return (
        '"""Generated by tools/generate.py from pyflash/activations.py; do not edit."""\n\n'
        "import triton\nimport triton.language as tl\n\nfrom pyflash.kernels import primitives\n\n"
        + f"FROM_OUTPUT = ({from_output})  # those whose bwd takes y; of all others it takes x\n"
        + f"CURVED = ({of_curved})  # those that have a bwd_bwd\n"
        + "".join(map(triton_row, ACTIVATIONS.values()))
        + choose
    )


def struct_of(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def cpp_row(row: Activation) -> str:
    struct = struct_of(row.name)
    members = f"  double {', '.join(names_of(row))};\n" if row.parameters else ""
    from_output, is_curved = (str(flag).lower() for flag in (row.saves == "y", bool(row.double_backward)))
    double_backward = (
        f"""
  template <class V>
  PF_MEMBER V double_backward(V ddx, V dy, V {row.saves}) const {{
    return {CPP(row.double_backward)};
  }}"""
        if row.double_backward
        else ""
    )
    return f"""
struct {struct} {{
  static constexpr bool kFromOutput = {from_output};  // what backward takes: y or x
  static constexpr bool kIsCurved = {is_curved};  // is there a double_backward
{members}  template <class V>
  PF_MEMBER V forward(V x) const {{
    return {CPP(row.forward)};
  }}
  template <class V>
  PF_MEMBER V backward(V dy, V {row.saves}) const {{
    return {CPP(row.backward)};
  }}{double_backward}
}};
"""


def cpp_file() -> str:
    cases = ""
    for i, row in enumerate(ACTIVATIONS.values()):
        struct = struct_of(row.name)
        values = ", ".join(f"p.{name}" for name in PARAMETERS[: len(row.parameters)])
        cases += f"    case {i}: return f({struct}{{{values}}});\n"
    return (
        "// Generated by tools/generate.py from pyflash/activations.py; do not edit.\n"
        + "".join(map(cpp_row, ACTIVATIONS.values()))
        + f"""
// Calls f with the activation that p names, its row in the table, which holds the values of its parameters.
template <class F>
PF_INLINE void for_activation(const Activation& p, F f) {{
  switch (p.row) {{
{cases}  }}
}}
"""
    )


def cpp_header() -> str:
    return f"""// Generated by tools/generate.py from pyflash/activations.py; do not edit.
#pragma once
#include <stdint.h>

constexpr int kActivations = {len(ACTIVATIONS)};

// An activation as every struct of parameters holds it: a row of the table, and the values of its parameters in the
// row's order; what it has not is 0.
struct Activation {{
  int32_t row;
  double {", ".join(PARAMETERS)};
}};
"""


def _meaning(rows: list[Activation], torchs: str) -> str:
    """The docstring of a function or a module."""
    first, *others = (row.meaning for row in rows)
    head, dot, source = first.partition(". ")
    words = [f"{head}, as {torchs}.", f"{source}." if dot else "", *(f"Or {meaning}." for meaning in others)]
    return " ".join(filter(None, words))


def call(indentation: int, function: str, arguments: str) -> list[str]:
    """Lines of a call, as the formatter breaks them."""
    line = f"{function}({arguments})"
    return [line] if len(line) <= LINE_LENGTH - indentation else [f"{function}(", f"    {arguments}", ")"]


def function(rows: list[Activation]) -> str:
    """A function of torch.nn.functional: the rows that its attribute tells apart, or its only one."""
    name, attribute = rows[0].function, rows[0].attribute
    arguments = "input: torch.Tensor"
    for parameter, default in rows[0].parameters:
        arguments += f", {parameter}: float" + ("" if default is None else f" = {default!r}")
    if attribute:
        arguments += f', *, {attribute[0]}: str = "{attribute[1]}"'
    if rows[0].inplace:
        arguments += ", inplace: bool = False"
    lines = [f"def {name}({arguments}) -> torch.Tensor:", f'    """{_meaning(rows, f"torch.nn.functional.{name}")}"""']
    for row in rows:
        keywords = "".join(f", {parameter}" for parameter in names_of(row))
        keywords += f', {attribute[0]}="{row.attribute[1]}"' if attribute and row is not rows[0] else ""
        keywords += ", inplace" if row.inplace else ""
        torchs = f"F.{name}"
        if row.torch_functions and not keywords:  # the builtin, without torch.nn.functional's Python around it
            torchs = f"torch.{row.torch_functions[0].__name__}"
        of_one = f"lambda x: {torchs}(x{keywords})" if keywords else torchs
        values = ", ".join(names_of(row)) + ("," if len(row.parameters) == 1 else "")
        values = f", ({values})" if values else ""
        serve = [
            f"if _{row.name}.holds(input):",
            f"    return {torchs}(input{keywords})",
            *call(
                8 if attribute else 4,
                "return activate",
                f'"{row.name}", input, {of_one}{values}{", inplace=inplace" if row.inplace else ""}',
            ),
        ]
        if attribute:
            serve = [f'if {attribute[0]} == "{row.attribute[1]}":', *(f"    {line}" for line in serve)]
        lines += [f"    {line}" for line in serve]
    if attribute:
        values = " or ".join(row.attribute[1] for row in rows)
        lines += [
            f'    raise RuntimeError(f"pyflash.{name}: {attribute[0]} argument must be either {values}, got'
            f' {{{attribute[0]}!r}}")'
        ]
    return "\n".join(lines)


def functions_file() -> str:
    functions = rows_by("function")
    names = "".join(f'    "{name}",\n' for name in sorted(functions))
    return (
        '"""Generated by tools/generate.py from pyflash/activations.py; do not edit."""\n\n'
        "import torch\nimport torch.nn.functional as F\n\n"
        "from pyflash.ops.pointwise.activation import REFUSED, activate\n\n"
        f"__all__ = [\n{names}]\n\n"
        + "".join(f'_{name} = REFUSED["{name}"]\n' for name in ACTIVATIONS)
        + "".join(f"\n\n{function(rows)}\n" for rows in functions.values())
    )


def module(name: str, rows: list[Activation]) -> str:
    row = rows[0]
    keywords = "".join(f", self.{name}" for name in names_of(row))
    keywords += f", {row.attribute[0]}=self.{row.attribute[0]}" if row.attribute else ""
    keywords += ", self.inplace" if row.inplace else ""
    operations = ", ".join(f'"{row.name}"' for row in rows)
    return f"""

@twin({operations})
class {name}(torch.nn.{name}):
    \"\"\"{_meaning(rows, f"torch.nn.{name}")}\"\"\"

    def forward(self, input: Tensor) -> Tensor:
        return F.{row.function}(input{keywords})
"""


def modules_file() -> str:
    modules = rows_by("module")
    names = "".join(f'    "{name}",\n' for name in sorted(modules, key=lambda name: (not name.isupper(), name)))
    return (
        '"""Generated by tools/generate.py from pyflash/activations.py; do not edit."""\n\n'
        "import torch\nfrom torch import Tensor\n\n"
        "import pyflash.functional as F\nfrom pyflash.nn._twins import twin\n\n"
        f"__all__ = [\n{names}]\n" + "".join(map(module, modules, modules.values()))
    )


# ---- losses: the parameter of a row is handed on as one number, `parameter` ----

LOSS_TENSORS = "x", "t", "p", "g"
TRITON_LOSS = Renderer(
    {name: f"functions.{name}" for name in LOSS_FUNCTIONS}
    | {name: f"primitives.{name}" for name in ("exp", "log1p", "sigmoid")}
    | {"where": "tl.where", "abs": "tl.abs", "log": "tl.log"},
    number="{!r}",
    parameter="parameter",
    tensors=LOSS_TENSORS,
)
CPP_LOSS = Renderer(
    {name: name for name in LOSS_FUNCTIONS} | {"where": "select", "log": "log_of_any"},
    number="constant<V>({!r})",
    parameter="constant<V>(parameter)",
    tensors=LOSS_TENSORS,
)


def triton_losses_file() -> str:
    def choose(name: str, arguments: str, of_row) -> str:
        rows = [(row.name, of_row(row)) for row in LOSSES.values() if of_row(row)]
        lines = [
            f'    {"elif" if i else "if"} LOSS == "{row}":\n        return {TRITON_LOSS(expression)}\n'
            for i, (row, expression) in enumerate(rows)
        ]
        head = f"\n\n@triton.jit\ndef {name}({arguments}, parameter, LOSS: tl.constexpr):\n"
        return head + "".join(lines) + '    else:\n        tl.static_assert(False, "no such loss")\n        return x\n'

    with_positives = ", ".join(f'"{row.name}"' for row in LOSSES.values() if row.has_pos_weight)
    return (
        '"""Generated by tools/generate.py from pyflash/losses.py; do not edit."""\n\n'
        "import triton\nimport triton.language as tl\n\n"
        "from pyflash.kernels import primitives\nfrom pyflash.kernels.loss import functions\n\n"
        f"WITH_POS_WEIGHT = ({with_positives},)  # those that read p\n"
        + choose("forward", "x, t, p", lambda row: row.forward)
        + choose("by_input", "g, x, t, p", lambda row: row.by_input)
        + choose("by_target", "g, x, t, p", lambda row: row.by_target)
    )


def cpp_loss(row: Loss) -> str:
    def member(name: str, arguments: str, expression: str) -> str:
        names = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)}
        taken = ", ".join(f"V {a}" if a in names else "V" for a in arguments.split())
        return (
            f"  template <class V>\n  PF_MEMBER V {name}({taken}) const {{\n    return {CPP_LOSS(expression)};\n  }}\n"
        )

    members = member("forward", "x t p", row.forward) + member("by_input", "g x t p", row.by_input)
    if row.by_target:
        members += member("by_target", "g x t p", row.by_target)
    has_target, has_positives = (str(flag).lower() for flag in (bool(row.by_target), row.has_pos_weight))
    return f"""
struct {struct_of(row.name)} {{
  static constexpr bool kHasByTarget = {has_target};  // is there a by_target
  static constexpr bool kHasPosWeight = {has_positives};  // is p read
{"  double parameter;" + chr(10) if row.parameter else ""}{members}}};
"""


def cpp_losses_file() -> str:
    cases = ""
    for i, row in enumerate(LOSSES.values()):
        cases += f"    case {i}: return f({struct_of(row.name)}{{{'parameter' if row.parameter else ''}}});\n"
    return (
        "// Generated by tools/generate.py from pyflash/losses.py; do not edit.\n"
        + "".join(map(cpp_loss, LOSSES.values()))
        + f"""
// Calls f with a row of the table, which holds the value of its parameter.
template <class F>
PF_INLINE void for_loss(int32_t row, double parameter, F f) {{
  switch (row) {{
{cases}  }}
}}
"""
    )


def cpp_losses_header() -> str:
    return f"""// Generated by tools/generate.py from pyflash/losses.py; do not edit.
#pragma once

constexpr int kLosses = {len(LOSSES)};
"""


OUTPUTS = {
    "kernels/pointwise/activations.py": triton_file,
    "csrc/common/activations.inc": cpp_file,
    "csrc/common/activation.h": cpp_header,
    "pyflash/ops/pointwise/functions.py": functions_file,
    "pyflash/nn/_activations.py": modules_file,
    "kernels/loss/rows.py": triton_losses_file,
    "csrc/common/losses.inc": cpp_losses_file,
    "csrc/common/losses.h": cpp_losses_header,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when a file is not what the table gives"
    )
    check = parser.parse_args().check
    stale = [
        name for name, render in OUTPUTS.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != render()
    ]
    for name in stale:
        print(f"{'stale' if check else 'wrote'} {name}")
        if not check:
            (ROOT / name).write_text(OUTPUTS[name]())
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
