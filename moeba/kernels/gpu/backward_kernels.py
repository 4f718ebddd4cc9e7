"""The kernels of the backward; shapes and conventions are those of `forward_kernels`."""

# mypy: disallow-incomplete-defs=False
# Triton has no types for what kernels take and give.
from __future__ import annotations

import triton
import triton.language as tl

from .gates import activate, slopes
from .language import add_product, halves, multiply_add, place, rows_of, selections_of, summed


@triton.jit
def _strip_gradient(
    upstream,
    begin,
    kept,
    scale,
    inner_gradient,
    weighted,
    products,
    rows,
    real,
    alpha,
    limit,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Back through the gate from `upstream` `[BLOCK_M, STRIP]`, the columns from `begin` on; see `gate_gradient`.

    Returns `<upstream, activation>` of each row if there are `products`.
    """
    n = begin + tl.arange(0, STRIP)
    inside = (n < WIDTH)[None, :]
    row = rows.to(tl.int64)[:, None]
    mask = real[:, None] & inside
    PAIRS: tl.constexpr = GATED and INTERLEAVED
    inner_rows = row * (2 * WIDTH if GATED else WIDTH)
    if PAIRS:
        pair = 2 * begin + tl.arange(0, 2 * STRIP)
        pairs_inside = (pair < 2 * WIDTH)[None, :]
        pairs = tl.load(kept + inner_rows + pair[None, :], mask=pairs_inside, other=0.0)
        gate, up = halves(pairs.to(tl.float32), BLOCK_M, STRIP, False)
    else:
        gate = tl.load(kept + inner_rows + n[None, :], mask=inside, other=0.0).to(tl.float32)
        up = gate
        if GATED:
            up = tl.load(kept + inner_rows + WIDTH + n[None, :], mask=inside, other=0.0).to(tl.float32)

    shares = tl.full((BLOCK_M,), 0.0, tl.float32)
    if (weighted is not None) or (products is not None):
        activation = activate(gate, up, alpha, limit, KIND, GATED)
        if weighted is not None:
            stored = (scale[:, None] * activation).to(weighted.dtype.element_ty)
            tl.store(weighted + row * WIDTH + n[None, :], stored, mask=mask)
        if products is not None:
            shares = summed(upstream * activation, 1)
    if inner_gradient is not None:
        by_gate, by_up = slopes(gate, up, alpha, limit, KIND, GATED)
        by_gate *= upstream * scale[:, None]
        by_up *= upstream * scale[:, None]
        element = inner_gradient.dtype.element_ty
        if PAIRS:
            joined = tl.reshape(tl.join(by_gate, by_up), (BLOCK_M, 2 * STRIP))
            target = inner_gradient + inner_rows + pair[None, :]
            tl.store(target, joined.to(element), mask=real[:, None] & pairs_inside)
        else:
            target = inner_gradient + inner_rows + n[None, :]
            tl.store(target, by_gate.to(element), mask=mask)
            if GATED:
                tl.store(target + WIDTH, by_up.to(element), mask=mask)
    return shares


@triton.jit(do_not_specialize=["tiles"])
def gate_gradient(
    upstream,
    upstream_stride_t,
    upstream_stride_h,
    weight,
    weight_stride_e,
    weight_stride_in,
    weight_stride_out,
    kept,
    scales,
    inner_gradient,
    weighted,
    products,
    order,
    offsets,
    tile_expert,
    tile_row,
    tiles,
    experts,
    top_k,
    alpha,
    limit,
    product_columns,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Back through the second product and the gate, for one tile of rows and `BLOCK_N` columns of the width.

    With `d = upstream[token] @ weight[expert]` and `a` the activation, both `[rows, width]`, writes any of:
    `inner_gradient` `[rows, inner rows]`, `scale * d * gate'`; `weighted` `[rows, width]`, `scale * a`; and
    `products[selection, column tile]`, the share of these columns in `<d, a>`, the gradient of the scale.
    """
    tile, column = place(tiles, (WIDTH + BLOCK_N - 1) // BLOCK_N, GROUP)
    expert = tl.load(tile_expert + tile).to(tl.int32)
    if (expert < 0) | (expert >= experts):
        return
    rows, real, safe = rows_of(tile, expert, tile_row, offsets, BLOCK_M, False)
    selections = selections_of(safe, order, False)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < WIDTH

    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    if (inner_gradient is not None) or (products is not None):
        token = (selections // top_k).to(tl.int64)
        token_rows = upstream + token[:, None] * upstream_stride_t
        weight_columns = weight + expert.to(tl.int64) * weight_stride_e + n[None, :] * weight_stride_out
        total = add_product(
            total,
            token_rows,
            upstream_stride_h,
            weight_columns,
            weight_stride_in,
            inside,
            HIDDEN,
            BLOCK_K,
            WIDTH % BLOCK_N == 0,
            PRECISION,
        )

    scale = tl.load(scales + selections).to(tl.float32)
    # In narrow strips: what a whole tile needs at this point does not fit into registers.
    STRIP: tl.constexpr = BLOCK_N // 4 if BLOCK_N >= 64 else BLOCK_N
    begin = column * BLOCK_N
    if BLOCK_N >= 64:
        low, high = halves(total, BLOCK_M, BLOCK_N // 2, True)
        first, second = halves(low, BLOCK_M, STRIP, True)
        third, fourth = halves(high, BLOCK_M, STRIP, True)
        strips = (first, second, third, fourth)
    else:
        strips = (total, total, total, total)
    shares = tl.full((BLOCK_M,), 0.0, tl.float32)
    for number in tl.static_range(BLOCK_N // STRIP):
        shares += _strip_gradient(
            strips[number],
            begin + number * STRIP,
            kept,
            scale,
            inner_gradient,
            weighted,
            products,
            safe,
            real,
            alpha,
            limit,
            WIDTH,
            KIND,
            GATED,
            INTERLEAVED,
            BLOCK_M,
            STRIP,
        )
    if products is not None:
        tl.store(products + selections.to(tl.int64) * product_columns + column, shares, mask=real)


@triton.jit
def bias_products(
    upstream,
    upstream_stride_t,
    upstream_stride_h,
    bias,
    bias_stride_e,
    bias_stride_out,
    products,
    order,
    offsets,
    tile_expert,
    tile_row,
    experts,
    top_k,
    product_columns,
    column,
    HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`products[selection, column] = <upstream[token], bias[expert]>`: the bias's share in the scale's gradient."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile).to(tl.int32)
    if expert >= experts:
        return
    rows, real, safe = rows_of(tile, expert, tile_row, offsets, BLOCK_M, False)
    selections = selections_of(safe, order, False).to(tl.int64)
    token_rows = upstream + (selections // top_k)[:, None] * upstream_stride_t
    total = tl.full((BLOCK_M,), 0.0, tl.float32)
    for start in range(0, HIDDEN, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < HIDDEN
        left = tl.load(token_rows + k[None, :] * upstream_stride_h, mask=inside[None, :], other=0.0)
        right = tl.load(
            bias + expert.to(tl.int64) * bias_stride_e + k * bias_stride_out, mask=inside, other=0.0
        )
        total += summed(left.to(tl.float32) * right.to(tl.float32)[None, :], 1)
    tl.store(products + selections * product_columns + column, total, mask=real)


@triton.jit
def weight_gradient(
    left,
    left_stride_r,
    left_stride_i,
    right,
    right_stride_r,
    right_stride_j,
    gradient,
    gradient_stride_e,
    gradient_stride_i,
    gradient_stride_j,
    order,
    offsets,
    top_k,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    GATHER_RIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """`gradient[expert, i, j]`: the sum over the expert's rows of `left[row, i] * right[row, j]`; zeros without rows.

    A side that is gathered is held by token instead of by sorted row.
    """
    ACROSS: tl.constexpr = (COLUMNS + BLOCK_J - 1) // BLOCK_J
    DOWN: tl.constexpr = (ROWS + BLOCK_I - 1) // BLOCK_I
    program = tl.program_id(0)
    expert = program // (ACROSS * DOWN)
    inside_expert = program % (ACROSS * DOWN)
    i = (inside_expert // ACROSS) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = (inside_expert % ACROSS) * BLOCK_J + tl.arange(0, BLOCK_J)
    begin = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1)

    total = tl.full((BLOCK_I, BLOCK_J), 0.0, tl.float32)
    element = gradient.dtype.element_ty
    for start in range(begin, end, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        real = rows < end
        if GATHER_LEFT or GATHER_RIGHT:
            tokens = (tl.load(order + rows, mask=real, other=0) // top_k).to(tl.int64)
        left_rows = tokens if GATHER_LEFT else rows.to(tl.int64)
        right_rows = tokens if GATHER_RIGHT else rows.to(tl.int64)
        l = tl.load(
            left + left_rows[None, :] * left_stride_r + i[:, None] * left_stride_i,
            mask=real[None, :] & (i < ROWS)[:, None],
            other=0.0,
        )
        r = tl.load(
            right + right_rows[:, None] * right_stride_r + j[None, :] * right_stride_j,
            mask=real[:, None] & (j < COLUMNS)[None, :],
            other=0.0,
        )
        total = multiply_add(l.to(element), r.to(element), total, PRECISION)
    target = gradient + expert.to(tl.int64) * gradient_stride_e
    target += i[:, None].to(tl.int64) * gradient_stride_i + j[None, :] * gradient_stride_j
    tl.store(target, total.to(element), mask=(i < ROWS)[:, None] & (j < COLUMNS)[None, :])


@triton.jit
def bias_gradient(
    values,
    values_stride_r,
    values_stride_c,
    scales,
    gradient,
    order,
    offsets,
    top_k,
    COLUMNS: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`gradient[expert, column]`: the sum over the expert's rows of `scale * values`; `scales` may be None."""
    expert = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < COLUMNS
    begin = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1)
    total = tl.full((BLOCK_R, BLOCK), 0.0, tl.float32)
    for start in range(begin, end, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        real = rows < end
        selections = tl.load(order + rows, mask=real, other=0)
        value_rows = (selections // top_k if GATHER else rows).to(tl.int64)
        mask = real[:, None] & inside[None, :]
        x = tl.load(
            values + value_rows[:, None] * values_stride_r + n[None, :] * values_stride_c,
            mask=mask,
            other=0.0,
        )
        x = x.to(tl.float32)
        if scales is not None:
            x *= tl.load(scales + selections, mask=real, other=0.0).to(tl.float32)[:, None]
        total += x
    target = gradient + expert.to(tl.int64) * COLUMNS + n
    tl.store(target, summed(total, 0).to(gradient.dtype.element_ty), mask=inside)
