"""Prints the worst relative errors of the C model for every recorded case: `python tests/parity_report.py [level]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "model")]

import test_parity as parity  # noqa: E402

import mom  # noqa: E402
from parity_cases import case_names, load_case  # noqa: E402


def row(name: str) -> str:
    case = load_case(name)
    inputs, expected = case.inputs, case.expected
    if case.kind.endswith(("train_trace", "generate")):
        return f"| {name} | {case.kind}: asserted by tests/model/test_parity.py | | | |"
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


if __name__ == "__main__":
    if len(sys.argv) > 1:
        mom.set_cpu_level(sys.argv[1])
    print(f"level {mom.cpu_info()['level']}")
    print("| case | logits | loss | worst gradient | gradients that are rounding noise in the reference |")
    print("|---|---|---|---|---|")
    for case_name in case_names():
        print(row(case_name))
