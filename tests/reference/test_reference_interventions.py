"""The twin's gradients under interventions, by finite differences; and what its forced choices mean, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finite_differences import assert_operator_gradients, directional_derivative
from test_reference_model_gradients import BASE, inputs, random_parameters

from mom import Bias, Forbid, Force, MoMConfig, Patch, RandomRoutes, Scale, TopK, Zero
from mom.reference import Model, Output, forced_choices, router
from mom.reference.interventions import Bench
from mom.reference.routing_plan import RoutingPlan

ROUTES = (
    Force("ffn", to=[2, 0], rounds=[0]), Force("attn", to="SKIP", rounds=[0], tokens=[1]),
    Force("attn", to=1, rounds=[1], rows=[0]), Bias("ffn", {0: 1.5, "SKIP": -2.0}), Forbid("attn", [2], rounds=[1]),
)  # fmt: skip
PATCHES = (
    Scale("embedding", 0.75), Scale("block0.*.input", 0.5), Scale("block0.*.module?.output", 1.5),
    Patch("block0.round1.ffn.module?.output", 0.25, tokens=[0, 2]), Scale("block0.round0.*.output", -0.5),
    Zero("block0.round1.attn.output", rows=[1], tokens=[1]), Scale("final", 1.25), Patch("final", 0.5, tokens=[1]),
    Scale("hidden", 0.5),
)  # fmt: skip
STATE = (Scale("block0.*.state", 0.5), Patch("block0.round0.attn.state", 0.1, tokens=[1]))

CASES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    **{
        f"routes, {kind}": ({"router_type": kind}, ROUTES)
        for kind in ("naive-softmax", "gru", "gru-random-softmax")
    },
    "routes, weighted qkv, z-loss": (
        {"router_type": "gru-softmax", "weighted_qkv": True, "router_z_loss_coef": 0.3}, ROUTES,
    ),
    "routes, no SKIP, counts of used routes": ({"enable_pause": False, "balance_routes": "used"}, ROUTES[:3]),
    "a SKIP without a score": ({"router_type": "gru-softmax", "enable_pause": False}, (Force("ffn", "SKIP"),)),
    "random routes": ({"router_type": "naive", "chunks": 2}, (RandomRoutes("ffn", seed=1), RandomRoutes("attn"))),
    "top-1 and top-3": ({"router_type": "naive-softmax"}, (TopK(1), TopK(3, half="ffn", tokens=[0]))),
    "all paths": (
        {"router_type": "gru-softmax", "routing_all_possible_path": True, "router_z_loss_coef": 0.3},
        (Forbid("attn", [1]), Bias("ffn", {0: 0.5}), Scale("block0.*.module2.output", 0.5)),
    ),
    "all paths of raw scores": (
        {"router_type": "naive", "routing_all_possible_path": True}, (Forbid("attn", [1]), Forbid("ffn", ["SKIP"])),
    ),
    "patches": ({"router_type": "gru"}, (*PATCHES, *STATE)),
    "patches, weighted qkv, dropout": (
        {"router_type": "gru-softmax", "weighted_qkv": True, "attn_pdrop": 0.2, "resid_pdrop": 0.2}, (*PATCHES, *STATE),
    ),
    "everything": ({"router_type": "gru-softmax", "router_z_loss_coef": 0.3}, (*ROUTES, *PATCHES, *STATE)),
    "plain GPT-2": ({"chunks": 0}, (Scale("anchor*.output", 0.5), Scale("anchor1.attn.input", 0.25, tokens=[1]))),
}  # fmt: skip


class Shifted(Bench):
    """A bench that adds to the activation of one place, after its patches."""

    place, shift = "", np.zeros(0)

    def forward(self, name: str, rows: np.ndarray) -> np.ndarray:
        rows = super().forward(name, rows)
        return rows + self.shift if name == self.place else rows

    def modules_forward(self, where: str, parts: np.ndarray, plan: RoutingPlan) -> np.ndarray:
        parts = super().modules_forward(where, parts, plan)
        for m, slots in plan.modules():
            if self.place == f"{where}.module{m}.output":
                parts[slots] += self.shift[plan.token[slots]]
        return parts


def new_model(name: str) -> tuple[Model, dict[str, Any], np.random.Generator]:
    fields, rules = CASES[name]
    config = MoMConfig(**{**BASE, **fields})
    rng = np.random.default_rng(4)
    model = Model(config, random_parameters(config, rng))
    return model, {**inputs(config, rng), "interventions": rules, "capture": "*"}, rng


def choices(out: Output) -> list[np.ndarray]:
    return [r.index for half in out.routes.values() for rounds in half.values() for r in rounds]


def close(have: float, want: float, what: str) -> None:
    assert abs(have - want) <= 1e-6 * max(abs(want), 1e-4), f"{what}: {have} by backward, {want} by differences"


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_parameters(name: str) -> None:
    model, call, rng = new_model(name)
    decided = choices(model(**call))
    for parameter, gradient in model.backward().items():
        value = model.parameters[parameter]
        along = rng.standard_normal(value.shape)

        def loss(at: np.ndarray, parameter: str = parameter) -> float:
            model.parameters[parameter] = at
            out = model(**call)
            assert all(map(np.array_equal, choices(out), decided)), "a routing decision flipped: use another seed"
            return float(out.loss)

        want = directional_derivative(loss, value, along, 1e-4)
        model.parameters[parameter] = value
        close(float((gradient * along).sum()), want, parameter)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_captured_activations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, call, rng = new_model(name)
    out = model(**call)
    model.backward()
    decided, gradients = choices(out), dict(out.captured.gradients)
    assert set(gradients) == set(out.captured)
    monkeypatch.setattr("mom.reference.model.Bench", Shifted)
    for place, gradient in gradients.items():
        rows = gradient.reshape(-1, gradient.shape[-1])
        along = rng.standard_normal(rows.shape)

        def loss(at: np.ndarray, place: str = place) -> float:
            Shifted.place, Shifted.shift = place, at
            shifted = model(**call)
            assert all(map(np.array_equal, choices(shifted), decided)), "a routing decision flipped: use another seed"
            return float(shifted.loss)

        close(float((rows * along).sum()), directional_derivative(loss, np.zeros_like(rows), along, 1e-4), place)


def test_entries_of_forced_choices() -> None:
    scores = np.array([[0.1, 0.4, 0.2, 0.3, 0.0]])  # two modules, three choices that mean SKIP

    def chosen(forced: list[int], outputs: np.ndarray | None = None, **more: Any) -> tuple[list[int], list[float]]:
        given = np.log(np.maximum(scores, 1e-9)) if outputs is None else outputs
        index, weight = forced_choices.forward(scores, given, [forced], len(forced), 2, True, **more)
        return index[0].tolist(), weight[0].round(12).tolist()

    assert chosen([-1, -1]) == ([1, 3], [round(0.4 / 0.7, 12), round(0.3 / 0.7, 12)])
    assert chosen([0, -1]) == ([0, 1], [0.2, 0.8])
    assert chosen([-1, 1]) == ([3, 1], [round(0.3 / 0.7, 12), round(0.4 / 0.7, 12)])  # the best that is not listed
    assert chosen([0, -2]) == ([0, -2], [1.0, 0.0])
    assert chosen([-3, -2]) == ([3, -2], [1.0, 0.0])  # the best SKIP
    assert chosen([3, -3]) == ([3, 2], [0.6, 0.4])  # the best that is left
    assert chosen([2, 3, 4, -3]) == ([2, 3, 4, 5], [0.4, 0.6, 0.0, 0.0])  # none is left: one without a score
    assert chosen([4, 5]) == ([4, 5], [0.5, 0.5])  # the scores sum to 0
    assert chosen([0, 1, -2], scored=False) == ([0, 1, -2], [0.5, 0.5, 0.0])
    forbidden = np.array([[0.0, -np.inf, -np.inf, -np.inf, -np.inf]])
    assert chosen([-1, -1], forbidden) == ([0, -2], [1.0, 0.0])


@pytest.mark.parametrize("renormalise", [False, True])
def test_gradient_of_forced_weights(renormalise: bool, rng: np.random.Generator) -> None:
    forced = np.array([[-1, -1, 0], [2, -2, -1], [5, -2, -2], [-3, 1, -2], [4, 0, 5], [-2, -2, -2]])
    arguments = {"scores": rng.random((6, 5)) + 0.1}
    dweight = rng.standard_normal(forced.shape)
    index, weight = forced_choices.forward(arguments["scores"], arguments["scores"], forced, 3, 3, renormalise)

    def loss(given: Any) -> float:
        chosen, weight = forced_choices.forward(given["scores"], given["scores"], forced, 3, 3, renormalise)
        assert np.array_equal(chosen, index)
        return float((dweight * weight).sum())

    gradient = router.top_k_backward(dweight, arguments["scores"], index, weight, renormalise)
    assert_operator_gradients(loss, arguments, {"scores": gradient})
    assert not gradient[2].any() and not gradient[5].any()  # no choice with a score
