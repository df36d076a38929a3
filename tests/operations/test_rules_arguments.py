"""Arguments of the rules beyond the contract: signatures, out, places of tokens, nothing, pairs, numbers of heads.

Everything follows from the rows of `_core.RULES` and the signatures of fwm_py.rules: a new row is tested here as it
comes.
"""

import inspect

import numpy as np
import pytest
from support.calls import RULE_BACKWARDS, RULE_CALLS, RULE_FORWARDS, RuleCall, bits, flat, forms
from support.refusals import assert_refused

import fwm_py
from fwm_py import _core, rules

every_call = pytest.mark.parametrize("call", RULE_CALLS, ids=str)
every_forward = pytest.mark.parametrize("call", RULE_FORWARDS, ids=str)
every_backward = pytest.mark.parametrize("call", RULE_BACKWARDS, ids=str)

# --- as the table says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", _core.RULES, ids=lambda row: row["function"])
def test_signatures_follow_the_table(row):
    options = {"scale", "initial_state", "state_v_first", "cu_seqlens", "method"}
    options |= {"normalize", "eps"} if row["normalizes"] else set()
    options |= {"qk_norm"} if row["has_qk_norm"] else set()
    options |= {"clamp_first"} if row["clamps"] else set()
    options |= {"causal", "key_lengths"} if row["function"] == "linear_attention" else set()
    forward = {"output_final_state", "state_indices", "return_states_every", "out"}
    for backward, first, own in ((False, [], forward), (True, ["do"], {"dfinal_state", "out"})):
        call = RuleCall(row, forms(row)[0][0], False, backward)
        kinds = {
            kind: [name for name, p in call.parameters.items() if p.kind == kind]
            for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        }
        assert kinds[inspect.Parameter.POSITIONAL_OR_KEYWORD] == first + call.arrays()
        assert set(kinds[inspect.Parameter.KEYWORD_ONLY]) == options | own
        assert len(call.parameters) == len(first + call.arrays()) + len(options | own)


def test_nothing_public_without_a_row():
    rows = {row["function"] + ending for row in _core.RULES for ending in ("", "_backward")}
    public = {name for name in rules.__all__ if inspect.isroutine(getattr(rules, name))}
    assert public == rows
    assert set(rules.__all__) <= set(fwm_py.__all__)


# --- out -----------------------------------------------------------------------------------------------------------


@every_forward
def test_the_state_in_place(call):
    """Decoding token by token into the state it came from equals decoding into new ones."""
    tokens = [call.good(T=1, seed=seed) for seed in range(3)]
    state = tokens[0]["initial_state"]
    kept = tuple(a.copy() for a in state) if call.normalize else state.copy()
    for token in tokens:
        o, state = call({**token, "initial_state": state})
        o_kept, returned = call({**token, "initial_state": kept, "out": (np.empty_like(o), kept)})
        assert all(a is b for a, b in zip(flat(returned), flat(kept), strict=True))
        assert bits((o, state)) == bits((o_kept, kept))


@every_forward
def test_out_in_the_gaps_of_a_strided_input(call):
    good = call.good(B=2, T=1)
    q, o = good["q"], call(good)[0]
    memory = np.zeros((2, 200))
    memory[:, : q[0].size] = q.reshape(2, -1)
    strided = memory[:, : q[0].size].reshape(q.shape)
    assert np.shares_memory(strided, memory)
    gap = memory.ravel()[100 : 100 + o.size].reshape(o.shape)
    result, _ = call({**good, "q": strided, "out": gap})
    assert result is gap and bits(result) == bits(call(good)[0])
    touching = memory.ravel()[201 - o.size : 201].reshape(o.shape)
    assert_refused(lambda: call({**good, "q": strided, "out": touching}), "out", ValueError)


# --- unusual arrays ------------------------------------------------------------------------------------------------


def in_a_projection(a):
    """As queries, keys and values of one product lie: between a token and the next there are other numbers."""
    around = np.full((*a.shape[:2], a[0, 0].size + 7), np.nan, a.dtype)
    around[..., 3:-4] = a.reshape(*a.shape[:2], -1)
    return around[..., 3:-4].reshape(a.shape)


def every_other_token(a):
    around = np.full((a.shape[0], 2 * a.shape[1], *a.shape[2:]), np.nan, a.dtype)
    around[:, ::2] = a
    return around[:, ::2]


def some_of_more_tokens(a):
    """The next sequence does not begin where this one ends."""
    around = np.full((a.shape[0], a.shape[1] + 3, *a.shape[2:]), np.nan, a.dtype)
    around[:, 1:-2] = a
    return around[:, 1:-2]


def every_other_head(a):
    around = np.full((*a.shape[:2], 2 * a.shape[2], *a.shape[3:]), np.nan, a.dtype)
    around[:, :, ::2] = a
    return around[:, :, ::2]


@every_call
@pytest.mark.parametrize("method", ["chunked", "recurrent"])
@pytest.mark.parametrize("B, T", [(2, 40), (1, 40), (3, 1), (1, 1)])
def test_tokens_inside_larger_arrays(call, B, T, method):
    good = call.good(B=B, T=T) | {"method": method}
    expected = bits(call(good))
    for make in (in_a_projection, every_other_token, some_of_more_tokens, every_other_head):
        given = {name: make(value) if name in (*call.arrays(), "do") else value for name, value in good.items()}
        assert all(given[name].base is not None for name in ("q", "k", "v"))
        before = bits([given[name].base for name in ("q", "k", "v")])
        assert bits(call(given)) == expected
        assert bits([given[name].base for name in ("q", "k", "v")]) == before


