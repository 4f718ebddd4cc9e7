// The layer forward: an expert of a few tokens by streaming its weights, one of many by panels.
#pragma once

#include "layer.h"
#include "routing.h"
#include "scratch.h"
#include "streaming.h"

constexpr int64_t STREAM_TOKENS = 12;  // of an expert, up to which reading its weights is what counts most
// Output rows of a task at most. Where columns are contiguous they are read in pieces of that length, and long ones pay.
constexpr int64_t MOST_ROWS = 128, MOST_COLUMNS = 512;
constexpr int64_t TASK_TOKENS = 3 * PANEL;

// ---- few tokens: stream the weights ----

// The output rows of each active expert cut into blocks: as few as keep all threads busy.
struct Blocks {
    int64_t rows, length, each;  // in all, of a block, blocks of an expert

    Blocks(int64_t rows, int64_t most, int64_t active, int64_t threads) : rows(rows) {
        each = (rows + most - 1) / most;
        while (active * each % threads && active * each < 4 * threads && rows > each * LANES) each++;
        length = ((rows + each - 1) / each + LANES - 1) / LANES * LANES;
        each = (rows + length - 1) / length;
    }
    int64_t first(int64_t block) const { return block * length; }
    int64_t count(int64_t block) const { return std::min(length, rows - first(block)); }
};

template <class W>
void stream_inner(const Layer<W>& layer, const Routing& routing, const Blocks& blocks, int64_t e, int64_t block,
                  float* act) {
    const Problem& p = layer.p;
    int64_t first = blocks.first(block), rows = blocks.count(block), length = blocks.length, count = routing.count(e);
    Task task{e, routing.starts[e], count};
    auto x = row_pointers(routing, task, p.x, p.hidden, p.top_k);
    own_scratch.reserve((4 * count + 1) * length);
    float *gates = own_scratch.take(count * length), *ups = own_scratch.take(count * length);
    float *both = own_scratch.take(2 * count * length), *result = own_scratch.take(length);
    std::vector<float*> out(count);
    auto product = [&](int64_t row, int64_t many, int64_t stride, float* to) {
        for (int64_t t = 0; t < count; t++) out[t] = to + t * stride;
        stream(layer.inner(e), row, many, count, x.data(), out.data());
        if (const W* bias = layer.inner_bias(e))
            for (int64_t t = 0; t < count; t++)
                for (int64_t r = 0; r < many; r++) out[t][r] += widen(bias[row + r]);
    };
    if (p.gated && p.interleaved) {
        product(2 * first, 2 * rows, 2 * length, both);
        for (int64_t i = 0; i < count * length; i++) gates[i] = both[2 * i], ups[i] = both[2 * i + 1];
    } else {
        product(first, rows, length, gates);
        if (p.gated) product(p.width + first, rows, length, ups);
        else ups = gates;
    }
    for (int64_t t = 0; t < count; t++) {
        if (W* saved = p.saved ? (W*)p.saved + (task.first + t) * layer.rows : nullptr)
            for (int64_t r = 0; r < rows; r++) {
                narrow(saved + layer.gate_row(first + r), gates[t * length + r]);
                narrow(saved + layer.up_row(first + r), ups[t * length + r]);
            }
        layer.gate.forward(gates + t * length, ups + t * length, result, length, layer.numbers);
        memcpy(act + (task.first + t) * p.width + first, result, rows * 4);
    }
}

template <class W>
void stream_down(const Layer<W>& layer, const Routing& routing, const Blocks& blocks, int64_t e, int64_t block,
                 float* act, float* answers) {
    const Problem& p = layer.p;
    int64_t first = blocks.first(block), rows = blocks.count(block), count = routing.count(e);
    Task task{e, routing.starts[e], count};
    auto x = sorted_rows(task, (const float*)act, p.width);
    auto out = row_pointers(routing, task, answers + first, p.hidden, 1);
    stream(layer.down(e), first, rows, count, x.data(), out.data());
    if (const W* bias = layer.down_bias(e))
        for (int64_t t = 0; t < count; t++)
            for (int64_t r = 0; r < rows; r++) out[t][r] += widen(bias[first + r]);
}

