// Loss and gradient of a decoder-only transformer (trainer/model.py) without autograd: on few sequences at a time, so
// that what one layer leaves for the next, and the forward pass for the backward, stays in the core's own cache.
//
// The gain of a norm is multiplied into the columns of the weights that follow it (W' = W gain), so that no pass over
// the activations applies it; of the gradient of W', that of W and of the gain follow: dW = dW' gain and
// dgain = sum over rows of dW' W.

#include "attention.hpp"
#include "layers.hpp"

#include <memory>
#include <thread>
#include <vector>

struct Spec {
    int64_t layers, width, heads, head_size, ffw, vocabulary, sequence;
    int64_t activation, learned_positions, tied_head, params;
    double query_scale, z_loss;
    const double *angles;   // (sequence, head_size): the rotation of each number, radians; null without
    const int64_t *offsets; // where tensors begin: embedding, positions, head, norm_out, then six for each layer
    const double *scales;   // what products with them are multiplied by
};
enum { EMBEDDING, POSITIONS, HEAD, NORM_OUT, FIRST_LAYER };
enum { QKV, ATTENTION_OUT, FFW_IN, FFW_OUT, NORM_ATTENTION, NORM_FFW, PER_LAYER };

// Zeroed memory that begins at a cache line, with room behind it for a vector that begins at its end.
template <class T> class Buffer {
  public:
    explicit Buffer(long count = 0) {
        const size_t bytes = round_up(count * sizeof(T) + 2 * VECTOR_BYTES, 64);
        at_.reset(static_cast<T *>(std::aligned_alloc(64, bytes)));
        if (!at_) throw std::bad_alloc();
        std::memset(static_cast<void *>(at_.get()), 0, bytes);
    }
    operator T *() const { return at_.get(); }

  private:
    struct Free {
        void operator()(T *at) const { std::free(at); }
    };
    std::unique_ptr<T, Free> at_;
};

// Numbers from row to row: whole cache lines, but no large power of two, whose rows would share few cache sets.
template <class S> long row_of(long columns) {
    const long ld = round_up(columns, 64 / sizeof(S));
    return ld * sizeof(S) % 1024 ? ld : ld + 64 / sizeof(S);
}

template <class S> struct Matrix {
    long offset, rows, columns, gain; // gain: the offset of the norm's before it, or -1
    SumOf<S> scale;
    long forward_ld, backward_ld;
    std::vector<SumOf<S>> factors; // of each column: gain and scale
    Buffer<UnitOf<S>> forward, backward;

    Matrix(long offset, long rows, long columns, long gain, double scale)
        : offset(offset), rows(rows), columns(columns), gain(gain), scale(scale), forward_ld(row_of<UnitOf<S>>(rows)),
          backward_ld(row_of<UnitOf<S>>(columns)), factors(columns), forward((columns + 1) * forward_ld),
          backward((rows + 1) * backward_ld) {}

    void pack(const SumOf<S> *params, bool gradient) {
        for (long j = 0; j < columns; j++) factors[j] = scale * (gain < 0 ? 1 : params[gain + j]);
        pack_forward<S>(params + offset, rows, columns, factors.data(), forward, forward_ld);
        if (gradient) pack_backward<S>(params + offset, rows, columns, factors.data(), backward, backward_ld);
    }

    // X (count, ld) W'^T
    template <class Done> void apply(long count, const S *x, long ld, Done done) const {
        gemm<S>(count, rows, columns, x, ld, forward, forward_ld, done);
    }
    // dY (count, ld) W'
    template <class Done> void apply_back(long count, const S *d, long ld, Done done) const {
        gemm<S>(count, columns, rows, d, ld, backward, backward_ld, done);
    }
};

template <class S> struct Layer {
    Matrix<S> qkv, attention_out, ffw_in, ffw_out;
};

