// Causal attention of one head over one sequence, forward and backward, by blocks of queries: keys that lie after a
// whole block are never touched. Everything but the probabilities fits into the innermost caches.
#pragma once

#include "gemm.hpp"

constexpr long QUERIES = 64;

constexpr long round_up(long value, long multiple) { return (value + multiple - 1) / multiple * multiple; }

// Buffers of one thread; `wide` is the head size in whole vectors, `span` the length in whole vectors.
template <class S> struct Head {
    using A = SumOf<S>;
    using U = UnitOf<S>;
    long length, size, wide, span;
    S *q, *k, *v, *out; // (length, wide); out is dO in the backward pass
    U *q_pairs, *k_pairs, *v_pairs, *out_pairs; // interleaved
    U *turned;                                  // (units of size, span): K or V transposed
    A *scores;                                  // (QUERIES, span)
    S *d_scores;                                // (QUERIES, span)
    U *pairs;                                   // (QUERIES / PAIR, span)
    A *dq, *dk, *dv;                            // (length, wide)
};

// Rows of a head out of (length, ld), turned by rotary positions: x cos + swapped(x) sin, scaled; pads become 0.
template <class S>
void turn(const S *from, long ld, long length, long wide, const SumOf<S> *cosine, const SumOf<S> *sine, SumOf<S> scale,
          S *to) {
    for (long t = 0; t < length; t++)
        for (long j = 0; j < wide; j += WIDTH<S>) {
            const auto x = load(from + t * ld + j);
            const auto turned = x * load(cosine + t * wide + j) + swap_pairs(x) * load(sine + t * wide + j);
            store(to + t * wide + j, turned * scale);
        }
}

// And back, into rows of a wider matrix.
template <class S>
void turn_back(const SumOf<S> *from, long length, long size, long wide, const SumOf<S> *cosine, const SumOf<S> *sine,
               SumOf<S> scale, S *to, long ld) {
    for (long t = 0; t < length; t++)
        for (long j = 0; j < wide; j += WIDTH<S>) {
            const auto x = load(from + t * wide + j);
            const auto turned = x * load(cosine + t * wide + j) - swap_pairs(x) * load(sine + t * wide + j);
            store_part(to + t * ld + j, turned * scale, size - j);
        }
}

// As they are; only pads become 0.
template <class S> void pick(const S *from, long ld, long length, long size, long wide, S *to) {
    for (long t = 0; t < length; t++) {
        for (long j = 0; j < wide; j += WIDTH<S>) store(to + t * wide + j, load(from + t * ld + j));
        for (long j = size; j < wide; j++) to[t * wide + j] = S{};
    }
}

// How many keys, in whole vectors, the block of queries that starts at `first` sees.
template <class S> long seen(const Head<S> &h, long first) {
    return round_up(std::min(first + QUERIES, h.length), WIDTH<S>);
}

// 1 for the first `count` numbers of a vector, else 0.
template <class A> INLINE typename Vector<A>::V first_of(long count) {
    alignas(64) static const struct Steps {
        A at[2 * Vector<A>::WIDTH] = {};
        Steps() { std::fill_n(at, Vector<A>::WIDTH, A(1)); }
    } steps;
    return load(steps.at + Vector<A>::WIDTH - count);
}

// A row of scores to probabilities, in place and stored; the first `past` count, the rest up to `keys` is 0.
template <class S> INLINE void softmax(SumOf<S> *row, long past, long keys, S *to) {
    using A = SumOf<S>;
    using V = typename Vector<A>::V;
    constexpr long W = WIDTH<S>;
    const long last = (past - 1) / W * W;
    const V mask = first_of<A>(past - last);
    const V edge = load(row + last) * mask + (mask - 1) * A(1e30);
    V most = edge;
    for (long j = 0; j < last; j += W) most = max_of(most, load(row + j));
    const V top = spread(largest(most));
    const V p_edge = exp_of(edge - top) * mask;
    V total = p_edge;
    for (long j = 0; j < last; j += W) {
        const V p = exp_of(load(row + j) - top);
        store(row + j, p);
        total += p;
    }
    const A scale = A(1) / sum(total);
    for (long j = 0; j < last; j += W) store(to + j, load(row + j) * scale);
    store(to + last, p_edge * scale);
    for (long j = last + W; j < keys; j += W) store(to + j, V{});
}

// Values mixed by softmax(q k^T): to `out` (length, wide). `kept` (length, span) is given the probabilities.
template <class S> void attend(Head<S> &h, S *kept) {
    constexpr int P = Kind<S>::PAIR;
    const long wide = h.wide, span = h.span;
    transpose(h.k, h.length, wide, wide, h.turned, span);
    const auto *values = interleave(h.v, h.length, wide, wide, h.v_pairs);
    for (long first = 0; first < h.length; first += QUERIES) {
        const long rows = std::min(QUERIES, h.length - first), keys = seen(h, first);
        gemm<S>(rows, keys, h.size, h.q + first * wide, wide, h.turned, span, put(h.scores, span));
        S *p = kept + first * span;
        for (long row = 0; row < rows; row++)
            softmax<S>(h.scores + row * span, first + row + 1, keys, p + row * span);
        gemm<S>(rows, wide, std::min(round_up(h.length, P), keys), p, span, values, wide, put(h.out + first * wide, wide));
    }
}

// The way back: from `out`, which holds the gradient, and the probabilities, to dq, dk and dv.
template <class S> void attend_back(Head<S> &h, const S *kept) {
    using A = SumOf<S>;
    constexpr int P = Kind<S>::PAIR, W = WIDTH<S>;
    const long wide = h.wide, span = h.span;
    transpose(h.v, h.length, wide, wide, h.turned, span);
    const auto *q = interleave(h.q, h.length, wide, wide, h.q_pairs);
    const auto *k = interleave(h.k, h.length, wide, wide, h.k_pairs);
    const auto *d_out = interleave(h.out, h.length, wide, wide, h.out_pairs);
    std::fill_n(h.dk, h.length * wide, A(0));
    std::fill_n(h.dv, h.length * wide, A(0));
    for (long first = 0; first < h.length; first += QUERIES) {
        const long rows = std::min(QUERIES, h.length - first), keys = seen(h, first), units = (rows + P - 1) / P;
        const S *p = kept + first * span;
        gemm<S>(rows, keys, h.size, h.out + first * wide, wide, h.turned, span, put(h.scores, span));
        for (long row = 0; row < rows; row++) {
            const S *mine = p + row * span;
            const A *d = h.scores + row * span;
            typename Vector<A>::V along{};
            for (long j = 0; j < keys; j += W) along += load(mine + j) * load(d + j);
            const A mean = sum(along);
            for (long j = 0; j < keys; j += W) store(h.d_scores + row * span + j, load(mine + j) * (load(d + j) - mean));
        }
        const long past = std::min(h.length, keys);
        gemm<S>(rows, wide, past, h.d_scores, span, k, wide, put(h.dq + first * wide, wide));
        const auto *ds = interleave(h.d_scores, rows, keys, span, h.pairs);
        gemm_transposed<S>(past, wide, units, ds, span, q + first / P * wide, wide, add(h.dk, wide));
        const auto *probabilities = interleave(p, rows, keys, span, h.pairs);
        gemm_transposed<S>(past, wide, units, probabilities, span, d_out + first / P * wide, wide, add(h.dv, wide));
    }
}
