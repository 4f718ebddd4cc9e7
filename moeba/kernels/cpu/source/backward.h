// The layer backward: first what each token changes, then the gradients of the weights.
#pragma once

#include "forward.h"

constexpr int64_t OUTER_ROWS = 256;         // of a task
constexpr int64_t CHUNKS = 4;               // of experts, one after the other in the same memory
constexpr int64_t CACHED_BYTES = 16 << 20;  // a gradient beyond this is not in the cache when it is next read

template <class W>
Write way_of_writing(int64_t experts, int64_t rows, int64_t columns, bool add) {
    if (add) return Write::add;
    return experts * rows * columns * (int64_t)sizeof(W) > CACHED_BYTES ? Write::past_cache : Write::through;
}

// Experts whose weights get their gradients before the next chunk's tokens are looked at: [first, last) in
// `Routing::active`, their selections [begin, end), and their tasks.
struct Chunk {
    int64_t first, last, begin, end;
    std::vector<Task> tasks;
};

// About CHUNKS of about equal numbers of tokens, fewer where threads would be idle.
static std::vector<Chunk> chunks_of(const Routing& routing, int64_t threads) {
    int64_t most = std::max((routing.size() + CHUNKS - 1) / CHUNKS, 4 * threads * TASK_TOKENS);
    std::vector<Chunk> found;
    std::vector<int64_t> chunk_of(routing.starts.size());
    for (int64_t i = 0; i < (int64_t)routing.active.size(); i++) {
        int64_t e = routing.active[i], begin = routing.starts[e], end = routing.starts[e + 1];
        if (found.empty() || end - found.back().begin > most) found.push_back({i, i, begin, begin, {}});
        found.back().last = i + 1, found.back().end = end, chunk_of[e] = found.size() - 1;
    }
    for (const Task& task : routing.tasks(TASK_TOKENS)) found[chunk_of[task.expert]].tasks.push_back(task);
    return found;
}

// What tokens leave for the gradients of the weights: addresses of rows, sorted by expert. Chunks share their memory.
struct Kept {
    std::vector<float*> d_inner, act;  // empty where nothing wants them
    float* d_x = nullptr;              // [selections, hidden]
};

// Each chunk's rows from `base` on.
static std::vector<float*> rows_of(const Routing& routing, const std::vector<Chunk>& chunks, float* base,
                                   int64_t length) {
    std::vector<float*> rows(routing.size());
    for (const Chunk& chunk : chunks)
        for (int64_t i = chunk.begin; i < chunk.end; i++) rows[i] = base + (i - chunk.begin) * length;
    return rows;
}

template <class W>
void backward_task(const Layer<W>& layer, const Routing& routing, const Task& task, const Kept& kept) {
    const Problem& p = layer.p;
    Panels panels(task.count);
    int64_t n = panels.tokens(), stored = padded_rows(layer.rows), hidden = padded_rows(p.hidden);
    int64_t width = padded_rows(p.width);
    own_scratch.reserve(Scratch::padded(n * hidden) + Scratch::padded(n * stored) + 2 * Scratch::padded(n * width) +
                        2 * Scratch::padded(n));
    float *d_out = own_scratch.take(n * hidden), *inner = own_scratch.take(n * stored);
    float *d_act = own_scratch.take(n * width), *act = own_scratch.take(n * width);
    float *scale = own_scratch.take(n), *dot = own_scratch.take(n);

    auto answered = row_pointers(routing, task, p.d_out, p.hidden, p.top_k);
    if (p.saved) gather(panels, sorted_rows(task, (const W*)p.saved, layer.rows), layer.rows, stored, inner);
    else inner_panels(layer, routing, task, panels, d_out, inner);
    gather(panels, answered, p.hidden, p.hidden, d_out);
    for (int64_t t = 0; t < n; t++) {
        dot[t] = 0.0f;
        scale[t] = t < task.count ? p.weights[routing.order[task.first + t]] : 0.0f;
    }
    multiply<W>(layer.down(task.expert).transposed(), nullptr, panels, d_out, d_act);
    int64_t padding = width - p.width;  // d_act has padded rows, act has not
    each_row_of_gate(layer, panels, inner, [&](float* g, float* u, int64_t at, int64_t first, int64_t lanes) {
        layer.gate.backward(g, u, d_act + at + first * padding, scale + first, act + at, dot + first, lanes,
                            layer.numbers);
    });
    if (p.d_weights)
        for (int64_t t = 0; t < task.count; t++) {
            float total = dot[t];
            if (const W* bias = layer.down_bias(task.expert))
                for (int64_t c = 0; c < p.hidden; c++) total += answered[t][c] * widen(bias[c]);
            p.d_weights[routing.order[task.first + t]] = total;
        }
    auto of_task = [&](const std::vector<float*>& rows) {
        return std::vector<float*>(rows.begin() + task.first, rows.begin() + task.first + task.count);
    };
    if (kept.act.size()) scatter(panels, of_task(kept.act), act, p.width, p.width);
    if (kept.d_inner.size()) scatter(panels, of_task(kept.d_inner), inner, stored, layer.rows);
    if (!kept.d_x) return;
    if (stored != layer.rows)  // panels as the next product reads them, without padded rows
        for (int i = 1; i < panels.count; i++)
            memmove(inner + panels.starts[i] * layer.rows, inner + panels.starts[i] * stored,
                    panels.width(i) * layer.rows * 4);
    float* d_x = d_out;
    multiply<W>(layer.inner(task.expert).transposed(), nullptr, panels, inner, d_x);
    scatter(panels, row_pointers(routing, task, kept.d_x, p.hidden, 1), d_x, hidden, p.hidden);
}

