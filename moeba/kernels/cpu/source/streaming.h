// For a handful of tokens the time is that of reading the weights: each is read once, in place, for all of them.
//
// A core reads several places at once faster than one after the other (22 GB/s instead of 18 on two cores of a Xeon): the
// processor foresees each of them by itself. So a block is read as several streams that lie apart.
#pragma once

#include "products.h"

constexpr int DOT_TOKENS = LANES == 16 ? 6 : 3;  // at once
// Streams: as many sums as there are registers.
constexpr int dot_streams_for(int tokens) { return LANES == 16 && tokens <= 3 ? 8 : 4; }
constexpr int COLUMN_STREAMS = 8;

// One row of each stream, `apart` rows from each other; sums go `apart` from each other too.
template <int TOKENS, int STREAMS, class W>
static inline void dot_rows(const Matrix<W>& m, int64_t row, int64_t apart, const float* const* x, float* const* out) {
    const W* weights = m.at(row, 0);
    int64_t stride = apart * m.row_stride, k = 0;
    Vector sums[STREAMS][TOKENS] = {};
    for (; k + LANES <= m.columns; k += LANES) {
        Vector w[STREAMS];
        for (int s = 0; s < STREAMS; s++) w[s] = load(weights + s * stride + k);
        for (int t = 0; t < TOKENS; t++) {
            Vector token = load(x[t] + k);
            for (int s = 0; s < STREAMS; s++) sums[s][t] += w[s] * token;
        }
    }
    // Sum number t * STREAMS + s belongs to token t and stream s.
    constexpr int GROUPS = (TOKENS * STREAMS + LANES - 1) / LANES;
    float totals[GROUPS * LANES];
    for (int g = 0; g < GROUPS; g++) {
        Vector group[LANES];
        for (int i = 0; i < LANES; i++) {
            int n = g * LANES + i;
            group[i] = n < TOKENS * STREAMS ? sums[n % STREAMS][n / STREAMS % TOKENS] : Vector{};
        }
        store(totals + g * LANES, sums_of(group));
    }
    for (int t = 0; t < TOKENS; t++)
        for (int s = 0; s < STREAMS; s++) {
            float total = totals[t * STREAMS + s];
            for (int64_t i = k; i < m.columns; i++) total += widen(weights[s * stride + i]) * x[t][i];
            out[t][s * apart] = total;
        }
}

template <int TOKENS, class W>
static void stream_rows(const Matrix<W>& m, int64_t first, int64_t rows, const float* const* x, float* const* out) {
    constexpr int STREAMS = dot_streams_for(TOKENS);
    float* to[TOKENS];
    auto at = [&](int64_t row) {
        for (int t = 0; t < TOKENS; t++) to[t] = out[t] + row;
        return to;
    };
    int64_t each = rows / STREAMS;
    for (int64_t row = 0; row < each; row++) dot_rows<TOKENS, STREAMS>(m, first + row, each, x, at(row));
    for (int64_t row = each * STREAMS; row < rows; row++) dot_rows<TOKENS, 1>(m, first + row, 0, x, at(row));
}

// The same for weights whose columns are contiguous: out[token] += the sum of STREAMS columns, `apart` from each other,
// each times its element of x[token]. Sums stay in the nearest cache.
template <int STREAMS, class W>
static inline void add_columns(const Matrix<W>& m, int64_t first, int64_t rows, int64_t column, int64_t apart,
                               int64_t tokens, const float* const* x, float* const* out) {
    const W* weights = m.at(first, column);
    int64_t stride = apart * m.column_stride, row = 0;
    for (; row + LANES <= rows; row += LANES) {
        Vector w[STREAMS];
        for (int s = 0; s < STREAMS; s++) w[s] = load(weights + s * stride + row);
        for (int64_t t = 0; t < tokens; t++) {
            Vector even = load(out[t] + row), odd = {};
            for (int s = 0; s < STREAMS; s++) (s % 2 ? odd : even) += w[s] * broadcast(x[t][column + s * apart]);
            store(out[t] + row, even + odd);
        }
    }
    for (; row < rows; row++)
        for (int64_t t = 0; t < tokens; t++)
            for (int s = 0; s < STREAMS; s++) out[t][row] += widen(weights[s * stride + row]) * x[t][column + s * apart];
}

template <class W>
static void stream_columns(const Matrix<W>& m, int64_t first, int64_t rows, int64_t tokens, const float* const* x,
                           float* const* out) {
    for (int64_t t = 0; t < tokens; t++) memset(out[t], 0, rows * 4);
    int64_t each = m.columns / COLUMN_STREAMS;
    for (int64_t column = 0; column < each; column++)
        add_columns<COLUMN_STREAMS>(m, first, rows, column, each, tokens, x, out);
    for (int64_t column = each * COLUMN_STREAMS; column < m.columns; column++)
        add_columns<1>(m, first, rows, column, 0, tokens, x, out);
}

// out[token][0..rows] = m[first..first+rows] * x[token], for any number of tokens.
template <class W>
static void stream(const Matrix<W>& m, int64_t first, int64_t rows, int64_t tokens, const float* const* x,
                   float* const* out) {
    if (!m.rows_are_contiguous()) return stream_columns(m, first, rows, tokens, x, out);
    for (int64_t t = 0; t < tokens;) {
        int group = std::min<int64_t>(DOT_TOKENS, tokens - t);
        switch (group) {
            case 1: stream_rows<1>(m, first, rows, x + t, out + t); break;
            case 2: stream_rows<2>(m, first, rows, x + t, out + t); break;
            case 3: stream_rows<3>(m, first, rows, x + t, out + t); break;
            case 4: stream_rows<4>(m, first, rows, x + t, out + t); break;
            case 5: stream_rows<5>(m, first, rows, x + t, out + t); break;
            default: stream_rows<6>(m, first, rows, x + t, out + t); break;
        }
        t += group;
    }
}
