"""`python -m pyflash info` and `explain`: what this machine has, and who serves which operation, or why not."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

import pyflash
from pyflash.activations import ACTIVATIONS
from pyflash.auto import conv, embedding, pointwise, pool, processor, resample, softmax, tables
from pyflash.ops.core import backends
from pyflash.ops.core.backends import OPERATIONS, ORDER


def info() -> dict:
    """Versions, processor, instruction sets, devices, and each backend with the reason where it is missing."""
    facts = {
        "pyflash": pyflash.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor.name(),
        "threads": torch.get_num_threads(),
        "cuda device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backends": {name: _state_of(name) for name in ORDER},
    }
    if not backends.MISSING["cpu"]:
        from pyflash import _cpu

        facts["instruction set"] = _cpu.isa()
        facts["instruction sets"] = {
            name: "ready" if built and supported else "not in this build" if supported else "not on this processor"
            for name, built, supported in _cpu.isas()
        }
    return facts


def _state_of(backend: str) -> str:
    if backends.MISSING[backend] or backend != "cuda":
        return backends.MISSING[backend] or "ready"
    if backends.CUDA_ON_HOST:
        return "ready, on CPU tensors, for tests (PYFLASH_CUDA_HOST=1)"
    archs = backends.cuda_module().ARCHS.split()
    reason = backends.why_not("cuda", "cuda").removeprefix("cuda: ")  # no driver, an old one, no GPU, or another
    return reason or f"ready, built for sm_{', sm_'.join(archs)}; measured on an H200 only"


def explain(device: str | None = None) -> dict:
    """Operation -> backend -> the dtypes it serves on `device`, or the reason it serves none; and this process's calls."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    table = {
        name: {backend: _cell(operation, backend, device) for backend in ORDER}
        for name, operation in sorted(OPERATIONS.items())
    }
    calls = [
        {"operation": operation, "backend": backend, "reason": reason, "calls": count}
        for (operation, backend, reason), count in sorted(pyflash.counts().items())
    ]
    return {
        "device": device,
        "operations": table,
        "calls": calls,
        "measured": measured(device, table),
        "benchmarks": benchmark_share(device),
    }


def measured(device: str, operations) -> dict:
    """What `auto` knows of this processor's kind: of each operation how many points its table has, measured on one."""
    family = _family(device)
    found = {name: 0 for name in operations}
    for (question, _), group in tables.table(family).items():
        for name in found:
            operation, kinds = asked_as(name)
            if question.operation == operation and question.kind in kinds:
                found[name] += len(group.lows)
    return {"family": family, "points": found}


def _family(device: str) -> str:
    try:
        return processor.family("cpu" if device == "cpu" else "triton")
    except ImportError:  # no native module
        return "other"


def asked_as(name: str) -> tuple[str, tuple[str, ...]]:
    """The operation and the kinds that `auto` looks up in a table for an operation of ours."""
    cell = name.removesuffix("_cell")
    if name in ACTIVATIONS:
        return "activation", (pointwise.MEASURED_AS[name],)
    if cell in ("lstm", "gru", "rnn"):
        return "rnn", (f"{cell} {'layers' if cell == name else 'cell'}",)
    if name in conv.MEASURED_AS:
        return conv.MEASURED_AS[name], conv.KINDS
    if name == "embedding_bag":
        return name, embedding.BAG_MODES
    if name in pointwise.CHANNEL_DROPOUTS:
        return "dropout2d", ("",)
    if name == "alpha_dropout":  # draws a number for each element, as serially in torch
        return "dropout", ("",)
    if name in softmax.MEASURED_AS:
        return softmax.MEASURED_AS[name], (softmax.ROWS, softmax.COLUMNS)
    if name == "cross_entropy":
        return name, (softmax.ROWS, softmax.COLUMNS)
    if name in pool.MEASURED_AS:
        return pool.MEASURED_AS[name], ("",)
    if name == "interpolate":
        return name, tuple(resample.LEAST)
    if name == "attention_weights":
        return "attention", ("weights",)
    return name, ("plain", "causal", "mask", "dropout") if name == "attention" else ("",)


