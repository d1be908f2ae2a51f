"""What a checkpoint says about its network: sizes, head, output activations; read from JSON or from a call string."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

ModelName = Literal["AsymmetricMASt3R", "AsymmetricCroCo3DStereo"]
HeadType = Literal["linear", "dpt", "catmlp+dpt", "catconv"]

_MODEL_NAMES = ("AsymmetricMASt3R", "AsymmetricCroCo3DStereo")
_HEADS = {"AsymmetricCroCo3DStereo": ("linear", "dpt"), "AsymmetricMASt3R": ("catmlp+dpt", "catconv")}
_IGNORED = frozenset(  # of training or of the hub; no effect on the forward
    {"freeze", "mask_ratio", "norm_im2_in_dec", "architectures", "model_type", "torch_dtype", "transformers_version"}
)


class ArchitectureError(ValueError):
    """A checkpoint describes a network that this code does not build; says which argument and what it may be."""


@dataclass(frozen=True)
class Range:
    """An output activation: `mode` and the interval its values are held in."""

    mode: str
    minimum: float
    maximum: float

    @property
    def bounded(self) -> bool:
        """Whether either end is finite."""
        return math.isfinite(self.minimum) or math.isfinite(self.maximum)


@dataclass(frozen=True)
class Architecture:
    """Constructor arguments of the published networks, under the names their checkpoints use.

    `depth_mode` and `conf_mode` are DUSt3R's (arXiv 2312.14132, section 3.1), `desc_conf_mode` and `two_confs` MASt3R's
    (arXiv 2406.09756, section 3.2). `output_mode` is ``pts3d`` or ``pts3d+descD``. `dpt_width` and
    `head_mlp_ratio` are ours, for small networks; they are 256 and 4 in every published one.
    """

    model: ModelName
    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    pos_embed: str = "RoPE100"
    patch_embed_cls: str = "PatchEmbedDust3R"
    landscape_only: bool = False
    head_type: HeadType = "linear"
    output_mode: str = "pts3d"
    depth_mode: Range = Range("exp", -math.inf, math.inf)
    conf_mode: Range = Range("exp", 1.0, math.inf)
    enc_embed_dim: int = 768
    enc_depth: int = 12
    enc_num_heads: int = 12
    dec_embed_dim: int = 512
    dec_depth: int = 8
    dec_num_heads: int = 16
    mlp_ratio: float = 4.0
    two_confs: bool = False
    desc_mode: str = "norm"
    desc_conf_mode: Range | None = None
    dpt_width: int = 256
    head_mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _require(self.model in _MODEL_NAMES, "model", self.model, _MODEL_NAMES)
        _require(self.head_type in _HEADS[self.model], "head_type", self.head_type, _HEADS[self.model])
        _require(self.patch_embed_cls in _PATCH_EMBEDS, "patch_embed_cls", self.patch_embed_cls, _PATCH_EMBEDS)
        _require(self.desc_mode == "norm", "desc_mode", self.desc_mode, ("norm",))
        _require(self.depth_mode.mode in _DEPTH_MODES, "depth_mode", self.depth_mode.mode, _DEPTH_MODES)
        confidences = [self.conf_mode] + ([self.desc_conf_mode] if self.desc_conf_mode else [])
        for mode in confidences:
            _require(mode.mode in _CONF_MODES, "conf_mode", mode.mode, _CONF_MODES)
            if not math.isfinite(mode.minimum) or (mode.mode == "sigmoid" and not math.isfinite(mode.maximum)):
                raise ArchitectureError(f"confidence range {mode} needs finite bounds")
        self._check_sizes()

    def _check_sizes(self) -> None:
        sizes = ("patch_size", "enc_embed_dim", "enc_depth", "enc_num_heads", "dec_embed_dim", "dec_depth")
        for name in (*sizes, "dec_num_heads", "dpt_width"):
            if getattr(self, name) < 1:
                raise ArchitectureError(f"{name}: must be positive, got {getattr(self, name)}")
        for side in ("enc", "dec"):
            dim, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_num_heads")
            if dim % (4 * heads):
                raise ArchitectureError(f"{side}_embed_dim {dim} is not a multiple of 4 * {side}_num_heads ({heads})")
        if self.pos_embed != "cosine" and self.rope_base is None:
            raise ArchitectureError(f"pos_embed: expected RoPE<base> or cosine, got {self.pos_embed!r}")
        has_descriptors = self.model == "AsymmetricMASt3R"
        if has_descriptors != (self.descriptor_dim > 0):
            raise ArchitectureError(f"output_mode {self.output_mode!r} does not fit {self.model}")
        if "dpt" in self.head_type and (self.dec_depth < 4 or self.patch_size != 16 or self.dpt_width % 8):
            raise ArchitectureError("a DPT head needs dec_depth >= 4, patch_size 16 and dpt_width a multiple of 8")
        if self.head_type == "catconv" and self.patch_size % 2:
            raise ArchitectureError(f"patch_size: a catconv head needs an even one, got {self.patch_size}")

    @property
    def rope_base(self) -> float | None:
        """Frequency base of the rotary embedding; None without one."""
        match = re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", self.pos_embed)
        return float(match.group(1)) if match else None

    @property
    def descriptor_dim(self) -> int:
        """Dimension of the local descriptors; 0 for DUSt3R."""
        match = re.fullmatch(r"pts3d(?:\+desc(\d+))?", self.output_mode)
        if match is None:
            raise ArchitectureError(f"output_mode: expected pts3d or pts3d+descD, got {self.output_mode!r}")
        return int(match.group(1) or 0)

    @property
    def descriptor_range(self) -> Range:
        """Activation of the descriptor confidence: its own, or that of the point map."""
        return self.desc_conf_mode or self.conf_mode

    @staticmethod
    def from_mapping(arguments: Mapping[str, Any], model: str | None = None) -> Architecture:
        """From constructor arguments (config.json, or a parsed call); raises `ArchitectureError`.

        Without `model` the class follows from the output mode: descriptors mean MASt3R.
        """
        known = {f.name for f in fields(Architecture)}
        unknown = sorted(set(arguments) - known - _IGNORED)
        if unknown:
            raise ArchitectureError(f"unknown argument {unknown[0]!r} (known: {', '.join(sorted(known))})")
        if arguments.get("norm_im2_in_dec", True) is not True:
            raise ArchitectureError("norm_im2_in_dec: only True is built (norm_y in every decoder block)")
        values = {k: v for k, v in arguments.items() if k in known and k != "model"}
        implied = "AsymmetricMASt3R" if "desc" in str(values.get("output_mode", "")) else "AsymmetricCroCo3DStereo"
        name = model or arguments.get("model") or implied
        _require(name in _MODEL_NAMES, "model", name, _MODEL_NAMES)
        converted = {key: _convert(key, value) for key, value in values.items()}
        return Architecture(model=cast(ModelName, name), **converted)

    @staticmethod
    def parse(text: str) -> Architecture:
        """From a constructor call as text, as .pth checkpoints store it; it is parsed, never evaluated."""
        try:
            node: ast.AST = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ArchitectureError(f"the architecture is not a constructor call: {text[:80]!r}") from None
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
            raise ArchitectureError(f"the architecture is not Name(argument=value, ...): {text[:80]!r}")
        if any(keyword.arg is None for keyword in node.keywords):
            raise ArchitectureError("the architecture uses ** arguments")
        arguments = {str(k.arg): _literal(k.value) for k in node.keywords}
        return Architecture.from_mapping(arguments, node.func.id)

    def to_mapping(self) -> dict[str, Any]:
        """Constructor arguments as JSON-ready values (infinities as ``"inf"``), `model` included."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


