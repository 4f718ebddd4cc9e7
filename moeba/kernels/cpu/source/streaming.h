// For a handful of tokens the time is that of reading the weights: each is read once, in place, for all of them.
#pragma once

#include "products.h"

constexpr int DOT_TOKENS = LANES == 16 ? 6 : 3;  // at once
// Rows at once: as many sums as there are registers.
constexpr int dot_rows_for(int tokens) { return LANES == 16 && tokens <= 3 ? 8 : 4; }
// Vectors of columns at once, where columns are contiguous: long pieces of each row, for memory gives those faster.
constexpr int columns_for(int tokens) { return LANES == 16 ? (tokens == 1 ? 16 : tokens <= 3 ? 8 : 4) : 4; }
constexpr int64_t NEAR = 16384;  // elements: rows further apart are long enough for the processor to foresee

template <int TOKENS, int ROWS, class W>
static inline void dot_rows(const W* weights, int64_t stride, int64_t depth, const float* const* x, float* const* out) {
    Vector sums[ROWS][TOKENS] = {};
    int64_t ahead = ROWS * stride <= NEAR ? ROWS * stride : 512, k = 0;
    for (; k + LANES <= depth; k += LANES) {
        Vector w[ROWS];
        for (int r = 0; r < ROWS; r++) {
            __builtin_prefetch(weights + r * stride + k + ahead);
            w[r] = load(weights + r * stride + k);
        }
        for (int t = 0; t < TOKENS; t++) {
            Vector token = load(x[t] + k);
            for (int r = 0; r < ROWS; r++) sums[r][t] += w[r] * token;
        }
    }
    // Sum number t * ROWS + r belongs to token t and row r.
    constexpr int GROUPS = (TOKENS * ROWS + LANES - 1) / LANES;
    float totals[GROUPS * LANES];
    for (int g = 0; g < GROUPS; g++) {
        Vector group[LANES];
        for (int i = 0; i < LANES; i++) {
            int n = g * LANES + i;
            group[i] = n < TOKENS * ROWS ? sums[n % ROWS][n / ROWS % TOKENS] : Vector{};
        }
        store(totals + g * LANES, sums_of(group));
    }
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++) {
            float total = totals[t * ROWS + r];
            for (int64_t i = k; i < depth; i++) total += widen(weights[r * stride + i]) * x[t][i];
            out[t][r] = total;
        }
}

// The same for weights whose columns are contiguous: sums of scaled columns.
template <int TOKENS, int VECTORS, class W>
static inline void add_columns(const W* weights, int64_t stride, int64_t depth, const float* const* x,
                               float* const* out) {
    Vector sums[TOKENS][VECTORS] = {};
    for (int64_t k = 0; k < depth; k++) {
        Vector w[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            __builtin_prefetch(weights + (k + 8) * stride + v * LANES);
            w[v] = load(weights + k * stride + v * LANES);
        }
        for (int t = 0; t < TOKENS; t++) {
            Vector scale = broadcast(x[t][k]);
            for (int v = 0; v < VECTORS; v++) sums[t][v] += scale * w[v];
        }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int v = 0; v < VECTORS; v++) store(out[t] + v * LANES, sums[t][v]);
}

template <int TOKENS, class W>
static void stream_group(const Matrix<W>& m, int64_t first, int64_t rows, const float* const* x, float* const* out) {
    int64_t row = 0;
    float* to[TOKENS];
    auto at = [&](int64_t r) {
        for (int t = 0; t < TOKENS; t++) to[t] = out[t] + r;
        return to;
    };
    if (m.rows_are_contiguous()) {
        constexpr int ROWS = dot_rows_for(TOKENS);
        for (; row + ROWS <= rows; row += ROWS)
            dot_rows<TOKENS, ROWS>(m.at(first + row, 0), m.row_stride, m.columns, x, at(row));
        for (; row < rows; row++) dot_rows<TOKENS, 1>(m.at(first + row, 0), m.row_stride, m.columns, x, at(row));
        return;
    }
    constexpr int VECTORS = columns_for(TOKENS);
    for (; row + VECTORS * LANES <= rows; row += VECTORS * LANES)
        add_columns<TOKENS, VECTORS>(m.at(first + row, 0), m.column_stride, m.columns, x, at(row));
    for (; row + LANES <= rows; row += LANES)
        add_columns<TOKENS, 1>(m.at(first + row, 0), m.column_stride, m.columns, x, at(row));
    for (; row < rows; row++)
        for (int t = 0; t < TOKENS; t++) {
            float total = 0.0f;
            for (int64_t k = 0; k < m.columns; k++) total += widen(*m.at(first + row, k)) * x[t][k];
            out[t][row] = total;
        }
}

// out[token][0..rows] = m[first..first+rows] * x[token], for any number of tokens.
template <class W>
static void stream(const Matrix<W>& m, int64_t first, int64_t rows, int64_t tokens, const float* const* x,
                   float* const* out) {
    for (int64_t t = 0; t < tokens;) {
        int group = std::min<int64_t>(DOT_TOKENS, tokens - t);
        switch (group) {
            case 1: stream_group<1>(m, first, rows, x + t, out + t); break;
            case 2: stream_group<2>(m, first, rows, x + t, out + t); break;
            case 3: stream_group<3>(m, first, rows, x + t, out + t); break;
            case 4: stream_group<4>(m, first, rows, x + t, out + t); break;
            case 5: stream_group<5>(m, first, rows, x + t, out + t); break;
            default: stream_group<6>(m, first, rows, x + t, out + t); break;
        }
        t += group;
    }
}
