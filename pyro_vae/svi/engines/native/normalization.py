"""Layer normalization (Ba, Kiros and Hinton, 2016) and its gradients, of the operations that there are."""

from collections.abc import Sequence

from pyro_vae.svi.engines.native.formulas import literal
from pyro_vae.svi.engines.native.operations import Operations
from pyro_vae.svi.engines.native.program import View


def layer_norm(
    operations: Operations,
    view: View,
    normalized_shape: Sequence[int],
    weight: View | None,
    bias: View | None,
    eps: float,
) -> tuple[View, View, View]:
    """The normalized values, the means, and one over the standard deviations."""
    shape = view.shape
    last = [*range(len(shape) - len(normalized_shape), len(shape))]
    mean = _mean(operations, view, last)
    apart = "({0} - {1}) * ({0} - {1})"
    variance = _mean(operations, operations.pointwise(apart, (view, mean.over(shape)), shape), last)
    one_over = f"1 / std::sqrt({{0}} + {literal(eps)})"
    inverse = operations.pointwise(one_over, (variance,), variance.shape)
    out = _normalized(operations, view, mean, inverse)
    if weight is not None:
        out = operations.pointwise("{0} * {1}", (out, weight.over(shape)), shape)
    if bias is not None:
        out = operations.pointwise("{0} + {1}", (out, bias.over(shape)), shape)
    return out, mean, inverse


def layer_norm_backward(
    operations: Operations,
    view: View,
    grad_out: View,
    normalized_shape: Sequence[int],
    mean: View,
    rstd: View,
    weight: View | None,
    bias: View | None,
    output_mask: Sequence[bool],
) -> tuple[View, View, View]:
    """Gradients of the input, the weight and the bias."""
    del bias, output_mask
    shape = view.shape
    first = [*range(len(shape) - len(normalized_shape))]
    last = [*range(len(first), len(shape))]

    def times(a: View, b: View) -> View:
        return operations.pointwise("{0} * {1}", (a, b.over(shape)), shape)

    normalized = _normalized(operations, view, mean, rstd)
    scaled = grad_out if weight is None else times(grad_out, weight)
    along, across = _mean(operations, times(scaled, normalized), last), _mean(operations, scaled, last)
    parts = tuple(part.over(shape) for part in (scaled, across, normalized, along, rstd))
    of_input = operations.pointwise("({0} - {1} - {2} * {3}) * {4}", parts, shape)
    of_weight = operations.sum(times(grad_out, normalized), first, keep=False)
    return of_input, of_weight, operations.sum(grad_out, first, keep=False)


def _normalized(operations: Operations, view: View, mean: View, inverse: View) -> View:
    parts = (view, mean.over(view.shape), inverse.over(view.shape))
    return operations.pointwise("({0} - {1}) * {2}", parts, view.shape)


def _mean(operations: Operations, view: View, axes: Sequence[int]) -> View:
    total = operations.sum(view, axes, keep=True)
    return operations.scaled(total, total.size / view.size)
