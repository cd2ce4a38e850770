"""What each known pointwise operation computes, in C++ over :file:`mathematics.hpp`.

Braces name an argument of the operation's schema; an argument that a formula does not name must have its
default value or the value in ``REQUIRED``, unless it is ``IGNORED``.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from pyro_vae.svi.engines.native.program import View
from pyro_vae.svi.engines.steps import CannotError

FORMULAS: Mapping[str, str] = {
    "aten.abs.default": "std::fabs({self})",
    "aten.add.Scalar": "{self} + {alpha} * {other}",
    "aten.add.Tensor": "{self} + {alpha} * {other}",
    "aten.binary_cross_entropy_with_logits.default": "binary_cross_entropy({self}, {target})",
    "aten.clamp.default": "clamp({self}, {min}, {max})",
    "aten.clamp_max.default": "clamp({self}, -infinity, {max})",
    "aten.clamp_min.default": "clamp({self}, {min}, infinity)",
    "aten.div.Scalar": "{self} / {other}",
    "aten.div.Tensor": "{self} / {other}",
    "aten.elu.default": "elu({self}, {alpha}, {scale}, {input_scale})",
    "aten.elu_backward.default": (
        "elu_backward({grad_output}, {alpha}, {scale}, {input_scale}, {is_result}, {self_or_result})"
    ),
    "aten.eq.Scalar": "T({self} == {other})",
    "aten.eq.Tensor": "T({self} == {other})",
    "aten.erf.default": "math::erf({self})",
    "aten.exp.default": "math::exp({self})",
    "aten.expm1.default": "math::expm1({self})",
    "aten.ge.Scalar": "T({self} >= {other})",
    "aten.ge.Tensor": "T({self} >= {other})",
    "aten.gelu.default": "gelu({self})",
    "aten.gelu_backward.default": "gelu_backward({grad_output}, {self})",
    "aten.gt.Scalar": "T({self} > {other})",
    "aten.gt.Tensor": "T({self} > {other})",
    "aten.le.Scalar": "T({self} <= {other})",
    "aten.le.Tensor": "T({self} <= {other})",
    "aten.leaky_relu.default": "{self} > 0 ? {self} : {self} * {negative_slope}",
    "aten.leaky_relu_backward.default": "{self} > 0 ? {grad_output} : {grad_output} * {negative_slope}",
    "aten.lgamma.default": "math::lgamma({self})",
    "aten.log.default": "math::log({self})",
    "aten.log1p.default": "math::log1p({self})",
    "aten.log_sigmoid_backward.default": "{grad_output} * sigmoid(-{self})",
    "aten.log_sigmoid_forward.default": "-softplus(-{self})",
    "aten.logaddexp.default": "logaddexp({self}, {other})",
    "aten.logical_and.default": "T({self} != 0 && {other} != 0)",
    "aten.logical_not.default": "T({self} == 0)",
    "aten.logical_or.default": "T({self} != 0 || {other} != 0)",
    "aten.lt.Scalar": "T({self} < {other})",
    "aten.lt.Tensor": "T({self} < {other})",
    "aten.masked_fill.Scalar": "{mask} != 0 ? {value} : {self}",
    "aten.maximum.default": "maximum({self}, {other})",
    "aten.minimum.default": "-maximum(-{self}, -{other})",
    "aten.mul.Scalar": "{self} * {other}",
    "aten.mul.Tensor": "{self} * {other}",
    "aten.ne.Scalar": "T({self} != {other})",
    "aten.ne.Tensor": "T({self} != {other})",
    "aten.neg.default": "-{self}",
    "aten.pow.Tensor_Scalar": "{self} ** {exponent}",
    "aten.reciprocal.default": "1 / {self}",
    "aten.relu.default": "{self} <= 0 ? 0 : {self}",
    "aten.rsqrt.default": "1 / std::sqrt({self})",
    "aten.rsub.Scalar": "{other} - {alpha} * {self}",
    "aten.sgn.default": "T({self} > 0) - T({self} < 0)",
    "aten.sigmoid.default": "sigmoid({self})",
    "aten.sigmoid_backward.default": "{grad_output} * (1 - {output}) * {output}",
    "aten.sign.default": "T({self} > 0) - T({self} < 0)",
    "aten.silu.default": "{self} * sigmoid({self})",
    "aten.silu_backward.default": "silu_backward({grad_output}, {self})",
    "aten.softplus.default": "softplus({self}, {beta}, {threshold})",
    "aten.softplus_backward.default": (
        "{self} * {beta} > {threshold} ? {grad_output} : {grad_output} * sigmoid({self} * {beta})"
    ),
    "aten.sqrt.default": "std::sqrt({self})",
    "aten.sub.Scalar": "{self} - {alpha} * {other}",
    "aten.sub.Tensor": "{self} - {alpha} * {other}",
    "aten.tanh.default": "math::tanh({self})",
    "aten.tanh_backward.default": "{grad_output} * (1 - {output} * {output})",
    "aten.threshold_backward.default": "{self} <= {threshold} ? 0 : {grad_output}",
    "aten.where.self": "{condition} != 0 ? {self} : {other}",
    "aten.xlogy.Tensor": "{other} != {other} || {self} != 0 ? {self} * math::log({other}) : 0",
}

MASKS = frozenset(
    f"aten.{name}"
    for name in (
        *(f"logical_{word}.default" for word in ("and", "not", "or")),
        *(
            f"{compare}.{kind}"
            for compare in ("eq", "ge", "gt", "le", "lt", "ne")
            for kind in ("Scalar", "Tensor")
        ),
    )
)
"""Operations whose result is a truth value."""

REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "aten.binary_cross_entropy_with_logits.default": {"reduction": 0},
}

IGNORED: Mapping[str, str] = {
    "aten.leaky_relu_backward.default": "self_is_result",  # input and result have one sign
    "aten.log_sigmoid_backward.default": "buffer",  # exp(-|self|), computed again
}

_POWERS = {
    -2.0: "1 / ({0} * {0})",
    -1.0: "1 / {0}",
    -0.5: "1 / std::sqrt({0})",
    0.0: "T(1)",
    0.5: "std::sqrt({0})",
    1.0: "{0}",
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
}


def _power(exponent: float) -> str:
    """The formula of a power; a rare exponent is right but slow."""
    return _POWERS.get(float(exponent), f"std::pow({{0}}, T({float(exponent)!r}))")


def fill_in(name: str, arguments: dict[str, Any]) -> tuple[str, list[View]]:
    """A formula in which ``{0}``, ``{1}``, … are the operands that come with it, and numbers are put in.

    Raises CannotError for an argument that the formula does not know.
    """
    formula = FORMULAS[name]
    named = set(re.findall(r"\{(\w+)\}", formula))
    if name == "aten.pow.Tensor_Scalar":
        formula, named = _power(arguments["exponent"]).replace("{0}", "{self}"), {"self", "exponent"}
    defaults = _defaults(name)
    operands: list[View] = []
    slots: dict[str, str] = {}
    for key, value in arguments.items():
        if key in named:
            if isinstance(value, View) and value.is_stored:
                slots[key] = f"{{{len(operands)}}}"
                operands.append(value)
            else:
                slots[key] = _number(name, key, value.source if isinstance(value, View) else value)
        elif IGNORED.get(name) != key:
            required = REQUIRED.get(name, {}).get(key, defaults.get(key))
            if value != required:
                raise CannotError(f"{name} with {key}={value}")
    if slots.get("alpha") == "T(1.0)":
        formula = formula.replace("{alpha} * ", "")
    return formula.format(**slots), operands


def _defaults(name: str) -> dict[str, Any]:
    _, word, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, word), overload)._schema
    return {a.name: a.default_value for a in schema.arguments if a.has_default_value()}


def _number(name: str, key: str, value: Any) -> str:
    """A number as C++."""
    if value is None and name == "aten.clamp.default":
        return "-infinity" if key == "min" else "infinity"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        raise CannotError(f"{name} with {key}={value}")
    return literal(float(value))


def literal(value: float) -> str:
    """A number as C++, in the type of the step."""
    if math.isnan(value):
        return "not_a_number"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"T({float(value)!r})"
