"""A kind of router is described in three places: the core's table, `mom.routers` and the twin. They agree."""

import pytest

import mom
from mom import _core
from mom.reference.router_cells import CELLS
from mom.routers import KINDS, parameter_shapes


def test_the_core_has_the_same_kinds_in_the_same_order() -> None:
    core = [(name, recurrent) for name, recurrent, _ in _core.router_kinds()]
    assert core == [(kind.name, kind.recurrent) for kind in KINDS.values()]


def test_the_twin_has_a_cell_for_every_kind() -> None:
    assert set(CELLS) == set(KINDS)


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize(("name", "recurrent", "parameters"), _core.router_kinds(), ids=lambda value: str(value))
def test_parameters_have_the_same_names_and_shapes(
    name: str, recurrent: bool, parameters: tuple[str, ...], random: bool
) -> None:
    assert sorted(CELLS[name].names) == sorted(parameters)
    router_type = f"{name}-random" if random else name
    config = mom.MoMConfig.preset("demo", vocab_size=64, n_embd=32, router_dim=16, router_type=router_type)
    model = mom.MoM(config, seed=0)
    place = model.blocks[0].place
    for half in ("attn", "ffn"):
        shapes = parameter_shapes(config, half)
        assert tuple(shapes) == parameters
        for parameter, shape in shapes.items():
            assert model.parameters[f"transformer.h.{place}.mot_{half}.router.{parameter}"].shape == shape


@pytest.mark.parametrize(
    ("router_type", "kind"),
    [
        *((kind, kind) for kind in KINDS), *((f"{kind}-softmax", kind) for kind in KINDS),
        ("dev-gru-random", "gru-dev"),
    ],
)
def test_a_router_type_is_read_as_the_reference_reads_it(router_type: str, kind: str) -> None:
    assert mom.MoMConfig.preset("demo", router_type=router_type).router_kind == kind