NAMED = {"zen4": "zen4", "zen5": "zen5", "granite-rapids": "amx"}  # older results tell the family by their file's name


def benchmark_share(device: str) -> dict | None:
    """How many rows of the committed benchmark runs our kernels take under `auto`: of the runs on this processor's kind,
    or, where there is none, of the newest on another."""
    results = Path(pyflash.__file__).parent.parent / "benchmarks" / "results"  # in a checkout; not in a wheel
    runs = {}
    for path in sorted(results.glob(f"*{device}*.json"), reverse=True):
        rows = [row for row in json.loads(path.read_text()) if row["provider"] == "pyflash" and row["served"]]
        if rows:
            by_name = next((name for word, name in NAMED.items() if word in path.name), "")
            runs[path] = rows, rows[0]["machine"].get("family") or by_name
    here = [path for path, (_, family) in runs.items() if family == _family(device)]
    chosen = here or list(runs)[:1]
    rows = [row for path in chosen for row in runs[path][0]]
    return (
        {
            "files": [f"benchmarks/results/{path.name}" for path in chosen],
            "cpu": rows[0]["machine"]["cpu"],
            "same kind": bool(here),
            "rows": len(rows),
            "ours": sum(row["served"] != "torch" for row in rows),
        }
        if rows
        else None
    )


def _cell(operation, backend: str, device: str) -> dict:
    dtypes = operation.dtypes.get(backend, ())
    if not dtypes:
        return {"served": [], "reason": operation.unserved(backend, device, torch.float32), "note": ""}
    served = [str(d).removeprefix("torch.") for d in dtypes if not operation.unserved(backend, device, d)]
    reason = "" if served else operation.unserved(backend, device, dtypes[0])
    return {"served": served, "reason": reason, "note": operation.notes.get(backend, "")}


def print_info(facts: dict) -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, text in value.items():
                print(f"  {key:12} {text}")
        else:
            print(f"{name}: {value}")


SHORT = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}


def print_explain(facts: dict) -> None:
    columns = [name for name in ORDER if any(row[name]["served"] for row in facts["operations"].values())]
    print(f"{facts['device']} tensors; every operation also runs through torch")
    print(f"{'operation':28}" + "".join(f"{name:20}" for name in columns) + "measured on this kind of processor")
    for operation, row in facts["operations"].items():
        cells = [" ".join(SHORT[d] for d in row[name]["served"]) or "-" for name in columns]
        points = facts["measured"]["points"][operation]
        print(f"{operation:28}" + "".join(f"{cell:20}" for cell in cells) + (f"{points} points" if points else "-"))
    reasons: dict = {}
    for operation, row in facts["operations"].items():
        for name in ORDER:
            if not row[name]["served"]:
                reasons.setdefault((name, row[name]["reason"].replace(operation, "such")), []).append(operation)
    for (name, reason), operations in sorted(reasons.items()):
        everything = len(operations) == len(facts["operations"])
        print(f"{name}: {reason}" + ("" if everything else f" ({', '.join(operations)})"))
    for operation, row in facts["operations"].items():
        for name in ORDER:
            if row[name]["served"] and row[name]["note"]:
                print(f"{operation}: {row[name]['note']}")
    family = facts["measured"]["family"]
    if any(facts["measured"]["points"].values()):
        print(
            f"`auto` goes by the table of this kind of processor ({family}) where it has points, else by rules of thumb"
        )
    else:
        print(
            f"`auto` has no table of this kind of processor ({family}) and goes by rules of thumb;"
            " `python -m benchmarks auto`, in a checkout, writes one"
        )
    share = facts["benchmarks"]
    if share:
        where = "this kind of processor" if share["same kind"] else "another kind of processor"
        print(
            f"under `auto` our kernels take {share['ours']} of {share['rows']} benchmark rows, measured on {where}"
            f" ({share['cpu']}; {', '.join(share['files'])})"
        )
    else:
        print("under `auto`: the share of benchmark rows is known in a checkout with benchmarks/results")
    if facts["calls"]:
        print("calls of this process:")
        for row in facts["calls"]:
            print(f"  {row['operation']:28}{row['backend']:8}{row['calls']:8}  {row['reason']}")
