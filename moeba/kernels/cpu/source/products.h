// Matrix products of few rows: one expert's weights times the tokens that chose it.
//
// Tokens lie along the lanes of a vector. A *panel* holds up to TILE_VECTORS * LANES tokens, transposed: [depth][width],
// so that the output of one product is the input of the next as it stands, and weights are read as they are stored,
// each value once for a whole panel. Weights of 16 bits widen as they are read.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "vectors.h"

constexpr int DEPTH = 512;  // of a block; twice as much where float32 weights are read in place
constexpr int BLOCK_ROWS = 2 * TILE_ROWS;  // a block of weights that is widened at a time
constexpr int PANEL = TILE_VECTORS * LANES;

// A matrix as it is stored: strides in elements, one of which is 1.
template <class W>
struct Matrix {
    const W* data;
    int64_t rows, columns, row_stride, column_stride;

    const W* at(int64_t row, int64_t column) const { return data + row * row_stride + column * column_stride; }
    bool rows_are_contiguous() const { return column_stride == 1; }
    Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

// Tokens of one task, cut into panels of about equal width.
struct Panels {
    int count = 0, vectors[16];
    int64_t starts[17];  // in tokens, multiples of LANES

    explicit Panels(int64_t tokens) {
        int total = (tokens + LANES - 1) / LANES;
        count = (total + TILE_VECTORS - 1) / TILE_VECTORS;
        starts[0] = 0;
        for (int p = 0; p < count; p++) {
            vectors[p] = total / count + (p < total % count);
            starts[p + 1] = starts[p] + vectors[p] * LANES;
        }
    }
    int64_t width(int p) const { return (int64_t)vectors[p] * LANES; }
    int64_t tokens() const { return starts[count]; }
};

// Addresses of the next block's weights, asked for one by one while this block is multiplied.
struct Ahead {
    const void* lines[BLOCK_ROWS * 2 * DEPTH * 4 / 64 + BLOCK_ROWS];
    int count = 0, done = 0, pace = 0;

