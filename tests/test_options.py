"""The option's text: what it parses to, what it refuses, what it builds."""

import pytest
import torch
from torch import nn

from normdet import layers
from normdet.errors import NormdetError
from normdet.options import METHODS, names, parse, table, valid_options


@pytest.mark.parametrize("text", ["FrozenBN", "AffineBN", "BN", "SyncBN", "GN", "LN", "IN", "FRN"])
def test_the_norms_are_there_with_every_modifier(text):
    for modifiers in ("", "+TLU", "+WS", "+TLU+WS"):
        assert str(parse(text + modifiers)) == text + modifiers
        assert text + modifiers in valid_options()


def test_an_option_is_composed():
    option = parse("FRN+WS+TLU")
    assert (option.norm, option.activation, option.weight) == ("FRN", "TLU", "WS")
    assert str(option) == "FRN+TLU+WS"
    assert parse("GN").activation == "ReLU"


def test_no_text_is_no_norm():
    option = parse("")
    assert not option and str(option) == ""
    assert isinstance(option.build_activation(8), nn.ReLU)
    conv = nn.Conv2d(3, 8, 3)
    assert option.build_weight(conv) is conv


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("FRN_TLU", "FRN+TLU"),
        ("frn+tlu", "FRN+TLU"),
        ("TLU+FRN", "FRN+TLU"),
        ("Gn", "GN"),
        ("gn+ws", "GN+WS"),
        ("GroupNorm", "GN"),
        ("BatchRenorm", "BRN"),
        ("SwitchableNorm", "SwitchNorm"),
        ("syncbn", "SyncBN"),
        ("GN+", "GN"),
        ("+GN", "GN"),
        ("GN+GN", "GN"),
        ("FRN+TLU+TLU", "FRN+TLU"),
        ("frozenBN", "FrozenBN"),
    ],
)
def test_refused_text_names_the_nearest(text, nearest):
    with pytest.raises(NormdetError, match="unknown norm option") as error:
        parse(text)
    assert str(error.value).endswith(f"did you mean {nearest!r}?")


@pytest.mark.parametrize("text", ["WS", "TLU", "TLU+WS", "nonsense", "GN+BN", 3, None])
def test_meaningless_text_is_refused(text):
    with pytest.raises(NormdetError):
        parse(text)


def test_parameters_reach_the_layers():
    params = {"GN": {"NUM_GROUPS": 4, "EPS": 1e-3}, "WS": {"DIALECT": "timm"}}
    option = parse("GN+WS", params)
    norm = option.build_norm(8, activate=True)
    assert (norm.num_groups, norm.eps, norm.activation) == (4, 1e-3, "ReLU")
    assert option.build_weight(nn.Conv2d(3, 8, 3)).dialect == "timm"


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (80, 16), (33, 1), (18, 2), (1, 1)])
def test_groups_where_32_does_not_divide_the_channels(channels, groups):
    assert parse("GN").build_norm(channels).num_groups == groups


def test_learned_epsilon_where_a_channel_has_one_value():
    assert parse("FRN").build_norm(8, dims=0).eps_l is not None
    assert parse("FRN").build_norm(8, dims=2).eps_l is None
    always = parse("FRN", {"FRN": {"LEARNED_EPS": "always"}})
    assert always.build_norm(8).eps_l is not None
    with pytest.raises(NormdetError, match=r"MODEL\.NORMDET\.FRN\.LEARNED_EPS"):
        parse("FRN", {"FRN": {"LEARNED_EPS": "sometimes"}}).build_norm(8)


def test_instance_norm_of_fully_connected_input_is_refused():
    for name in ("IN", "BIN"):
        with pytest.raises(NormdetError, match=f"{name} has nothing to average.*fully connected"):
            parse(name).build_norm(8, dims=0)


def test_exclusive_methods_are_refused_with_the_reason():
    with pytest.raises(NormdetError, match="inverts its activation.*did you mean 'InPlaceABN'"):
        parse("InPlaceABN+TLU")
    assert "InPlaceABN+TLU" not in valid_options() and "InPlaceABN+WS" in valid_options()


@pytest.mark.parametrize("name", [n for n in names("norm") if f"{n}+TLU" in valid_options()])
@pytest.mark.parametrize("activate", [False, True])
def test_the_activation_is_fused_only_where_asked(name, activate):
    norm = parse(f"{name}+TLU").build_norm(6, activate=activate)
    assert isinstance(norm, layers.NormLayer)
    assert (norm.tau is not None) == activate
    assert ("tau" in norm.state_dict()) == activate
    y = norm.eval()(torch.randn(2, 6, 5, 5))
    assert (y.min() >= 0) == activate


def test_the_table_has_a_full_row_for_every_method():
    rows = table()
    assert [row["name"] for row in rows] == list(METHODS)
    assert all(text for row in rows for text in row.values())


@pytest.mark.parametrize("name", names("norm"))
def test_the_table_and_the_layer_agree_on_what_tests_as_bn(name):
    option = parse(name)
    assert option.build_norm(32).tests_as_bn == option.tests_as_bn