// Rows of the gradient of one expert's weights: out[left][right] summed over its tokens.
template <class W>
void weight_task(const Routing& routing, int64_t e, int64_t block, const float* const* left, int64_t left_size,
                 const float* const* right, int64_t right_size, W* gradient, Write how) {
    int64_t start = routing.starts[e], first = block * OUTER_ROWS, last = std::min(left_size, first + OUTER_ROWS);
    own_scratch.reserve(outer_scratch(last - first, routing.count(e)));
    outer_product(left + start, first, last, right + start, right_size, routing.count(e),
                  gradient + e * left_size * right_size, how, own_scratch.take(0));
}

template <class W>
void bias_task(const Routing& routing, int64_t e, const float* const* rows, const float* scales, int64_t size,
               W* gradient) {
    std::vector<float> total(size, 0.0f);
    for (int64_t s = routing.starts[e]; s < routing.starts[e + 1]; s++) {
        float scale = scales ? scales[routing.order[s]] : 1.0f;
        for (int64_t c = 0; c < size; c++) total[c] += scale * rows[s][c];
    }
    for (int64_t c = 0; c < size; c++) narrow(gradient + e * size + c, total[c]);
}

template <class W>
int backward(const Problem& p) {
    Routing routing(p.index, p.tokens * p.top_k, p.experts);
    if (!routing.valid) return 1;
    Layer<W> layer(p);
    auto chunks = chunks_of(routing, p.threads);
    int64_t active = routing.active.size(), selections = p.tokens * p.top_k, most = 0;
    for (const Chunk& chunk : chunks) most = std::max(most, chunk.end - chunk.begin);
    bool needs_inner = p.d_inner || p.d_inner_bias;
    size_t inner_size = needs_inner ? Scratch::padded(most * layer.rows) : 0;
    size_t act_size = p.d_down ? Scratch::padded(most * p.width) : 0;
    size_t x_size = p.d_x ? Scratch::padded(selections * p.hidden) : 0;
    shared_scratch.reserve(inner_size + act_size + x_size);
    Kept kept;
    if (needs_inner) kept.d_inner = rows_of(routing, chunks, shared_scratch.take(inner_size), layer.rows);
    if (p.d_down) kept.act = rows_of(routing, chunks, shared_scratch.take(act_size), p.width);
    if (p.d_x) kept.d_x = shared_scratch.take(x_size);

    Task all{0, 0, routing.size()};
    auto x = row_pointers(routing, all, p.x, p.hidden, p.top_k);
    auto d_out = row_pointers(routing, all, p.d_out, p.hidden, p.top_k);
    std::vector<const float*> d_inner(kept.d_inner.begin(), kept.d_inner.end()), act(kept.act.begin(), kept.act.end());
    // The gradient is stored as the weight is: [out, in], or [in, out] when its columns are contiguous.
    bool inner_turned = p.inner_in != 1, down_turned = p.down_in != 1;
    auto &inner_left = inner_turned ? x : d_inner, &inner_right = inner_turned ? d_inner : x;
    auto &down_left = down_turned ? act : d_out, &down_right = down_turned ? d_out : act;
    int64_t inner_rows = inner_turned ? p.hidden : layer.rows, inner_columns = layer.rows + p.hidden - inner_rows;
    int64_t down_rows = down_turned ? p.width : p.hidden, down_columns = p.width + p.hidden - down_rows;
    int64_t inner_blocks = p.d_inner ? (inner_rows + OUTER_ROWS - 1) / OUTER_ROWS : 0;
    int64_t down_blocks = p.d_down ? (down_rows + OUTER_ROWS - 1) / OUTER_ROWS : 0;
    Write write_inner = way_of_writing<W>(active, inner_rows, inner_columns, p.add_inner);
    Write write_down = way_of_writing<W>(active, down_rows, down_columns, p.add_down);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        for (const Chunk& chunk : chunks) {
            int64_t experts = chunk.last - chunk.first;
            auto expert = [&](int64_t i) { return routing.active[chunk.first + i]; };
#pragma omp for schedule(dynamic, 1)
            for (size_t i = 0; i < chunk.tasks.size(); i++) backward_task(layer, routing, chunk.tasks[i], kept);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t i = 0; i < experts * inner_blocks; i++)
                weight_task(routing, expert(i / inner_blocks), i % inner_blocks, inner_left.data(), inner_rows,
                            inner_right.data(), inner_columns, (W*)p.d_inner, write_inner);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t i = 0; i < experts * down_blocks; i++)
                weight_task(routing, expert(i / down_blocks), i % down_blocks, down_left.data(), down_rows,
                            down_right.data(), down_columns, (W*)p.d_down, write_down);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < experts; i++) {
                int64_t e = expert(i);
                if (p.d_inner_bias) bias_task(routing, e, d_inner.data(), nullptr, layer.rows, (W*)p.d_inner_bias);
                if (p.d_down_bias) bias_task(routing, e, d_out.data(), p.weights, p.hidden, (W*)p.d_down_bias);
            }
        }
        if (p.d_x) add_up(p, kept.d_x, nullptr, p.d_x);
    }
    shared_scratch.trim();
    return 0;
}