// What one thread works with: activations of every layer for one chunk of sequences, and scratch.
template <class S> struct Workspace {
    using A = SumOf<S>;
    using U = UnitOf<S>;
    struct Kept {
        Buffer<S> normed_attention, qkv, mixed, probabilities, normed_ffw, inner, active;
        Buffer<A> inverse_attention, inverse_ffw;
    };
    std::vector<Kept> layers;
    Buffer<S> normed_out, d_logits, d_stored, d_wide, d_ffw, d_qkv;
    Buffer<A> inverse_out, x, dx, d_normed, logits, d_head;
    Buffer<U> pairs, more_pairs;
    Buffer<S> q, k, v, out, d_scores;
    Buffer<U> q_pairs, k_pairs, v_pairs, out_pairs, turned, score_pairs;
    Buffer<A> scores, dq, dk, dv;
    Buffer<A> gradient; // of threads but the first
    double loss = 0;
};

template <class S> class Step {
    using A = SumOf<S>;
    using U = UnitOf<S>;
    static constexpr int P = Kind<S>::PAIR;
    static constexpr long LOGIT_ROWS = 48;

  public:
    Step(const Spec &spec, long chunk, long threads)
        : s_(spec), chunk_(chunk), tokens_(chunk * spec.sequence), wide_(spec.heads * spec.head_size),
          into_(spec.activation == int64_t(Activation::swiglu) ? 2 * spec.ffw : spec.ffw), ld_(row_of<S>(s_.width)),
          ldx_(row_of<A>(s_.width)), ld_mixed_(row_of<S>(wide_)), ld_qkv_(row_of<S>(3 * wide_)),
          ld_ffw_(row_of<S>(s_.ffw)), ld_into_(row_of<S>(into_)), ld_logits_(row_of<S>(s_.vocabulary)),
          ldl_(row_of<A>(s_.vocabulary)), head_wide_(round_up(s_.head_size, WIDTH<S>)),
          span_(round_up(s_.sequence, WIDTH<S>)), cosine_(s_.sequence * head_wide_), sine_(s_.sequence * head_wide_),
          head_(at(s_.tied_head ? EMBEDDING : HEAD), s_.vocabulary, s_.width, at(NORM_OUT),
                spec.scales[s_.tied_head ? EMBEDDING : HEAD]) {
        for (long l = 0; l < s_.layers; l++) {
            const auto matrix = [&](int which, long rows, long columns, int gain) {
                return Matrix<S>(at(l, which), rows, columns, gain < 0 ? -1 : at(l, gain),
                                 spec.scales[FIRST_LAYER + PER_LAYER * l + which]);
            };
            layers_.push_back({matrix(QKV, 3 * wide_, s_.width, NORM_ATTENTION),
                               matrix(ATTENTION_OUT, s_.width, wide_, -1), matrix(FFW_IN, into_, s_.width, NORM_FFW),
                               matrix(FFW_OUT, s_.width, s_.ffw, -1)});
        }
        for (long t = 0; t < s_.sequence; t++)
            for (long j = 0; j < s_.head_size; j++) {
                const double angle = s_.angles ? s_.angles[t * s_.head_size + j] : 0;
                cosine_[t * head_wide_ + j] = std::cos(angle);
                sine_[t * head_wide_ + j] = j % 2 ? std::sin(angle) : -std::sin(angle);
            }
        for (long t = 0; t < threads; t++) spaces_.push_back(workspace(t > 0));
        s_.angles = nullptr, s_.offsets = nullptr, s_.scales = nullptr; // the caller's own
    }

    // Summed cross-entropy of windows (sequences, sequence + 1); its gradient, unless null, is overwritten.
    double run(const A *params, const int64_t *windows, long sequences, A *gradient) {
        const long threads = std::min<long>(spaces_.size(), (sequences + chunk_ - 1) / chunk_);
        for (auto &layer : layers_)
            for (auto *matrix : {&layer.qkv, &layer.attention_out, &layer.ffw_in, &layer.ffw_out})
                matrix->pack(params, gradient);
        head_.pack(params, gradient);
        const auto work = [&](long thread) {
            auto &space = spaces_[thread];
            A *mine = !gradient ? nullptr : thread ? space.gradient : gradient;
            space.loss = 0;
            if (mine) {
                std::fill_n(mine, s_.params, A(0));
                if (s_.tied_head) std::fill_n(static_cast<A *>(space.d_head), s_.vocabulary * s_.width, A(0));
            }
            for (long first = thread * chunk_; first < sequences; first += threads * chunk_) {
                const long count = std::min(chunk_, sequences - first);
                const int64_t *from = windows + first * (s_.sequence + 1);
                forward(space, params, from, count, mine);
                if (mine) backward(space, from, count, mine);
            }
        };
        std::vector<std::thread> others;
        for (long thread = 1; thread < threads; thread++) others.emplace_back(work, thread);
        work(0);
        for (auto &other : others) other.join();
        double loss = spaces_[0].loss;
        for (long thread = 1; thread < threads; thread++) {
            auto &space = spaces_[thread];
            loss += space.loss;
            if (!gradient) continue;
            for (long i = 0; i < s_.params; i++) gradient[i] += space.gradient[i];
            if (s_.tied_head)
                for (long i = 0; i < s_.vocabulary * s_.width; i++) spaces_[0].d_head[i] += space.d_head[i];
        }
        if (gradient) finish(params, gradient);
        return loss;
    }

  private:
    long at(int which) const { return s_.offsets[which]; }
    long at(long layer, int which) const { return s_.offsets[FIRST_LAYER + PER_LAYER * layer + which]; }

    Workspace<S> workspace(bool own_gradient) const {
        const long n = tokens_, head = s_.sequence * head_wide_, widest = std::max({ld_, ld_mixed_, ld_qkv_, ld_ffw_,
                                                                                  ld_into_, ld_logits_});
        Workspace<S> w;
        for (long l = 0; l < s_.layers; l++)
            w.layers.push_back({Buffer<S>(n * ld_), Buffer<S>(n * ld_qkv_), Buffer<S>(n * ld_mixed_),
                                Buffer<S>(chunk_ * s_.heads * s_.sequence * span_), Buffer<S>(n * ld_),
                                Buffer<S>(n * ld_into_), Buffer<S>(n * ld_ffw_), Buffer<A>(n), Buffer<A>(n)});
        w.normed_out = Buffer<S>(n * ld_), w.d_logits = Buffer<S>(n * ld_logits_), w.d_stored = Buffer<S>(n * ld_);
        w.d_wide = Buffer<S>(n * ld_mixed_), w.d_ffw = Buffer<S>(n * ld_ffw_), w.d_qkv = Buffer<S>(n * ld_qkv_);
        w.inverse_out = Buffer<A>(n), w.x = Buffer<A>(n * ldx_), w.dx = Buffer<A>(n * ldx_);
        w.d_normed = Buffer<A>(n * ldx_), w.logits = Buffer<A>(LOGIT_ROWS * ldl_);
        w.d_head = Buffer<A>(s_.tied_head ? s_.vocabulary * s_.width : 0);
        w.pairs = Buffer<U>((n / P + 1) * widest), w.more_pairs = Buffer<U>((n / P + 1) * widest);
        for (auto *stored : {&w.q, &w.k, &w.v, &w.out}) *stored = Buffer<S>(head);
        for (auto *units : {&w.q_pairs, &w.k_pairs, &w.v_pairs, &w.out_pairs}) *units = Buffer<U>(head + head_wide_);
        for (auto *sums : {&w.dq, &w.dk, &w.dv}) *sums = Buffer<A>(head);
        w.turned = Buffer<U>((head_wide_ + 1) * span_), w.scores = Buffer<A>(QUERIES * span_);
        w.d_scores = Buffer<S>(QUERIES * span_), w.score_pairs = Buffer<U>(QUERIES * span_);
        w.gradient = Buffer<A>(own_gradient ? s_.params : 0);
        return w;
    }

    Head<S> head(Workspace<S> &w) const {
        return {s_.sequence, s_.head_size, head_wide_,  span_,       w.q,        w.k,      w.v,        w.out,
                w.q_pairs,   w.k_pairs,    w.v_pairs,   w.out_pairs, w.turned,   w.scores, w.d_scores, w.score_pairs,
                w.dq,        w.dk,         w.dv};
    }

    // The q, k and v of one head of one sequence, turned, scaled, and ready.
    void take(Head<S> &h, const S *qkv, long number) const {
        const S *from = qkv + number * s_.head_size;
        turn<S>(from, ld_qkv_, h.length, h.wide, cosine_, sine_, A(s_.query_scale), h.q);
        turn<S>(from + wide_, ld_qkv_, h.length, h.wide, cosine_, sine_, A(1), h.k);
        pick<S>(from + 2 * wide_, ld_qkv_, h.length, h.size, h.wide, h.v);
    }

    void forward(Workspace<S> &w, const A *params, const int64_t *windows, long sequences, bool keep) const {
        const long n = sequences * s_.sequence, d = s_.width;
        for (long row = 0; row < n; row++) {
            const int64_t token = windows[row / s_.sequence * (s_.sequence + 1) + row % s_.sequence];
            const A *from = params + embedding_ + token * d;
            std::copy_n(from, d, w.x + row * ldx_);
            if (!s_.learned_positions) continue;
            const A *place = params + positions_ + row % s_.sequence * d;
            for (long j = 0; j < d; j++) w.x[row * ldx_ + j] += place[j];
        }
        for (long l = 0; l < s_.layers; l++) {
            auto &kept = w.layers[keep ? l : 0];
            const auto &layer = layers_[l];
            norm<S>(w.x, n, d, ldx_, kept.normed_attention, ld_, kept.inverse_attention);
            layer.qkv.apply(n, kept.normed_attention, ld_, put<S>(kept.qkv, ld_qkv_));
            for (long sequence = 0; sequence < sequences; sequence++)
                for (long number = 0; number < s_.heads; number++) {
                    auto h = head(w);
                    const long first = sequence * s_.sequence;
                    take(h, kept.qkv + first * ld_qkv_, number);
                    attend(h, kept.probabilities + (sequence * s_.heads + number) * s_.sequence * span_);
                    S *to = kept.mixed + first * ld_mixed_ + number * h.size;
                    for (long t = 0; t < h.length; t++) std::copy_n(h.out + t * h.wide, h.size, to + t * ld_mixed_);
                }
            layer.attention_out.apply(n, kept.mixed, ld_mixed_, add<A>(w.x, ldx_));
            norm<S>(w.x, n, d, ldx_, kept.normed_ffw, ld_, kept.inverse_ffw);
            layer.ffw_in.apply(n, kept.normed_ffw, ld_, put<S>(kept.inner, ld_into_));
            activate<S>(Activation(s_.activation), kept.inner, ld_into_, n, s_.ffw, kept.active, ld_ffw_);
            layer.ffw_out.apply(n, kept.active, ld_ffw_, add<A>(w.x, ldx_));
        }
        norm<S>(w.x, n, d, ldx_, w.normed_out, ld_, w.inverse_out);
        int64_t targets[LOGIT_ROWS];
        for (long first = 0; first < n; first += LOGIT_ROWS) {
            const long rows = std::min(LOGIT_ROWS, n - first);
            for (long row = 0; row < rows; row++) {
                const long token = first + row;
                targets[row] = windows[token / s_.sequence * (s_.sequence + 1) + token % s_.sequence + 1];
            }
            head_.apply(rows, w.normed_out + first * ld_, ld_, put<A>(w.logits, ldl_));
            w.loss += cross_entropy<S>(w.logits, ldl_, rows, s_.vocabulary, targets,
                                       keep ? w.d_logits + first * ld_logits_ : nullptr, ld_logits_, s_.z_loss);
        }
    }

    // Adds d^T x to the gradient of a matrix: d of as many columns as it has rows, x of as many as it has columns.
    void add_gradient(Workspace<S> &w, const Matrix<S> &m, A *to, long n, const S *d, long ld, const S *x, long ldx) const {
        const U *left = interleave(d, n, m.rows, ld, static_cast<U *>(w.pairs));
        const U *right = interleave(x, n, m.columns, ldx, static_cast<U *>(w.more_pairs));
        gemm_transposed<S>(m.rows, m.columns, (n + P - 1) / P, left, ld, right, ldx,
                           add_exactly<A>(to, m.columns, m.columns));
    }

    void backward(Workspace<S> &w, const int64_t *windows, long sequences, A *gradient) const {
        const long n = sequences * s_.sequence, d = s_.width;
        A *head_gradient = s_.tied_head ? static_cast<A *>(w.d_head) : gradient + head_.offset;
        add_gradient(w, head_, head_gradient, n, w.d_logits, ld_logits_, w.normed_out, ld_);
        head_.apply_back(n, w.d_logits, ld_logits_, put<A>(w.d_normed, ldx_));
        std::fill_n(static_cast<A *>(w.dx), n * ldx_, A(0));
        norm_back<S>(w.d_normed, w.normed_out, ld_, w.inverse_out, n, d, ldx_, w.dx);
        for (long l = s_.layers - 1; l >= 0; l--) {
            auto &kept = w.layers[l];
            const auto &layer = layers_[l];
            store_rows(w, n);
            add_gradient(w, layer.ffw_out, gradient + layer.ffw_out.offset, n, w.d_stored, ld_, kept.active, ld_ffw_);
            layer.ffw_out.apply_back(n, w.d_stored, ld_, put<S>(w.d_ffw, ld_ffw_));
            activate_back<S>(Activation(s_.activation), kept.inner, ld_into_, n, s_.ffw, w.d_ffw, ld_ffw_);
            add_gradient(w, layer.ffw_in, gradient + layer.ffw_in.offset, n, kept.inner, ld_into_, kept.normed_ffw, ld_);
            layer.ffw_in.apply_back(n, kept.inner, ld_into_, put<A>(w.d_normed, ldx_));
            norm_back<S>(w.d_normed, kept.normed_ffw, ld_, kept.inverse_ffw, n, d, ldx_, w.dx);
            store_rows(w, n);
            add_gradient(w, layer.attention_out, gradient + layer.attention_out.offset, n, w.d_stored, ld_, kept.mixed,
                         ld_mixed_);
            layer.attention_out.apply_back(n, w.d_stored, ld_, put<S>(w.d_wide, ld_mixed_));
            for (long sequence = 0; sequence < sequences; sequence++)
                for (long number = 0; number < s_.heads; number++) {
                    auto h = head(w);
                    const long first = sequence * s_.sequence;
                    take(h, kept.qkv + first * ld_qkv_, number);
                    pick<S>(w.d_wide + first * ld_mixed_ + number * h.size, ld_mixed_, h.length, h.size, h.wide, h.out);
                    attend_back(h, kept.probabilities + (sequence * s_.heads + number) * s_.sequence * span_);
                    S *to = w.d_qkv + first * ld_qkv_ + number * h.size;
                    turn_back<S>(h.dq, h.length, h.size, h.wide, cosine_, sine_, A(s_.query_scale), to, ld_qkv_);
                    turn_back<S>(h.dk, h.length, h.size, h.wide, cosine_, sine_, A(1), to + wide_, ld_qkv_);
                    for (long t = 0; t < h.length; t++)
                        for (long j = 0; j < h.size; j += WIDTH<S>)
                            store_part(to + 2 * wide_ + t * ld_qkv_ + j, load(h.dv + t * h.wide + j), h.size - j);
                }
            add_gradient(w, layer.qkv, gradient + layer.qkv.offset, n, w.d_qkv, ld_qkv_, kept.normed_attention, ld_);
            layer.qkv.apply_back(n, w.d_qkv, ld_qkv_, put<A>(w.d_normed, ldx_));
            norm_back<S>(w.d_normed, kept.normed_attention, ld_, kept.inverse_attention, n, d, ldx_, w.dx);
        }
        for (long row = 0; row < n; row++) {
            const int64_t token = windows[row / s_.sequence * (s_.sequence + 1) + row % s_.sequence];
            const A *from = w.dx + row * ldx_;
            A *to = gradient + embedding_ + token * d, *place = gradient + positions_ + row % s_.sequence * d;
            for (long j = 0; j < d; j++) to[j] += from[j];
            if (s_.learned_positions)
                for (long j = 0; j < d; j++) place[j] += from[j];
        }
    }

    // The gradient of the residual stream, as matrix products read it.
    void store_rows(Workspace<S> &w, long n) const {
        for (long row = 0; row < n; row++)
            for (long j = 0; j < s_.width; j += WIDTH<S>) store(w.d_stored + row * ld_ + j, load(w.dx + row * ldx_ + j));
    }

    // From the gradients of W' to those of W and of the gains.
    void finish(const A *params, A *gradient) const {
        for (const auto &layer : layers_)
            for (const auto *matrix : {&layer.qkv, &layer.attention_out, &layer.ffw_in, &layer.ffw_out})
                unfold(*matrix, params, gradient + matrix->offset, gradient + matrix->offset, gradient);
        const A *head_gradient = s_.tied_head ? static_cast<A *>(spaces_[0].d_head) : gradient + head_.offset;
        unfold(head_, params, head_gradient, gradient + head_.offset, gradient);
    }
    void unfold(const Matrix<S> &m, const A *params, const A *from, A *to, A *gradient) const {
        for (long row = 0; row < m.rows; row++, from += m.columns, to += m.columns) {
            const A *w = params + m.offset + row * m.columns;
            if (m.gain >= 0)
                for (long j = 0; j < m.columns; j++) gradient[m.gain + j] += m.scale * from[j] * w[j];
            for (long j = 0; j < m.columns; j++) to[j] = (from == to ? A(0) : to[j]) + from[j] * m.factors[j];
        }
    }

    Spec s_;
    long chunk_, tokens_, wide_, into_, ld_, ldx_, ld_mixed_, ld_qkv_, ld_ffw_, ld_into_, ld_logits_, ldl_;
    long head_wide_, span_;
    long embedding_ = at(EMBEDDING), positions_ = at(POSITIONS);
    Buffer<A> cosine_, sine_;
    Matrix<S> head_;
    std::vector<Layer<S>> layers_;
    mutable std::vector<Workspace<S>> spaces_;
};

#define NUMBERS_fp32 float
#define NUMBERS_fp64 double
#define NUMBERS_bf16 Bf16
#define JOIN(a, b) a##b
#define NUMBERS(precision) JOIN(NUMBERS_, precision)
using Numbers = NUMBERS(PRECISION);

// A step for chunks of so many sequences; null where there is not the memory.
extern "C" void *isoflop_make(const Spec *spec, int64_t chunk, int64_t threads) try {
    return new Step<Numbers>(*spec, chunk, threads);
} catch (const std::bad_alloc &) {
    return nullptr;
}
extern "C" void isoflop_free(void *step) { delete static_cast<Step<Numbers> *>(step); }
extern "C" double isoflop_run(void *step, const SumOf<Numbers> *params, const int64_t *windows, int64_t sequences,
                              SumOf<Numbers> *gradient) {
    return static_cast<Step<Numbers> *>(step)->run(params, windows, sequences, gradient);
}
