"""Architecture descriptions: JSON, call strings, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
from small_networks import CALL, TINY, small_mast3r

from sparse_ga.network.architecture import Architecture, ArchitectureError, Range


def test_call_string_and_json_say_the_same() -> None:
    arch = Architecture.parse(CALL)
    assert arch == TINY
    assert Architecture.from_mapping(json.loads(json.dumps(arch.to_mapping()))) == arch


def test_infinity_in_every_spelling() -> None:
    for text in ("inf", "float('inf')", "+inf", "1e999"):
        arch = Architecture.parse(CALL.replace("('exp', 1, inf)", f"('exp', 1, {text})"))
        assert arch.conf_mode == Range("exp", 1.0, math.inf)
    hub = json.loads('{"conf_mode": ["exp", 1, Infinity], "depth_mode": ["exp", -Infinity, Infinity]}')
    assert Architecture.from_mapping(hub).depth_mode == Range("exp", -math.inf, math.inf)


def test_descriptors_make_it_a_mast3r() -> None:
    arch = small_mast3r("catmlp+dpt")
    assert (arch.model, arch.descriptor_dim) == ("AsymmetricMASt3R", 8)
    assert TINY.descriptor_dim == 0


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "AsymmetricMASt3R(img_size=__import__('os').getpid())",
        "AsymmetricMASt3R(**{'img_size': 3})",
        "AsymmetricMASt3R(*[1])",
        "AsymmetricCroCo3DStereo(head_type=[x for x in 'ab'])",
        "AsymmetricCroCo3DStereo(enc_depth=lambda: 3)",
        "Other(enc_depth=3)",
        "a.b(enc_depth=3)",
        "AsymmetricCroCo3DStereo(enc_depth=3",
        "",
        "(" * 500,
    ],
)
def test_anything_but_a_plain_call_is_refused(text: str) -> None:
    with pytest.raises(ArchitectureError):
        Architecture.parse(text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"enc_depth": 0}, "enc_depth"),
        ({"enc_depth": 2.5}, "enc_depth"),
        ({"enc_depth": True}, "enc_depth"),
        ({"enc_num_heads": 3}, "enc_embed_dim"),
        ({"pos_embed": "RoPExyz"}, "pos_embed"),
        ({"head_type": "dpt", "dec_depth": 2}, "dec_depth"),
        ({"head_type": "catconv"}, "head_type"),
        ({"conf_mode": ["exp", "-inf", "inf"]}, "confidence"),
        ({"conf_mode": ["sigmoid", 0, "inf"]}, "confidence"),
        ({"depth_mode": ["cube", 0, 1]}, "depth_mode"),
        ({"depth_mode": 3}, "depth_mode"),
        ({"output_mode": "pts3d+colour"}, "output_mode"),
        ({"enc_dpth": 3}, "enc_dpth"),
        ({"norm_im2_in_dec": False}, "norm_im2_in_dec"),
        ({"img_size": [64]}, "img_size"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], says: str) -> None:
    arguments = {k: v for k, v in TINY.to_mapping().items() if k != "model"}
    with pytest.raises(ArchitectureError, match=says):
        Architecture.from_mapping({**arguments, **change})
