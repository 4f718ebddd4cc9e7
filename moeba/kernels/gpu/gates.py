"""The gates of `moeba.kernels.gates` as formulas of kernels, with their derivatives; numbers are float32."""

# mypy: disallow-incomplete-defs=False
# Triton has no types for what kernels take and give.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh_argument(x):
    return 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)


@triton.jit
def _act(x, KIND: tl.constexpr):
    """The activation alone."""
    if KIND == "silu":
        result = x * _sigmoid(x)
    elif KIND == "gelu":
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # (1 + tanh(a)) / 2 = sigmoid(2a)
        result = x * _sigmoid(2.0 * _tanh_argument(x))
    elif KIND == "relu":
        result = tl.where(x <= 0.0, 0.0, x)
    else:
        tl.static_assert(KIND == "relu2")
        result = tl.where(x <= 0.0, 0.0, x * x)
    return result


@triton.jit
def _act_slope(x, KIND: tl.constexpr):
    """Derivative of the activation."""
    if KIND == "silu":
        s = _sigmoid(x)
        result = s * (1.0 + x * (1.0 - s))
    elif KIND == "gelu":
        result = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + 0.3989422804014327 * x * tl.exp(-0.5 * x * x)
    elif KIND == "gelu_tanh":
        s = _sigmoid(2.0 * _tanh_argument(x))
        result = s + 2.0 * x * s * (1.0 - s) * 0.7978845608028654 * (1.0 + 0.134145 * x * x)
    elif KIND == "relu":
        result = tl.where(x <= 0.0, 0.0, 1.0)
    else:
        tl.static_assert(KIND == "relu2")
        result = tl.where(x <= 0.0, 0.0, 2.0 * x)
    return result


@triton.jit
def activate(gate, up, alpha, limit, KIND: tl.constexpr, GATED: tl.constexpr):
    """What the experts' second product takes; `up` is not looked at where the kind has no gate."""
    if KIND == "clamped":
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        result = (up + 1.0) * gate * _sigmoid(alpha * gate)
    elif KIND == "limited_silu":
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        result = _act(gate, "silu") * up
    elif GATED:
        result = _act(gate, KIND) * up
    else:
        result = _act(gate, KIND)
    return result


@triton.jit
def slopes(gate, up, alpha, limit, KIND: tl.constexpr, GATED: tl.constexpr):
    """Derivatives of `activate` by gate and by up; as in PyTorch, a bound counts as inside the clamp."""
    if KIND == "clamped":
        inside = tl.where(gate > limit, 0.0, 1.0)
        up_inside = tl.where(up > limit, 0.0, tl.where(up < -limit, 0.0, 1.0))
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        s = _sigmoid(alpha * gate)
        by_gate = inside * (up + 1.0) * s * (1.0 + alpha * gate * (1.0 - s))
        by_up = up_inside * gate * s
    elif KIND == "limited_silu":
        inside = tl.where(gate > limit, 0.0, 1.0)
        up_inside = tl.where(up > limit, 0.0, tl.where(up < -limit, 0.0, 1.0))
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        by_gate = inside * up * _act_slope(gate, "silu")
        by_up = up_inside * _act(gate, "silu")
    elif GATED:
        by_gate = up * _act_slope(gate, KIND)
        by_up = _act(gate, KIND)
    else:
        by_gate = _act_slope(gate, KIND)
        by_up = by_gate
    return by_gate, by_up