    // Spreads the requests over `steps` calls of next: the processor can wait for a dozen lines at a time only.
    void begin(int64_t steps) {
        for (pace = 0; count && (count << (pace + 1)) <= steps; pace++) {}
        done = 0;
    }
    void next(int step) {
        if (!(step & ((1 << pace) - 1)) && done < count) __builtin_prefetch(lines[done++], 0, 2);
    }
};

// out[TILE_ROWS][vectors] (+)= rows[TILE_ROWS][depth] * panel[depth][vectors]; the weights of a row are STEP apart.
template <int VECTORS, int STEP>
static inline void tile(const float* const (&rows)[TILE_ROWS], const float* panel, float* out, int depth, Ahead& ahead) {
    constexpr int WIDTH = VECTORS * LANES;
    Vector sums[TILE_ROWS][VECTORS];
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = load(out + r * WIDTH + v * LANES);
    for (int k = 0; k < depth; k++) {
        ahead.next(k);
        Vector tokens[VECTORS];
        for (int v = 0; v < VECTORS; v++) tokens[v] = load(panel + k * WIDTH + v * LANES);
        for (int r = 0; r < TILE_ROWS; r++) {
            Vector weight = broadcast(rows[r][k * STEP]);
            for (int v = 0; v < VECTORS; v++) sums[r][v] += weight * tokens[v];
        }
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * WIDTH + v * LANES, sums[r][v]);
}

template <int STEP>
static inline void tile_of(int vectors, const float* const (&rows)[TILE_ROWS], const float* panel, float* out, int depth,
                           Ahead& ahead) {
    if (vectors == 3) tile<3, STEP>(rows, panel, out, depth, ahead);
    else if (vectors == 2) tile<2, STEP>(rows, panel, out, depth, ahead);
    else tile<1, STEP>(rows, panel, out, depth, ahead);
}

// Widens BLOCK_ROWS x depth weights, [row][DEPTH] or [depth][BLOCK_ROWS] as they are stored; rows beyond the matrix
// become zero.
template <class W>
static inline void read_block(const Matrix<W>& m, int64_t row, int64_t column, int depth, float* block) {
    int rows = std::min<int64_t>(BLOCK_ROWS, m.rows - row);
    if (m.rows_are_contiguous()) {
        for (int r = 0; r < rows; r++) {
            const W* from = m.at(row + r, column);
            float* to = block + r * DEPTH;
            int k = 0;
            for (; k + LANES <= depth; k += LANES) store(to + k, load(from + k));
            for (; k < depth; k++) to[k] = widen(from[k]);
        }
        for (int r = rows; r < BLOCK_ROWS; r++) memset(block + r * DEPTH, 0, depth * 4);
    } else if (rows == BLOCK_ROWS && BLOCK_ROWS % LANES == 0) {
        for (int k = 0; k < depth; k++)
            for (int r = 0; r < BLOCK_ROWS; r += LANES)
                store(block + k * BLOCK_ROWS + r, load(m.at(row + r, column + k)));
    } else {
        for (int k = 0; k < depth; k++)
            for (int r = 0; r < BLOCK_ROWS; r++)
                block[k * BLOCK_ROWS + r] = r < rows ? widen(*m.at(row + r, column + k)) : 0.0f;
    }
}

template <class W>
static inline void look_ahead(const Matrix<W>& m, int64_t row, int64_t column, int depth, Ahead& ahead) {
    ahead.count = 0;
    int rows = std::min<int64_t>(BLOCK_ROWS, m.rows - row);
    if (m.rows_are_contiguous()) {
        for (int r = 0; r < rows; r++)
            for (int k = 0; k < depth; k += 64 / sizeof(W)) ahead.lines[ahead.count++] = m.at(row + r, column + k);
    } else {
        for (int k = 0; k < depth && rows > 0; k++) ahead.lines[ahead.count++] = m.at(row, column + k);
    }
}

static inline int64_t padded_rows(int64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; }

// out = m * in (+ bias), panel by panel. `out` holds padded_rows(m.rows) rows.
template <class W>
static void multiply(const Matrix<W>& m, const W* bias, const Panels& panels, const float* in, float* out) {
    int64_t out_rows = padded_rows(m.rows);
    for (int p = 0; p < panels.count; p++) {
        float* to = out + panels.starts[p] * out_rows;
        for (int64_t r = 0; r < out_rows; r++) {
            Vector first = bias && r < m.rows ? broadcast(widen(bias[r])) : Vector{};
            for (int v = 0; v < panels.vectors[p]; v++) store(to + r * panels.width(p) + v * LANES, first);
        }
    }
    alignas(64) float block[BLOCK_ROWS * DEPTH];
    Ahead ahead;
    const bool in_place = std::is_same<W, float>::value && m.rows_are_contiguous();
    const int64_t most = in_place ? 2 * DEPTH : DEPTH;
    for (int64_t column = 0; column < m.columns; column += most) {
        int depth = std::min(most, m.columns - column);
        for (int64_t row = 0; row < m.rows; row += BLOCK_ROWS) {
            if (!in_place) read_block(m, row, column, depth, block);
            if (row + BLOCK_ROWS < m.rows) look_ahead(m, row + BLOCK_ROWS, column, depth, ahead);
            else if (column + most < m.columns)
                look_ahead(m, 0, column + most, std::min(most, m.columns - column - most), ahead);
            else ahead.count = 0;
            int64_t last = std::min(row + BLOCK_ROWS, out_rows);
            ahead.begin(panels.count * (last - row) / TILE_ROWS * depth);
            for (int p = 0; p < panels.count; p++) {
                const float* panel = in + panels.starts[p] * m.columns + column * panels.width(p);
                float* to = out + panels.starts[p] * out_rows;
                for (int64_t first = row; first < last; first += TILE_ROWS) {
                    const float* rows[TILE_ROWS];
                    for (int r = 0; r < TILE_ROWS; r++)
                        rows[r] = in_place ? (const float*)m.at(std::min(first + r, m.rows - 1), column)
                                  : m.rows_are_contiguous() ? block + (first - row + r) * DEPTH
                                                            : block + (first - row + r);
                    float* sums = to + first * panels.width(p);
                    if (m.rows_are_contiguous()) tile_of<1>(panels.vectors[p], rows, panel, sums, depth, ahead);
                    else tile_of<BLOCK_ROWS>(panels.vectors[p], rows, panel, sums, depth, ahead);
                }
            }
        }
    }
}

// Rows of tokens -> a panel [columns][width]; tokens beyond `count` become zero.
template <class X>
static void gather_panel(X* const* rows, int64_t count, int64_t columns, int vectors, float* panel) {
    int64_t width = (int64_t)vectors * LANES;
    for (int64_t t = 0; t < width; t += LANES) {
        int64_t column = 0;
        for (; column + LANES <= columns; column += LANES) {
            Vector square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = t + i < count ? load(rows[t + i] + column) : Vector{};
            transpose(square);
            for (int i = 0; i < LANES; i++) store(panel + (column + i) * width + t, square[i]);
        }
        for (; column < columns; column++)
            for (int i = 0; i < LANES; i++)
                panel[column * width + t + i] = t + i < count ? widen(rows[t + i][column]) : 0.0f;
    }
}

// A panel [columns][width] -> rows of tokens.
template <class Y>
static void scatter_panel(const float* panel, int64_t count, int64_t columns, int vectors, Y* const* rows) {
    int64_t width = (int64_t)vectors * LANES;
    for (int64_t t = 0; t < count; t += LANES) {
        int64_t column = 0;
        for (; column + LANES <= columns; column += LANES) {
            Vector square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = load(panel + (column + i) * width + t);
            transpose(square);
            for (int i = 0; i < LANES && t + i < count; i++) store(rows[t + i] + column, square[i]);
        }
        for (; column < columns; column++)
            for (int i = 0; i < LANES && t + i < count; i++)
                narrow(rows[t + i] + column, panel[column * width + t + i]);
    }
}

// Rows of all tokens of a task -> its panels, of which each keeps `stored` columns; and back.
template <class X>
static void gather(const Panels& panels, const std::vector<X*>& rows, int64_t columns, int64_t stored, float* to) {
    for (int i = 0; i < panels.count; i++) {
        int64_t start = panels.starts[i], count = std::min<int64_t>(panels.width(i), rows.size() - start);
        gather_panel(rows.data() + start, count, columns, panels.vectors[i], to + start * stored);
    }
}

template <class Y>
static void scatter(const Panels& panels, const std::vector<Y*>& rows, const float* from, int64_t stored,
                    int64_t columns) {
    for (int i = 0; i < panels.count; i++) {
        int64_t start = panels.starts[i], count = std::min<int64_t>(panels.width(i), rows.size() - start);
        scatter_panel(from + start * stored, count, columns, panels.vectors[i], rows.data() + start);
    }
}

// ---- gradients of weights: sums over tokens of outer products ----

// Columns first..first + WIDTH of rows, [token][WIDTH]: neighbours in memory, so that no two rows want one cache set.
template <int WIDTH>
static inline void pack(const float* const* rows, int64_t first, int64_t columns, int64_t count, float* packed) {
    if (columns >= WIDTH) {
        for (int64_t t = 0; t < count; t++) memcpy(packed + t * WIDTH, rows[t] + first, WIDTH * 4);
        return;
    }
    for (int64_t t = 0; t < count; t++)
        for (int c = 0; c < WIDTH; c++) packed[t * WIDTH + c] = c < columns ? rows[t][first + c] : 0.0f;
}

constexpr int64_t OUTER_TOKENS = 128;  // packed rows of so many tokens stay in L1 while all tiles read them

// sums[TILE_ROWS][VECTORS] (+)= sum over tokens of left[token][TILE_ROWS] x right[token][VECTORS]
template <int VECTORS>
static inline void outer_tile(const float* left, const float* right, int64_t count, float* partial, bool add) {
    Vector sums[TILE_ROWS][VECTORS];
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = add ? load(partial + (r * VECTORS + v) * LANES) : Vector{};
    for (int64_t t = 0; t < count; t++) {
        Vector values[VECTORS];
        for (int v = 0; v < VECTORS; v++) values[v] = load(right + (t * VECTORS + v) * LANES);
        for (int r = 0; r < TILE_ROWS; r++) {
            Vector scale = broadcast(left[t * TILE_ROWS + r]);
            for (int v = 0; v < VECTORS; v++) sums[r][v] += scale * values[v];
        }
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (int v = 0; v < VECTORS; v++) store(partial + (r * VECTORS + v) * LANES, sums[r][v]);
}

// What a gradient is written for: a fresh one that no cache could hold goes past it.
enum class Write { through, past_cache, add };

template <class W>
static inline void write_row(const float* from, int64_t columns, W* to, Write how) {
    int64_t c = 0;
    bool add = how == Write::add;
    if (how == Write::past_cache && (uintptr_t)to % (LANES * sizeof(W)) == 0)
        for (; c + LANES <= columns; c += LANES) store_past_cache(to + c, load(from + c));
    for (; c + LANES <= columns; c += LANES) store(to + c, add ? load(from + c) + load(to + c) : load(from + c));
    for (; c < columns; c++) narrow(to + c, add ? from[c] + widen(to[c]) : from[c]);
}

template <int VECTORS, class W>
static void outer_columns(const float* left, int64_t rows, const float* const* right, int64_t column, int64_t columns,
                          int64_t count, W* out, Write how, float* packed, float* partial) {
    constexpr int WIDTH = VECTORS * LANES;
    int64_t some = std::min<int64_t>(WIDTH, columns - column);
    for (int64_t first = 0; first < count; first += OUTER_TOKENS) {
        int64_t tokens = std::min(OUTER_TOKENS, count - first);
        pack<WIDTH>(right + first, column, some, tokens, packed);
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            outer_tile<VECTORS>(left + row * count + first * TILE_ROWS, packed, tokens, partial + row * WIDTH, first > 0);
    }
    for (int64_t row = 0; row < rows; row++)
        write_row(partial + row * WIDTH, some, out + row * columns + column, how);
}

static inline int64_t outer_scratch(int64_t rows, int64_t count) {
    return padded_rows(rows) * (count + PANEL) + OUTER_TOKENS * PANEL;
}

// Rows first..last of out[rows][columns] (+)= sum over tokens of left[token] x right[token].
// `scratch` holds outer_scratch(last - first, count) floats.
template <class W>
static void outer_product(const float* const* left, int64_t first, int64_t last, const float* const* right,
                          int64_t columns, int64_t count, W* out, Write how, float* scratch) {
    int64_t rows = last - first;
    float *packed = scratch, *partial = packed + OUTER_TOKENS * PANEL, *turned = partial + padded_rows(rows) * PANEL;
    for (int64_t row = 0; row < rows; row += TILE_ROWS)
        pack<TILE_ROWS>(left, first + row, rows - row, count, turned + row * count);
    out += first * columns;
    for (int64_t column = 0; column < columns; column += PANEL) {
        int64_t rest = columns - column;
        auto some = rest > 2 * LANES ? outer_columns<3, W> : rest > LANES ? outer_columns<2, W> : outer_columns<1, W>;
        some(turned, rows, right, column, columns, count, out, how, packed, partial);
    }
    finish_stores();
}
