"""The random streams, which must never change: recorded draws, NumPy, torch, and an oracle of Philox."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from fwm_py.random import MT19937, Philox

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "random_vectors.json").read_text())
SEEDS = (0, 1, 2, 12345, 2**32 - 1)
NORMAL_SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 32, 40, 600, 623, 1000, 4096)

# --- recorded draws -----------------------------------------------------------------------------------------------


def records(name):
    """The records of a draw as pytest parameters, named by their arguments."""
    skipped = ("values", "first", "last", "sha256")
    return [
        pytest.param(record, id="-".join(str(v) for k, v in record.items() if k not in skipped))
        for record in VECTORS[name]
    ]


def assert_recorded(draw, record, dtype):
    assert draw.dtype == dtype and draw.shape == (record["n"],)
    bits = draw.view(np.uint32).tolist()
    assert bits[: len(record["first"])] == record["first"]
    assert bits[len(bits) - len(record["last"]) :] == record["last"]
    assert hashlib.sha256(draw.astype(draw.dtype.newbyteorder("<")).tobytes()).hexdigest() == record["sha256"]


@pytest.mark.parametrize("record", records("uint32"))
def test_recorded_words(record):
    assert_recorded(MT19937(record["seed"]).uint32(record["n"]), record, np.uint32)


@pytest.mark.parametrize("record", records("uniform"))
def test_recorded_uniforms(record):
    draw = MT19937(record["seed"]).uniform(record["n"], record["low"], record["high"])
    assert_recorded(draw, record, np.float32)


@pytest.mark.parametrize("record", records("normal"))
def test_recorded_torch_normals(record):
    assert_recorded(MT19937(record["seed"]).normal(record["n"]), record, np.float32)


def test_a_zero_has_no_sign():
    """Element 656 of this seed has a radius of -0; torch adds its mean of 0 to it. (Recorded above, bit for bit.)"""
    draw = MT19937(52372).normal(1000)
    assert draw[656] == 0 and not np.signbit(draw[656])


@pytest.mark.parametrize("record", records("philox_normal"))
def test_recorded_philox_normals(record):
    generator = Philox(record["seed"])
    for _ in range(record["block"]):
        generator.normal(7)
    assert_recorded(generator.normal(record["n"]), record, np.float32)


@pytest.mark.parametrize("record", records("permutation"))
def test_recorded_permutations(record):
    draw = MT19937(record["seed"]).permutation(record["n"])
    assert draw.dtype == np.int64 and draw.tolist() == record["values"]


@pytest.mark.parametrize("record", records("choice"))
def test_recorded_choices(record):
    draw = MT19937(record["seed"]).choice(record["n"], record["size"], record["replace"])
    assert draw.dtype == np.int64 and draw.tolist() == record["values"]


@pytest.mark.parametrize("record", records("bounded"))
def test_recorded_bounded(record):
    generator = MT19937(record["seed"])
    assert [generator.bounded(record["max"]) for _ in record["values"]] == record["values"]


# --- NumPy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_numpys(seed):
    expected = np.random.RandomState(seed).randint(0, 2**32, size=2000, dtype=np.uint32)
    generator = MT19937(seed)
    draws = [generator.uint32(n) for n in (0, 1, 622, 1, 1, 1375)]  # across the 624 words of a state
    np.testing.assert_array_equal(np.concatenate(draws), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_interleaved_draws_are_numpys(seed):
    """Each draw starts where the one before ended, whatever the sizes."""
    expected, ours = np.random.RandomState(seed), MT19937(seed)
    sizes = np.random.RandomState(seed ^ 1).randint(1, 900, size=40)
    for n in [1, 2, 3, 4, 5, 20, 511, 512, 513, *sizes.tolist()]:
        np.testing.assert_array_equal(ours.permutation(n), expected.permutation(n))
        np.testing.assert_array_equal(ours.choice(n, n + 3, True), expected.choice(n, n + 3, True))
        np.testing.assert_array_equal(ours.choice(n, n // 2, False), expected.choice(n, n // 2, False))
        assert ours.bounded(n - 1) == expected.randint(n)
        np.testing.assert_array_equal(ours.uint32(n % 7), expected.randint(0, 2**32, size=n % 7, dtype=np.uint32))


def test_permutation_of_nothing_draws_nothing():
    generator = MT19937(1)
    assert generator.permutation(0).shape == (0,) and generator.permutation(1).tolist() == [0]
    assert generator.bounded(0) == 0
    assert generator.uint32(1) == MT19937(1).uint32(1)


# --- torch --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def torch_generator(torch, seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-0.125, 0.125), (-1 / 44**0.5, 1 / 44**0.5), (2.5, 2.5)])
def test_uniforms_are_torchs(torch, seed, low, high):
    expected = torch.empty(5000).uniform_(low, high, generator=torch_generator(torch, seed)).numpy()
    np.testing.assert_array_equal(MT19937(seed).uniform(5000, low, high), expected)


def assert_torchs_normals(torch, ours, expected):
    """To the bit, unless torch does without its AVX2 kernel, whose roundings ours are."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))
    else:
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_torchs(torch, seed):
    """A sequence of draws of all sizes: the spare sine of the short ones is kept over the long ones."""
    theirs, ours = torch_generator(torch, seed), MT19937(seed)
    for n in (*NORMAL_SIZES, *NORMAL_SIZES[::-1], 3, 3, 5, 16, 1):
        assert_torchs_normals(torch, ours.normal(n), torch.randn(n, generator=theirs).numpy())


