// Selections (token * top_k + choice) sorted by expert, and cut into tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

struct Task {
    int64_t expert, first, count;  // `first` counts in selections sorted by expert
};

struct Routing {
    std::vector<int64_t> starts, order, active;
    bool valid = true;

    // An index of `experts` or more lives on another device; a negative one is an error.
    Routing(const int64_t* index, int64_t selections, int64_t experts) : starts(experts + 1, 0) {
        for (int64_t i = 0; i < selections; i++) {
            if (index[i] < 0) valid = false;
            else if (index[i] < experts) starts[index[i] + 1]++;
        }
        if (!valid) return;
        for (int64_t e = 0; e < experts; e++) {
            if (starts[e + 1]) active.push_back(e);
            starts[e + 1] += starts[e];
        }
        order.resize(starts[experts]);
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        for (int64_t i = 0; i < selections; i++)
            if (index[i] < experts) order[next[index[i]]++] = i;
    }
    // Rows that are sorted already: only how many each expert has.
    Routing(const int64_t* counts, int64_t experts) : starts(experts + 1, 0) {
        for (int64_t e = 0; e < experts; e++) {
            starts[e + 1] = starts[e] + counts[e];
            if (counts[e]) active.push_back(e);
        }
    }
    int64_t size() const { return order.size(); }
    int64_t count(int64_t e) const { return starts[e + 1] - starts[e]; }

    std::vector<int64_t> experts_up_to(int64_t tokens) const {
        std::vector<int64_t> found;
        for (int64_t e : active)
            if (count(e) <= tokens) found.push_back(e);
        return found;
    }
    // Experts of more than `above` tokens cut into tasks of tokens, the longest first.
    std::vector<Task> tasks(int64_t most, int64_t above = 0) const {
        std::vector<Task> found;
        for (int64_t e : active) {
            if (count(e) <= above) continue;
            int64_t parts = (count(e) + most - 1) / most;
            for (int64_t i = 0; i < parts; i++) {
                int64_t first = starts[e] + count(e) * i / parts, last = starts[e] + count(e) * (i + 1) / parts;
                found.push_back({e, first, last - first});
            }
        }
        std::stable_sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.count > b.count; });
        return found;
    }
};

// Of the selections of one task, the rows of `base` that belong to them; `divisor` top_k finds the token's row.
template <class T>
std::vector<T*> row_pointers(const Routing& routing, const Task& task, T* base, int64_t length, int64_t divisor) {
    std::vector<T*> rows(task.count);
    for (int64_t i = 0; i < task.count; i++) rows[i] = base + routing.order[task.first + i] / divisor * length;
    return rows;
}

// The same where the rows of `base` are sorted by expert themselves.
template <class T>
std::vector<T*> sorted_rows(const Task& task, T* base, int64_t length) {
    std::vector<T*> rows(task.count);
    for (int64_t i = 0; i < task.count; i++) rows[i] = base + (task.first + i) * length;
    return rows;
}