_PATCH_EMBEDS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed")
_DEPTH_MODES = ("linear", "square", "exp")
_CONF_MODES = ("exp", "sigmoid")
_RANGES = frozenset({"depth_mode", "conf_mode", "desc_conf_mode"})
_BOOLS = frozenset({"landscape_only", "two_confs"})
_STRINGS = frozenset({"pos_embed", "patch_embed_cls", "head_type", "output_mode", "desc_mode"})


def _require(good: bool, name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not good:
        raise ArchitectureError(f"{name}: expected {' or '.join(allowed)}, got {value!r}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, str) and value.lower() in ("inf", "+inf", "-inf", "infinity", "-infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ArchitectureError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _convert(name: str, value: Any) -> Any:
    """One JSON-like value as the field `name` of `Architecture` wants it."""
    if name in _RANGES:
        if value is None and name == "desc_conf_mode":
            return None
        if not (isinstance(value, (list, tuple)) and len(value) == 3 and isinstance(value[0], str)):
            raise ArchitectureError(f"{name}: expected [mode, minimum, maximum], got {value!r}")
        return Range(value[0], _number(name, value[1]), _number(name, value[2]))
    if name == "img_size":
        sides = value if isinstance(value, (list, tuple)) else (value, value)
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise ArchitectureError(f"img_size: expected two positive integers, got {value!r}")
        return (sides[0], sides[1])
    if name in _BOOLS or name in _STRINGS:
        if name == "desc_mode" and isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if not isinstance(value, bool if name in _BOOLS else str):
            raise ArchitectureError(f"{name}: unexpected value {value!r}")
        return value
    number = _number(name, value)
    if name in ("mlp_ratio", "head_mlp_ratio"):
        return number
    if number != int(number) or not 0 < number < 1_000_000:
        raise ArchitectureError(f"{name}: expected a positive integer, got {value!r}")
    return int(number)


def _literal(node: ast.AST) -> Any:
    """A literal of the architecture call: numbers, strings, None, booleans, tuples, ``inf`` and ``float('inf')``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool, type(None))):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
        return sign * _number("architecture", _literal(node.operand))
    is_float = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float"
    if is_float and len(node.args) == 1 and not node.keywords:  # type: ignore[attr-defined]
        return _number("float(...)", _literal(node.args[0]))  # type: ignore[attr-defined]
    raise ArchitectureError(f"the architecture holds {type(node).__name__}, which is not a plain value")


def _plain(value: Any) -> Any:
    if isinstance(value, Range):
        return [value.mode, _plain(value.minimum), _plain(value.maximum)]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return list(value) if isinstance(value, tuple) else value
