// Memory that outlives a call: fresh pages cost more than the products that fill them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

constexpr size_t KEPT_BYTES = 256 << 20;  // scratch beyond this goes back after the call

// Of one thread.
class Scratch {
  public:
    ~Scratch() { free(base_); }
    void reserve(size_t floats) {
        used_ = 0;
        if (floats <= size_) return;
        free(base_);
        size_ = floats + floats / 8;
        base_ = (float*)aligned_alloc(64, (size_ * 4 + 63) / 64 * 64);
        if (!base_) { size_ = 0; throw std::bad_alloc(); }
    }
    float* take(size_t floats) {
        float* start = base_ + used_;
        used_ += (floats + 15) / 16 * 16;
        return start;
    }
    void trim() {
        if (size_ * 4 > KEPT_BYTES) release();
    }
    void release() {
        free(base_);
        base_ = nullptr, size_ = 0;
    }
    static size_t padded(size_t floats) { return (floats + 15) / 16 * 16; }

  private:
    float* base_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

inline thread_local Scratch shared_scratch, own_scratch;

// Of this thread and of those that work for it.
inline void release_scratch() {
#pragma omp parallel
    {
        shared_scratch.release();
        own_scratch.release();
    }
}