def test_many_normals_are_torchs(torch):
    """One million: a product rounded before it is added would show in every two-hundredth element."""
    expected = torch.randn(1_000_003, generator=torch_generator(torch, 99)).numpy()
    assert_torchs_normals(torch, MT19937(99).normal(1_000_003), expected)


# --- Philox -------------------------------------------------------------------------------------------------------


def philox4x32_10(counter, key):
    """Philox4x32-10 in Python's integers or NumPy's uint64 arrays: four words of a counter of four and a key of two."""
    c, k, low = list(counter), list(key), 2**32 - 1
    for _ in range(10):
        product_0, product_2 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(product_2 >> 32) ^ c[1] ^ k[0], product_2 & low, (product_0 >> 32) ^ c[3] ^ k[1], product_0 & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


# Published with Random123: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, words", KNOWN_ANSWERS)
def test_philox_oracle(counter, key, words):
    assert tuple(philox4x32_10(counter, key)) == words


def philox_normals(seed, block, n):
    """Block `block`, (n,) float64, from arguments of logarithm and sine in float32."""
    index, zeros = np.arange(n, dtype=np.uint64), np.zeros(n, np.uint64)
    words = philox4x32_10((zeros + np.uint64(block), zeros, index, zeros), (seed, 0))
    x0, x1 = (word.astype(np.uint32).astype(np.float32) for word in words[:2])
    u = x0 * np.float32(2**-32) + np.float32(2**-33)
    turn = float(np.float32(2 * np.pi)) * 2**-32
    w = (x1.astype(np.float64) * turn + turn / 2).astype(np.float32)
    return np.sqrt(-2 * np.log(u.astype(np.float64))) * np.sin(w.astype(np.float64))


@pytest.mark.parametrize("seed", SEEDS)
def test_philox_normals(seed):
    """Within 4 units in the last place of exact functions: sqrt, ln, sin and the products round once each or so."""
    generator = Philox(seed)
    for block, n in enumerate((1, 63, 64, 65, 4096, 100_000)):
        assert (generator.seed, generator.blocks_drawn) == (seed, block)
        draw, exact = generator.normal(n), philox_normals(seed, block, n)
        ulp = np.spacing(np.abs(exact).astype(np.float32))
        assert draw.dtype == np.float32 and np.max(np.abs(draw - exact) / ulp) < 4


def test_an_empty_block_counts():
    generator = Philox(3)
    assert generator.normal(0).shape == (0,) and generator.blocks_drawn == 1


# --- faults -------------------------------------------------------------------------------------------------------

BAD_SEEDS = [
    (-1, ValueError, r"^seed: got -1, expected an integer in 0\.\.4294967295$"),
    (2**32, ValueError, r"^seed: got 4294967296, expected an integer in 0\.\.4294967295$"),
    (10**5000, ValueError, r"^seed: got an integer of thousands of digits, expected an integer in 0\.\.4294967295$"),
    (1.0, TypeError, "^seed: got float, expected an integer$"),
    ("1", TypeError, "^seed: got str, expected an integer$"),
    (None, TypeError, "^seed: got NoneType, expected an integer$"),
]


@pytest.mark.parametrize("make", [Philox, MT19937])
@pytest.mark.parametrize("seed, error, message", BAD_SEEDS, ids=["negative", "above", "huge", "float", "str", "None"])
def test_bad_seeds(make, seed, error, message):
    with pytest.raises(error, match=message):
        make(seed)


