"""The three kernels of the forward: first product with its gate, second product, sum over a token's choices.

Shapes: rows are selections sorted by expert, and a tile is up to `BLOCK_M` rows of one expert. Weights are read as
`[expert, in, out]` through their strides, so one kernel serves every layout. Numbers accumulate in float32, and are
rounded when they are stored. Nothing is padded in memory, and no row is copied: tokens are gathered while they are read
and answers are scattered while they are written.
"""

# mypy: disallow-incomplete-defs=False
# Triton has no types for what kernels take and give.
from __future__ import annotations

import triton
import triton.language as tl

from .gates import activate
from .language import add_product, halves, place, rows_of, selections_of


@triton.jit(do_not_specialize=["tiles"])
def inner_product(
    hidden,
    hidden_stride_t,
    hidden_stride_h,
    weight,
    weight_stride_e,
    weight_stride_in,
    weight_stride_out,
    bias,
    bias_stride_e,
    bias_stride_out,
    kept,
    activated,
    order,
    offsets,
    tile_expert,
    tile_row,
    tiles,
    experts,
    top_k,
    alpha,
    limit,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    STACKED: tl.constexpr,
    DIRECT: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`gate(hidden[token] @ weight[expert] + bias)` for one tile of rows and `BLOCK_N` columns of the width.

    Gate and up of a column are computed together: `[in, 2 * BLOCK_N]` of the weight, whose columns alternate between
    the two, or stand one block beside the other if `STACKED` (where a row of the weight is what lies together in
    memory). Writes `activated` `[rows, width]` and `kept` `[rows, inner rows]`, the product before its gate; either
    may be None.
    """
    tile, column = place(tiles, (WIDTH + BLOCK_N - 1) // BLOCK_N, GROUP)
    expert = tl.load(tile_expert + tile).to(tl.int32)
    if (expert < 0) | (expert >= experts):
        return
    rows, real, safe = rows_of(tile, expert, tile_row, offsets, BLOCK_M, DIRECT)
    token = selections_of(safe, order, DIRECT) // top_k

    PARTS: tl.constexpr = 2 if GATED else 1
    SPAN: tl.constexpr = PARTS * BLOCK_N
    across = tl.arange(0, SPAN)
    if INTERLEAVED or not GATED:
        outputs = column * SPAN + across
        inside = outputs < PARTS * WIDTH
    elif STACKED:
        n = column * BLOCK_N + across % BLOCK_N
        outputs = n + (across // BLOCK_N) * WIDTH
        inside = n < WIDTH
    else:
        n = column * BLOCK_N + across // 2
        outputs = n + (across % 2) * WIDTH
        inside = n < WIDTH

    token_rows = hidden + token.to(tl.int64)[:, None] * hidden_stride_t
    weight_columns = weight + expert.to(tl.int64) * weight_stride_e + outputs[None, :] * weight_stride_out
    total = tl.full((BLOCK_M, SPAN), 0.0, tl.float32)
    total = add_product(
        total,
        token_rows,
        hidden_stride_h,
        weight_columns,
        weight_stride_in,
        inside,
        HIDDEN,
        BLOCK_K,
        WIDTH % BLOCK_N == 0,
        PRECISION,
    )
    if bias is not None:
        added = tl.load(
            bias + expert.to(tl.int64) * bias_stride_e + outputs * bias_stride_out, mask=inside, other=0.0
        )
        total += added.to(tl.float32)[None, :]

    row = rows.to(tl.int64)[:, None]
    plain = column * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = real[:, None] & (plain < WIDTH)[None, :]
    if GATED:
        gate, up = halves(total, BLOCK_M, BLOCK_N, STACKED)
        if kept is not None:
            if INTERLEAVED:
                target = kept + row * (2 * WIDTH) + outputs[None, :]
                tl.store(target, total.to(kept.dtype.element_ty), mask=real[:, None] & inside[None, :])
            else:
                target = kept + row * (2 * WIDTH) + plain[None, :]
                tl.store(target, gate.to(kept.dtype.element_ty), mask=mask)
                tl.store(target + WIDTH, up.to(kept.dtype.element_ty), mask=mask)
    else:
        gate = total
        up = total
        if kept is not None:
            tl.store(kept + row * WIDTH + plain[None, :], total.to(kept.dtype.element_ty), mask=mask)
    if activated is not None:
        result = activate(gate, up, alpha, limit, KIND, GATED)
        tl.store(activated + row * WIDTH + plain[None, :], result.to(activated.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tiles"])
def rows_product(
    values,
    weight,
    weight_stride_e,
    weight_stride_in,
    weight_stride_out,
    bias,
    bias_stride_e,
    bias_stride_out,
    scales,
    answers,
    order,
    offsets,
    tile_expert,
    tile_row,
    tiles,
    experts,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DIRECT: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`answers[selection] = (values[row] @ weight[expert] + bias) * scales[selection]`, with `values` `[rows, inputs]`.

    `answers` is `[selections, outputs]`, in the order of the tokens; bias and scales may be None. The answers of
    selections that belong to no expert here are left as they are.
    """
    tile, column = place(tiles, (OUTPUTS + BLOCK_N - 1) // BLOCK_N, GROUP)
    expert = tl.load(tile_expert + tile).to(tl.int32)
    if (expert < 0) | (expert >= experts):
        return
    rows, real, safe = rows_of(tile, expert, tile_row, offsets, BLOCK_M, DIRECT)
    selections = selections_of(safe, order, DIRECT)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < OUTPUTS

    value_rows = values + safe.to(tl.int64)[:, None] * INPUTS
    weight_columns = weight + expert.to(tl.int64) * weight_stride_e + n[None, :] * weight_stride_out
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    total = add_product(
        total,
        value_rows,
        1,
        weight_columns,
        weight_stride_in,
        inside,
        INPUTS,
        BLOCK_K,
        OUTPUTS % BLOCK_N == 0,
        PRECISION,
    )
    if bias is not None:
        added = tl.load(
            bias + expert.to(tl.int64) * bias_stride_e + n * bias_stride_out, mask=inside, other=0.0
        )
        total += added.to(tl.float32)[None, :]
    if scales is not None:
        total *= tl.load(scales + selections).to(tl.float32)[:, None]
    target = answers + selections.to(tl.int64)[:, None] * OUTPUTS + n[None, :]
    tl.store(target, total.to(answers.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def sum_choices(
    answers,
    index,
    output,
    experts,
    top_k,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`output[token]`: the sum of its `top_k` rows of `answers`, without those of experts that live elsewhere."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for choice in range(0, top_k):
        selection = token * top_k + choice
        expert = tl.load(index + selection)
        # A bound of the columns and no second mask: Triton 3.9's interpreter cannot join a scalar's with a block's.
        columns = tl.where((expert >= 0) & (expert < experts), COLUMNS, 0)
        total += tl.load(answers + selection * COLUMNS + n, mask=n < columns, other=0.0).to(tl.float32)
    tl.store(output + token * COLUMNS + n, total.to(output.dtype.element_ty), mask=n < COLUMNS)