// ---- many tokens: panels ----

// The inner product of one task and its gate; both stay in panels. Inner rows are kept in `saved` if there is one.
template <class W>
void inner_panels(const Layer<W>& layer, const Routing& routing, const Task& task, const Panels& panels, float* x,
                  float* inner) {
    const Problem& p = layer.p;
    gather(panels, row_pointers(routing, task, p.x, p.hidden, p.top_k), p.hidden, p.hidden, x);
    multiply(layer.inner(task.expert), layer.inner_bias(task.expert), panels, x, inner);
}

template <class W, class F>
void each_row_of_gate(const Layer<W>& layer, const Panels& panels, float* inner, const F& visit) {
    int64_t stored = padded_rows(layer.rows);
    for (int i = 0; i < panels.count; i++) {
        int64_t width = panels.width(i);
        float* panel = inner + panels.starts[i] * stored;
        for (int64_t r = 0; r < layer.p.width; r++)
            visit(panel + layer.gate_row(r) * width, panel + layer.up_row(r) * width,
                  panels.starts[i] * layer.p.width + r * width, panels.starts[i], width);
    }
}

template <class W>
void forward_task(const Layer<W>& layer, const Routing& routing, const Task& task, float* answers) {
    const Problem& p = layer.p;
    Panels panels(task.count);
    int64_t n = panels.tokens(), stored = padded_rows(layer.rows), hidden = padded_rows(p.hidden);
    own_scratch.reserve(Scratch::padded(n * hidden) + Scratch::padded(n * stored) + Scratch::padded(n * p.width));
    float *x = own_scratch.take(n * hidden), *inner = own_scratch.take(n * stored), *act = own_scratch.take(n * p.width);
    inner_panels(layer, routing, task, panels, x, inner);
    if (p.saved)
        scatter(panels, sorted_rows(task, (W*)p.saved, layer.rows), inner, stored, layer.rows);
    each_row_of_gate(layer, panels, inner, [&](float* g, float* u, int64_t at, int64_t, int64_t width) {
        layer.gate.forward(g, u, act + at, width, layer.numbers);
    });
    float* y = x;  // the tokens are not needed any more
    multiply(layer.down(task.expert), layer.down_bias(task.expert), panels, act, y);
    scatter(panels, row_pointers(routing, task, answers, p.hidden, 1), y, hidden, p.hidden);
}

// ---- both ----

template <class W>
int forward(const Problem& p) {
    Routing routing(p.index, p.tokens * p.top_k, p.experts);
    if (!routing.valid) return 1;
    Layer<W> layer(p);
    auto few = routing.experts_up_to(STREAM_TOKENS);
    auto tasks = routing.tasks(TASK_TOKENS, STREAM_TOKENS);
    int64_t number = few.size();
    bool by_rows = layer.inner(0).rows_are_contiguous();
    int64_t most_inner = by_rows ? MOST_ROWS : p.gated && p.interleaved ? MOST_COLUMNS / 2 : MOST_COLUMNS;
    Blocks inner(p.width, most_inner, number, p.threads);
    Blocks down(p.hidden, by_rows ? MOST_ROWS : MOST_COLUMNS, number, p.threads);
    // Sorted by expert up to the gate, by selection after the layer.
    size_t act_size = number ? Scratch::padded(routing.size() * p.width) : 0, selections = p.tokens * p.top_k;
    shared_scratch.reserve(act_size + Scratch::padded(selections * p.hidden));
    float *act = shared_scratch.take(act_size), *answers = shared_scratch.take(selections * p.hidden);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        // The long tasks first; who finishes early goes on to the small ones.
#pragma omp for schedule(dynamic, 1) nowait
        for (size_t i = 0; i < tasks.size(); i++) forward_task(layer, routing, tasks[i], answers);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < number * inner.each; i++)
            stream_inner(layer, routing, inner, few[i / inner.each], i % inner.each, act);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < number * down.each; i++)
            stream_down(layer, routing, down, few[i / down.each], i % down.each, act, answers);
        add_up(p, answers, p.weights, p.out);
    }
    shared_scratch.trim();
    return 0;
}
