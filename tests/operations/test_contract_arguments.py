"""What every function of support/calls.py must do with its arguments: bad ones are refused by name, arrays of any make
are taken, results beyond all memory are an exception."""

import inspect
import re
import sys

import numpy as np
import pytest
from support import cases
from support.calls import CALLS, array_arguments, bits, flat
from support.contract import without
from support.refusals import OPTIONS, assert_refused, bad_array, bad_indices, bad_offsets

import fwm_py

every_call = pytest.mark.parametrize("call", CALLS, ids=str)
every_packing_call = pytest.mark.parametrize("call", [call for call in CALLS if call.packs], ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# --- names ---------------------------------------------------------------------------------------------------------


def test_calls_have_names():
    names = [str(call) for call in CALLS]
    assert len(set(names)) == len(names)
    causal = [call for call in CALLS if "not causal" not in str(call)]
    assert all(call.packs == ("cu_seqlens" in call.parameters) for call in causal)


@every_call
def test_functions_are_documented(call):
    assert inspect.getdoc(call.function)
    parts = call.function.__module__.split(".")  # what is common to the functions stands in the module, or its package
    modules = [sys.modules[".".join(parts[:n])] for n in range(2, len(parts) + 1)]
    documentation = "".join(module.__doc__ for module in modules) + inspect.getdoc(call.function)
    assert all(re.search(rf"\b{name}\b", documentation) for name in call.parameters)
    assert all(p.annotation is not inspect.Parameter.empty for p in call.parameters.values())
    assert inspect.signature(call.function).return_annotation is not inspect.Signature.empty


@every_call
def test_missing_and_unknown_arguments(call):
    good = call.good()
    for name, parameter in call.parameters.items():
        if parameter.default is inspect.Parameter.empty:
            with pytest.raises(TypeError, match=name):
                call({other: value for other, value in good.items() if other != name})
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            positional = [p for p in call.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
            with pytest.raises(TypeError, match="positional"):
                call.function(*(good.get(p.name) for p in positional), None)
    with pytest.raises(TypeError, match="surprise"):
        call({**good, "surprise": 1})


def test_core_takes_names_alone():
    for function in (fwm_py._core.norm_forward, fwm_py._core.convolution_forward):
        with pytest.raises(TypeError):
            function(np.ones((1, 2, 3)), np.ones(3), np.ones((1, 2, 3)))


# --- bad arguments -------------------------------------------------------------------------------------------------


def is_leaders_business(call, name, array, given):
    """Whether what is given for the array that leads is good by itself, so that another array is blamed."""
    if name != call.leads or isinstance(given, (np.ma.MaskedArray, list)):
        return False
    if getattr(given, "dtype", None) == np.float16:
        return call.function.__module__.startswith("fwm_py.rules") and np.ndim(given) == array.ndim
    any_axes = "_map" in call.function.__module__ or call.function.__module__.endswith("norm")
    return np.ndim(given) > 0 if any_axes else np.ndim(given) == array.ndim


@every_call
def test_bad_arrays(call):
    good = call.good()
    call(good)
    for name, array, put in array_arguments(call, good):
        of_other_size = {np.concatenate([array] * 2, axis=axis).shape for axis in call.gives.get(name, ())}
        for given, exception in bad_array(array):
            if given is None and name in call.optional:
                continue
            is_half = getattr(given, "dtype", None) == np.float16
            if (exception is ValueError or is_half) and (
                is_leaders_business(call, name, array, given) or getattr(given, "shape", None) in of_other_size
            ):
                continue
            assert_refused(lambda: call(put(given)), name, exception)
        assert_refused(lambda: call(put([[1.0], [1.0, 2.0]])), name, ValueError)
        floats = [name for name, *_ in array_arguments(call, without(good, "omega"))]  # which is converted
        if name in floats and len(floats) > 1:
            others = sorted((other for other in floats if other != call.leads), key=lambda other: other in ("do", "dy"))
            blamed = others[0] if name == call.leads else name
            with pytest.raises(TypeError, match=rf"^{blamed}\b.*: got .*, expected .*, as {call.leads} has"):
                call(put(array.astype(np.float32)))


@every_call
def test_empty_sizes(call):
    good = call.good()
    leading = [(call.leads, good[call.leads].ndim - 1)]
    for name, axis in [*leading, *((name, axis) for name, axes in call.gives.items() for axis in axes)]:
        if name in good:
            empty = np.take(good[name], [], axis=axis)
            assert_refused(lambda: call(good | {name: empty}), "v" if (name, axis) == ("k", 1) else name, ValueError)


@every_call
def test_bad_options(call):
    good = call.good()
    for name in OPTIONS.keys() & call.parameters.keys():
        for given, exception in OPTIONS[name]:
            assert_refused(lambda: call({**good, name: given}), name, exception)
        if call.parameters[name].default is not None and (None, TypeError) not in OPTIONS[name]:
            assert_refused(lambda: call({**good, name: None}), name, TypeError)
    for name in {"values", "key_lengths"} & good.keys():
        below = 5 if name == "values" else good["k"].shape[1] + 1
        for given, exception in bad_indices(good[name], below) if good[name] is not None else ():
            if given is not None or name == "values":
                assert_refused(lambda: call({**good, name: given}), name, exception)


@every_call
def test_numbers_that_float32_cannot_hold(call):
    for name in {"scale", "eps"} & call.parameters.keys():
        for given in (1e39, -1e39, 1e-60):
            assert_refused(lambda: call(call.good(np.float32) | {name: given}), name, ValueError)
        for given in (1e39, 1e-60):
            made = flat(call(call.good() | {name: given}))
            assert "lse" in call.good() or all(np.isfinite(array).all() for array in made)  # lse is of another scale


@every_packing_call
def test_bad_cu_seqlens(call):
    good = call.good(packed=True)
    call(good)
    for given, exception in bad_offsets(good["cu_seqlens"]):
        assert_refused(lambda: call(good | {"cu_seqlens": given}), "cu_seqlens", exception)
    assert_refused(lambda: call(call.good() | {"cu_seqlens": [0, 2, 3]}), "cu_seqlens", ValueError)  # of two rows
    for name in [name for name in ("initial_state", "dfinal_state") if good.get(name) is not None]:
        assert_refused(lambda: call(good | {"cu_seqlens": [0, 4, 6]}), name, ValueError)
        good[name] = None


# --- arrays of any make --------------------------------------------------------------------------------------------


def unmasked(array):
    return np.ma.array(array, mask=False)


@every_dtype
@pytest.mark.parametrize(
    "call, packed", [(call, packed) for call in CALLS for packed in (False, True)[: 1 + call.packs]], ids=str
)
def test_arrays_of_any_make(call, packed, dtype):
    good = call.good(dtype, packed)
    before, expected = bits([array for _, array, _ in array_arguments(call, good)]), bits(call(good))
    for _, array, put in array_arguments(call, good):
        for make in (*cases.MAKES, unmasked):
            given = make(array)
            inside = given.tobytes()
            assert bits(call(put(given))) == expected
            assert given.tobytes() == inside
        if dtype == np.float64:
            assert bits(call(put(array.tolist()))) == expected
    for make in (*cases.MAKES, unmasked):
        every = {name: make(a) if isinstance(a, np.ndarray) else a for name, a in good.items()}
        inside = [a.tobytes() for a in every.values() if isinstance(a, np.ndarray)]
        assert bits(call(every)) == expected
        assert [a.tobytes() for a in every.values() if isinstance(a, np.ndarray)] == inside
    assert bits([array for _, array, _ in array_arguments(call, good)]) == before


@every_packing_call
def test_cu_seqlens_of_any_integers(call):
    good = call.good(packed=True)
    expected, offsets = bits(call(good)), good["cu_seqlens"]
    makes = (cases.strided, cases.swapped_bytes, cases.read_only, cases.backwards, cases.unaligned)
    for given in (*map(offsets.astype, "bBhHiIqQ"), offsets.tolist(), *(make(offsets) for make in makes)):
        assert bits(call(good | {"cu_seqlens": given})) == expected


# --- memory --------------------------------------------------------------------------------------------------------


@every_call
@pytest.mark.skipif(sys.maxsize < 2**40, reason="sizes of 64 bits")
def test_results_beyond_all_memory(call):
    for arguments in call.beyond():
        with pytest.raises((MemoryError, ValueError)):
            call(arguments)