# method, arguments, error, message; of MT19937 unless the method is Philox.normal
BAD_ARGUMENTS = [
    (Philox.normal, (-1,), ValueError, r"^n: got -1, expected an integer in 0\.\.4294967295$"),
    (Philox.normal, (2**32,), ValueError, r"^n: got 4294967296, expected an integer in 0\.\.4294967295$"),
    (Philox.normal, (2.0,), TypeError, "^n: got float, expected an integer$"),
    (MT19937.uint32, (-1,), ValueError, r"^n: got -1, expected an integer in 0\.\.\d+$"),
    (MT19937.uint32, (2**63,), ValueError, r"^n: got 9223372036854775808, expected an integer in 0\.\.\d+$"),
    (MT19937.uint32, (2**59,), MemoryError, None),
    (MT19937.normal, (-1,), ValueError, r"^n: got -1, expected an integer in 0\.\.\d+$"),
    (MT19937.normal, ("3",), TypeError, "^n: got str, expected an integer$"),
    (MT19937.normal, (2**59,), MemoryError, None),
    (MT19937.uniform, (-1,), ValueError, r"^n: got -1, expected an integer in 0\.\.\d+$"),
    (MT19937.uniform, (2**59,), MemoryError, None),
    (MT19937.uniform, (3, float("nan")), ValueError, r"^low: got nan, expected a number that is finite in float32$"),
    (
        MT19937.uniform,
        (3, 0.0, float("inf")),
        ValueError,
        r"^high: got inf, expected a number that is finite in float32$",
    ),
    (MT19937.uniform, (3, -1e39), ValueError, r"^low: got -1e\+39, expected a number that is finite in float32$"),
    (
        MT19937.uniform,
        (3, 0, 10**400),
        ValueError,
        "^high: got an integer beyond all floats, expected a finite number$",
    ),
    (MT19937.uniform, (3, "0"), TypeError, "^low: got str, expected a number$"),
    (MT19937.uniform, (3, 1.0, 0.0), ValueError, "^low: got a number above high, expected one that is not$"),
    (
        MT19937.uniform,
        (3, -3e38, 3e38),
        ValueError,
        "^low: got a number too far from high, expected a finite difference in float32$",
    ),
    (MT19937.bounded, (-1,), ValueError, r"^max: got -1, expected an integer in 0\.\.4294967295$"),
    (MT19937.bounded, (2**32,), ValueError, r"^max: got 4294967296, expected an integer in 0\.\.4294967295$"),
    (MT19937.bounded, (0.5,), TypeError, "^max: got float, expected an integer$"),
    (MT19937.permutation, (-1,), ValueError, r"^n: got -1, expected an integer in 0\.\.2147483647$"),
    (MT19937.permutation, (2**31,), ValueError, r"^n: got 2147483648, expected an integer in 0\.\.2147483647$"),
    (MT19937.choice, (0, 1, True), ValueError, r"^n: got 0, expected an integer in 1\.\.2147483647$"),
    (MT19937.choice, (5, -1, True), ValueError, r"^size: got -1, expected an integer in 0\.\.\d+$"),
    (MT19937.choice, (5, 6, False), ValueError, "^size: got 6, expected at most the 5 of n, without replacement$"),
    (MT19937.choice, (5, 2**59, True), MemoryError, None),
    (MT19937.choice, (5, [2], True), TypeError, "^size: got list, expected an integer$"),
    (MT19937.choice, (5, 2), TypeError, "replace"),
]


@pytest.mark.parametrize(
    "method, arguments, error, message", BAD_ARGUMENTS, ids=[f"{row[0].__name__}{row[1]}"[:40] for row in BAD_ARGUMENTS]
)
def test_bad_arguments(method, arguments, error, message):
    """They raise, and draw nothing."""
    make = Philox if method is Philox.normal else MT19937
    generator = make(1)
    with pytest.raises(error, match=message):
        method(generator, *arguments)
    np.testing.assert_array_equal(generator.normal(20), make(1).normal(20))


def test_two_threads_share_a_generator():
    """Each word goes to one of them."""
    generator, draws = MT19937(1), []

    def draw():
        for _ in range(200):
            draws.append(generator.uint32(100))

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = np.sort(np.concatenate(draws))
    np.testing.assert_array_equal(words, np.sort(MT19937(1).uint32(40_000)))
