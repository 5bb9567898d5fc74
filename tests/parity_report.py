"""Prints the worst relative errors of the C model for every recorded case: `python tests/parity_report.py [level]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "model")]

import numpy as np  # noqa: E402
import test_parity as parity  # noqa: E402

import mom  # noqa: E402
from parity_cases import Case, case_names, load_case  # noqa: E402


def row(name: str) -> str:
    case = load_case(name)
    inputs, expected = case.inputs, case.expected
    if case.kind.endswith("train_trace"):
        return trace_row(case)
    if case.kind.endswith("generate"):
        return generation_row(case)
    if case.vanilla_config is None:
        model = parity.build(case)
    else:
        vanilla = mom.MoM(case.vanilla_config)
        vanilla.load_state(case.vanilla, name)
        model = mom.MoM.from_vanilla(vanilla, case.config)
        for target, value in case.parameters.items():
            model.parameters[target] = value
    mask = inputs.get("attention_mask")
    out = model(inputs["input_ids"], inputs["labels"], mask, return_logits=True)
    real = slice(None) if mask is None or case.kind == "seqcls" else mask != 0
    logits = parity.relative_error(out.logits[real], expected["logits"][real])
    total = expected["loss"] if case.kind == "seqcls" else expected.get("total_loss", expected.get("lm_loss"))
    loss = abs(out.loss - float(total)) / abs(float(total))
    gradients = case.expected_gradients()
    if not gradients:
        return f"| {name} | {logits:.1e} | {loss:.1e} | | |"
    model.backward()
    errors = {n: parity.relative_error(model.gradients[n], want) for n, want in gradients.items()}
    own = case.meta.get("fp32_grad_rel_per_tensor", {})
    strict = {n: e for n, e in errors.items() if 10 * own.get(n, 0.0) <= parity.GRADIENT}
    loose = {n: e / (10 * own[n]) for n, e in errors.items() if n not in strict}
    worst_loose = f"{max(loose.values()):.2f} of its limit ({len(loose)} tensors)" if loose else ""
    return f"| {name} | {logits:.1e} | {loss:.1e} | {max(strict.values()):.1e} | {worst_loose} |"


def trace_row(case: Case) -> str:
    model, wanted, settings = parity.build(case), case.expected, case.meta["optimizer"]
    optimizer = mom.AdamW(
        model, lr=settings["lr"], betas=tuple(settings["betas"]), eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )  # fmt: skip
    labels = case.inputs.get("labels", case.inputs["input_ids"])
    losses, norms = [], []
    for step, ids in enumerate(case.inputs["input_ids"]):
        losses.append(model(ids, labels=labels[step]).lm_loss)
        model.zero_grad()
        model.backward()
        norms.append(mom.clip_grad_norm(model, settings["clip_grad_norm"]))
        optimizer.step()
    loss = np.max(np.abs(losses / wanted["lm_loss"] - 1.0))
    norm = np.max(np.abs(norms / wanted["grad_norm"] - 1.0))
    final = max(parity.relative_error(value, wanted[f"final/{n}"]) for n, value in model.parameters.items())
    return f"| {case.name} | | {loss:.1e} | norms {norm:.1e} | final parameters {final:.1e} |"


def generation_row(case: Case) -> str:
    model, tokens = parity.build(case), case.expected32["tokens"]
    new = case.expected32["new_tokens"].shape[1]
    same = np.array_equal(model.generate(tokens[:, :-new], new), tokens)
    logits = parity.relative_error(model(tokens, return_logits=True).logits, case.expected["logits_full"])
    return f"| {case.name} | {logits:.1e} | | | {'all tokens equal' if same else 'OTHER TOKENS'} |"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        mom.set_cpu_level(sys.argv[1])
    print(f"level {mom.cpu_info()['level']}")
    print("| case | logits | loss | worst gradient | gradients that are rounding noise in the reference |")
    print("|---|---|---|---|---|")
    for case_name in case_names():
        print(row(case_name))
