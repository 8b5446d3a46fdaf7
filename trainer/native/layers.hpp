// What lies between the matrix products: norms, activations, cross-entropy. Rows are padded with zeros to whole vectors.
#pragma once

#include "numbers.hpp"

#include <algorithm>

enum class Activation : int64_t { gelu, swiglu, relu2 };

constexpr double NORM_EPS = 1e-6;

// x / rms(x), without the gain, which is part of the weights that follow; `inverse` keeps 1 / rms.
template <class S>
void norm(const SumOf<S> *x, long rows, long size, long ldx, S *to, long ld, SumOf<S> *inverse) {
    using A = SumOf<S>;
    for (long row = 0; row < rows; row++, x += ldx, to += ld) {
        VectorOf<S> squares{};
        for (long j = 0; j < size; j += WIDTH<S>) squares += load(x + j) * load(x + j);
        const A scale = A(1) / std::sqrt(sum(squares) / A(size) + A(NORM_EPS));
        inverse[row] = scale;
        for (long j = 0; j < size; j += WIDTH<S>) store(to + j, load(x + j) * scale);
    }
}

// Adds to dx what the gradient `d` of a norm's output means for its input.
template <class S>
void norm_back(const SumOf<S> *d, const S *normed, long ld, const SumOf<S> *inverse, long rows, long size, long ldx,
               SumOf<S> *dx) {
    using A = SumOf<S>;
    for (long row = 0; row < rows; row++, d += ldx, normed += ld, dx += ldx) {
        VectorOf<S> products{};
        for (long j = 0; j < size; j += WIDTH<S>) products += load(d + j) * load(normed + j);
        const A along = sum(products) / A(size), scale = inverse[row];
        for (long j = 0; j < size; j += WIDTH<S>)
            store(dx + j, load(dx + j) + (load(d + j) - load(normed + j) * along) * scale);
    }
}

// From `inner` to the activations `to`; `inner` is left with the derivatives, by which the gradient is multiplied later.
template <class S>
void activate(Activation kind, S *inner, long ld_inner, long rows, long size, S *to, long ld) {
    using V = VectorOf<S>;
    for (long row = 0; row < rows; row++, inner += ld_inner, to += ld)
        for (long j = 0; j < size; j += WIDTH<S>) {
            const V x = load(inner + j);
            if (kind == Activation::gelu) {
                const V bell = exp_of(x * x * -SumOf<S>(0.5)), below = normal_cdf(x, bell);
                store(to + j, x * below);
                store(inner + j, below + x * bell * SumOf<S>(0.39894228040143267794));
            } else if (kind == Activation::relu2) {
                const V positive = max_of(x, V{});
                store(to + j, positive * positive);
                store(inner + j, positive + positive);
            } else {
                const long count = size - j;
                const V value = load(inner + size + j), gate = max_of(x, V{} - 80); // exp(80) is still finite
                const V open = SumOf<S>(1) / (SumOf<S>(1) + exp_of(-gate)), silu = gate * open;
                store_part(to + j, silu * value, count);
                store_part(inner + j, (open + silu * (SumOf<S>(1) - open)) * value, count);
                store_part(inner + size + j, silu, count);
            }
        }
}

// Derivatives times the gradient `d` of the activations: in place.
template <class S>
void activate_back(Activation kind, S *inner, long ld_inner, long rows, long size, const S *d, long ld) {
    for (long row = 0; row < rows; row++, inner += ld_inner, d += ld)
        for (long j = 0; j < size; j += WIDTH<S>) {
            if (kind != Activation::swiglu) {
                store(inner + j, load(inner + j) * load(d + j));
                continue;
            }
            const auto one = load(inner + j) * load(d + j), two = load(inner + size + j) * load(d + j);
            store_part(inner + j, one, size - j);
            store_part(inner + size + j, two, size - j);
        }
}

// Summed cross-entropy in nats of logits (rows, ldl) against targets; the gradient, to which `z_loss` times the squared
// logarithm of each row's mass is added, goes to `d`, unless that is null.
template <class S>
double cross_entropy(SumOf<S> *logits, long ldl, long rows, long size, const int64_t *targets, S *d, long ld,
                     double z_loss) {
    using A = SumOf<S>;
    using V = VectorOf<S>;
    constexpr long W = WIDTH<S>;
    double loss = 0;
    for (long row = 0; row < rows; row++, logits += ldl) {
        for (long j = size; j < (size + W - 1) / W * W; j++) logits[j] = -A(1e30);
        V most = load(logits), total{};
        for (long j = W; j < size; j += W) most = max_of(most, load(logits + j));
        const A top = largest(most), hit = logits[targets[row]];
        for (long j = 0; j < size; j += W) {
            const V p = exp_of(load(logits + j) - top);
            store(logits + j, p);
            total += p;
        }
        const A mass = sum(total), log_mass = std::log(mass) + top;
        loss += log_mass - hit;
        if (!d) continue;
        const A more = A(1) + A(2 * z_loss) * log_mass;
        logits[targets[row]] -= mass / more;
        for (long j = size; j < (size + W - 1) / W * W; j++) logits[j] = 0;
        for (long j = 0; j < size; j += W) store(d + row * ld + j, load(logits + j) * (more / mass));
    }
    return loss;
}
