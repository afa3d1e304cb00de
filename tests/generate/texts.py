"""Texts and quantities, from what people mean to what nobody should ever write."""

from typing import Final

from hypothesis import strategies as st

MOST_ANNOTATION_BYTES: Final = 256 << 10
"""All annotations of an object together (apimachinery ValidateAnnotationsSize)."""

_MEANT: Final = (
    "true", "false", "1", "0", "", "A100", "NVIDIA-A100,T4", "GPU-1,GPU-2", " a , b ,, ",
    "binpack", "spread", "mutex", "numa", "numa,spread", "topology-aware", "topology-aware,mutex",
    "hami-core", "hami-core,mig", "mig", "mps", "0.5", "2000", "1,2", "ignore", "{}", "[]",
)  # fmt: skip
_BREAKING: Final = (
    '"] || true || ["',
    "\\",
    '\\"',
    "'''",
    '"""',
    "${x}{y}",
    "\x00\x01\x1f\x7f\x80\x9f",
    "\u2028\u2029\ufeff\ufffe\uffff",
    "\U0010ffff\U0001f600",
    "e\u0301\u202e",
    "//",
    "\\u0041\\x41\\101\\ud800",
    "\r\n\t\v\f",
    "%s%n",
)
_UNITS: Final = ("A100", '"', "\\", "\n", "é", "\u2028", "\U0001f600", ",", "{", "'", "\x00")

breaking = st.one_of(
    st.sampled_from(_BREAKING),
    st.text(max_size=30),
    st.text(alphabet="\"\\'[](){}|&!,;\n\r\t\x00$`a \u2028é,,", max_size=40),
)


@st.composite
def _long(draw: st.DrawFn) -> str:
    unit = draw(st.sampled_from(_UNITS))
    size = draw(st.sampled_from((300, 2_500, 5_100, 10_100, 10_240, 64 << 10)))
    return unit * (size // len(unit))


@st.composite
def _lists(draw: st.DrawFn) -> str:
    count = draw(st.sampled_from((2, 8, 63, 64, 65, 300)))
    width = draw(st.sampled_from((1, 8, 20, 80, 150)))
    start = draw(st.integers(0, 9))
    return ",".join(f"{start + i:0{width}d}" for i in range(count))


values = st.one_of(st.sampled_from(_MEANT), breaking, _long(), _lists())
"""Values of annotations."""

card_lists = st.one_of(breaking, _long(), _lists(), st.lists(breaking, max_size=8).map(",".join))
"""Lists of models or UUIDs: all that becomes part of an expression."""

_meant = st.sampled_from(("1", "2", "1", "3", "30", "25", "1k", "0"))
_forms = st.sampled_from(
    (
        "0", "00", "+1", "-1", "-0", "1k", "1e3", "1E3", "1e-3", "1E", "1Ei", "1e0", "1M", "0.5",
        ".5", "5.", "1.0", "100m", "1000m", "1n", "1u", "1Ki", "1Gi", "10Gi", "9223372036854775807",
        "9223372036854775808", "-9223372036854775808", "1e18", "2147483647", "2147483648", "33",
        "32", "101", "99999999999999999999999", "0.00000000000000001",
    )
)  # fmt: skip
_wrong = st.sampled_from(
    ("", " ", "x", "1 ", "1e", "0x10", "1_000", "NaN", "1Mi1", "\u0661", "--1")
)

_any = st.one_of(
    _forms, _wrong, st.integers(0, 40).map(str), st.integers(-3, 2**65), st.none(), _meant
)


def quantities(*, wild: bool) -> st.SearchStrategy[str | int | None]:
    """Return values of resources: mostly meant ones, or any."""
    return _any if wild else _meant