@every_call
def test_many_packed_sequences(call):
    """As many as do not fit into the room that a call has anyway: one token each, as rows of one token are."""
    rows = call.good(B=50, T=1)
    packed = {
        name: value.reshape(1, 50, *value.shape[2:]) if name in (*call.arrays(), "do") else value
        for name, value in rows.items()
    }
    result = flat(call({**packed, "cu_seqlens": np.arange(51)}))
    assert [a.tobytes() for a in result] == [a.tobytes() for a in flat(call(rows))]


@every_call
def test_defaults(call):
    good = call.good(K=4)
    scale = 1.0 if call.normalize else 0.5
    assert bits(call({**good, "scale": None})) == bits(call({**good, "scale": scale}))
    standard = {"qk_norm": None, "eps": 1e-6, "clamp_first": True, "cu_seqlens": None, "method": "chunked"}
    explicit = {**good, **{name: value for name, value in standard.items() if name in good}}
    assert bits(call({name: value for name, value in good.items() if name not in standard})) == bits(call(explicit))
    zeros = tuple(map(np.zeros_like, good["initial_state"])) if call.normalize else np.zeros_like(good["initial_state"])
    assert bits(call({**good, "initial_state": None}))[0] == bits(call({**good, "initial_state": zeros}))[0]


@every_forward
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}, {"B": 0, "T": 0}], ids=str)
def test_forward_of_nothing(call, sizes):
    good = call.good(**sizes)
    o, state = call(good)
    assert o.size == 0 and o.shape == (*good["v"].shape[:2], 4, 5)
    assert bits(state) == bits(good["initial_state"])
    assert not any(np.shares_memory(a, b) for a, b in zip(flat(state), flat(good["initial_state"]), strict=True))
    _, zeros = call({**good, "initial_state": None})
    assert [a.shape for a in flat(zeros)] == [a.shape for a in flat(state)] and not any(a.any() for a in flat(zeros))
    assert call({**good, "output_final_state": False})[1] is None


@every_backward
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}, {"B": 0, "T": 0}], ids=str)
def test_backward_of_nothing(call, sizes):
    good = call.good(**sizes)
    gradients = call(good)
    for name in call.arrays():
        assert getattr(gradients, "d" + name).shape == good[name].shape
    assert bits(gradients.dinitial_state) == bits(good["dfinal_state"])
    assert not any(a.any() for a in flat(call({**good, "dfinal_state": None}).dinitial_state))
    assert call({**good, "initial_state": None}).dinitial_state is None


@every_call
def test_no_sequences_at_all(call):
    good = call.good(B=1, T=0)
    nothing = [
        tuple(a[:0] for a in state) if call.normalize else state[:0]
        for state in (good["initial_state"], good.get("dfinal_state", good["initial_state"]))
    ]
    given = {
        **good,
        "cu_seqlens": [0],
        "initial_state": nothing[0],
        **({"dfinal_state": nothing[1]} if call.backward else {}),
    }
    assert all(a.size == 0 for a in flat(call(given)))


@every_backward
def test_gradients_are_named_as_the_inputs(call):
    good = call.good()
    gradients = call(good)
    assert gradients._fields == (*("d" + name for name in call.arrays()), "dinitial_state")
    assert [a.shape for a in flat(gradients)] == [good[name].shape for name in call.arrays()] + [
        a.shape for a in flat(good["initial_state"])
    ]
    assert all(a.dtype == np.float64 and a.flags.c_contiguous and a.flags.owndata for a in flat(gradients))


# --- bad arguments -------------------------------------------------------------------------------------------------


@every_call
def test_bad_pairs(call):
    good = call.good()
    for name in {"initial_state", "dfinal_state"} & good.keys():
        if call.normalize:
            S, z = good[name]
            for given, exception in (
                (S, TypeError),
                ([S, z], TypeError),
                ((S,), ValueError),
                ((S, z, z), ValueError),
                ((), ValueError),
                ((S, None), TypeError),
                ((z, S), ValueError),
            ):
                assert_refused(lambda: call({**good, name: given}), name, exception)
        else:
            assert_refused(lambda: call({**good, name: (good[name],)}), name, ValueError)  # an array of one axis more


@every_call
def test_empty_sizes_and_heads(call):
    good = call.good()
    for name in ("q", "k", "v"):
        for axis in (2, 3):
            empty = np.take(good[name], [], axis=axis)
            assert_refused(lambda: call({**good, name: empty}), name, ValueError)
    three = {name: np.concatenate([good[name], good[name]], axis=2)[:, :, :3] for name in ("q", "k", "v")}
    three["v"] = good["v"][:, :, :3]
    for name in three:  # HQ, H, HV are 2, 2, 4
        assert_refused(lambda: call({**good, name: three[name]}), "v" if name == "k" else name, ValueError)
    for HQ, H, HV in ((1, 1, 1), (2, 2, 6), (3, 1, 3), (6, 1, 3), (8, 2, 4), (4, 2, 4)):
        heads = flat(call(call.good(HQ=HQ, H=H, HV=HV)))[0].shape[2]
        assert heads == (HQ if call.backward else max(HQ, HV))
    for HQ, H, HV in ((1, 2, 4), (3, 2, 4), (6, 2, 4), (2, 4, 2), (2, 1, 4)):
        with pytest.raises(ValueError, match=r"^[qv]: got \d heads"):
            call(call.good(HQ=HQ, H=H, HV=HV))
