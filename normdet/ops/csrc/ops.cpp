// CPU kernels behind normdet.ops. A plain C ABI without torch's headers builds in seconds.
//
// Every normalization here is, for one channel of one example,
//     y = max((x - mu) * a + b, t),   a = weight * r,
// with mu and r taken over the channel (FRN, where mu = 0) or over its group (GN). With
//     k = dy where y > t, else 0      (the tie y = t belongs to t)
//     s0 = sum k,   s1 = sum k * (x - mu),   st = sum (dy - k)
// the gradient of x is  k * a + (x - mu) * p + q,  p and q following from s0 and s1 of the group.
//
// A tensor (N, C, S) is cut into tiles: a channel of an example (a row) when contiguous, a run of
// pixels when channels_last (`Last`). A tile is walked in blocks of one row or one pixel, at most
// kBlock long: inside a block the coefficients are one number, or one per element when `Last`.
// Results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

using i64 = std::int64_t;

constexpr i64 kBlock = 1024;    // elements handled at once: they stay in the L1 cache
constexpr i64 kTile = 32768;    // elements of a channels_last tile
constexpr i64 kRun = 64;        // pixels summed in single precision before joining a longer sum
constexpr i64 kSerial = 16384;  // below this many elements threads cost more than they bring

struct half { std::uint16_t bits; };
struct bfloat { std::uint16_t bits; };

template <class T> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };

template <class To, class From> inline To bit_cast(From v) {
  To out;
  std::memcpy(&out, &v, sizeof(To));
  return out;
}

inline float widen(bfloat v) { return bit_cast<float>(std::uint32_t(v.bits) << 16); }

inline float widen(half v) {
  const std::uint32_t sign = std::uint32_t(v.bits & 0x8000) << 16;
  const std::uint32_t rest = std::uint32_t(v.bits & 0x7fff) << 13;
  const std::uint32_t special = (v.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;  // inf, nan
  const float scaled = bit_cast<float>(rest) * 0x1p112f;
  return bit_cast<float>(bit_cast<std::uint32_t>(scaled) | special | sign);
}

// Both round to nearest, ties to even; branch-free so that the loops vectorize.
inline void narrow(float v, bfloat& out) {
  const std::uint32_t u = bit_cast<std::uint32_t>(v);
  const std::uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  out.bits = std::uint16_t((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded);
}

inline void narrow(float v, half& out) {
  const std::uint32_t u = bit_cast<std::uint32_t>(v);
  const std::uint32_t sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
  const std::uint32_t normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  const float denormal = bit_cast<float>(rest) + 0.5f;  // the addition does the rounding
  const std::uint32_t tiny = bit_cast<std::uint32_t>(denormal) - (126u << 23);
  const std::uint32_t huge = rest > 0x7f800000 ? 0x7e00 : 0x7c00;
  const std::uint32_t bits = rest < (113u << 23) ? tiny : rest >= 0x477ff000 ? huge : normal;
  out.bits = std::uint16_t(bits | sign);
}

// A block as the wide type: itself where it already is, else by way of `buffer`.
template <class T, class A> inline const A* load(const T* p, A* buffer, i64 n) {
  if constexpr (std::is_same_v<T, A>) return p;
  else {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) buffer[i] = widen(p[i]);
    return buffer;
  }
}
template <class T, class A> inline A* target(T* p, A* buffer) {
  if constexpr (std::is_same_v<T, A>) return p;
  else return buffer;
}
template <class T, class A> inline void store(T* p, const A* buffer, i64 n) {
  if constexpr (!std::is_same_v<T, A>)
#pragma omp simd
    for (i64 i = 0; i < n; ++i) narrow(buffer[i], p[i]);
}

// A number as it comes back from storage in T.
template <class T, class A> inline A as_stored(A v) {
  if constexpr (std::is_same_v<T, A>) return v;
  else {
    T out;
    narrow(v, out);
    return widen(out);
  }
}

template <class F> void parallel(i64 count, i64 elements, int threads, const F& f) {
  const int used = elements < kSerial ? 1 : int(std::min<i64>(threads, count));
  if (used <= 1) {
    for (i64 i = 0; i < count; ++i) f(i);
    return;
  }
#pragma omp parallel for num_threads(used) schedule(static)
  for (i64 i = 0; i < count; ++i) f(i);
}

// ---- layout ------------------------------------------------------------------------------------

// `extents` tells what of each example is image, rows and columns `(N, 2)`, if not all of it is; then
// a row of a map has `width` pixels.
struct Shape {
  i64 n, c, s, groups;
  const i64* extents = nullptr;
  i64 width = 0;

  i64 area(i64 example) const {
    return extents ? extents[2 * example] * extents[2 * example + 1] : s;
  }
  bool inside(i64 example, i64 pixel) const {
    return !extents || (pixel / width < extents[2 * example] &&
                        pixel % width < extents[2 * example + 1]);
  }
  // f(first pixel, pixels) for every run of them in an example's map that is image, or that is not.
  template <class F> void runs(i64 example, const F& f) const {
    if (!extents) return f(0, s);
    const i64 rows = extents[2 * example], columns = extents[2 * example + 1];
    if (columns == width) return f(0, rows * width);
    for (i64 i = 0; i < rows; ++i) f(i * width, columns);
  }
  template <class F> void gaps(i64 example, const F& f) const {
    if (!extents) return;
    const i64 rows = extents[2 * example], columns = extents[2 * example + 1];
    if (columns < width)
      for (i64 i = 0; i < rows; ++i) f(i * width + columns, width - columns);
    f(rows * width, s - rows * width);
  }
};

template <bool Last> struct Layout {
  Shape d;
  i64 pixels, per_example, tiles;
  i64 limit = INT64_MAX;  // where the memory ends, if before the last tile does

  explicit Layout(Shape shape) : d(shape) {
    pixels = std::max<i64>(1, kTile / d.c);
    per_example = Last ? (d.s + pixels - 1) / pixels : d.c;
    tiles = d.n * per_example;
  }
  i64 example(i64 tile) const { return tile / per_example; }
  i64 first_row(i64 tile) const { return Last ? example(tile) * d.c : tile; }
  i64 first_pixel(i64 tile) const { return Last ? tile % per_example * pixels : 0; }
  i64 end_pixel(i64 tile) const { return Last ? std::min(d.s, first_pixel(tile) + pixels) : d.s; }

  // f(offset in memory, length, channel relative to first_row) for every block of a tile.
  template <class F> void walk(i64 tile, const F& f) const {
    if (!Last && d.extents) {
      d.runs(tile / d.c, [&](i64 first, i64 count) {
        const i64 end = tile * d.s + first + count;
        for (i64 i = end - count; i < end; i += kBlock) f(i, std::min(kBlock, end - i), 0);
      });
      return;
    }
    if (!Last) {
      const i64 end = std::min(limit, (tile + 1) * d.s);
      for (i64 i = tile * d.s; i < end; i += kBlock) f(i, std::min(kBlock, end - i), 0);
      return;
    }
    const i64 n = example(tile);
    for (i64 i = first_pixel(tile); i < end_pixel(tile); ++i)
      if (d.inside(n, i)) walk_pixel(tile, i, f);
  }
  // Zeros wherever a tile is not image.
  template <class T> void clear(i64 tile, T* y) const {
    if (!d.extents) return;
    const i64 n = example(tile);
    if (!Last)
      d.gaps(n, [&](i64 first, i64 count) { std::fill_n(y + tile * d.s + first, count, T{}); });
    else
      for (i64 i = first_pixel(tile); i < end_pixel(tile); ++i)
        if (!d.inside(n, i)) std::fill_n(y + (n * d.s + i) * d.c, d.c, T{});
  }
  // The pixels of a tile that are image.
  i64 count(i64 tile) const {
    if (!d.extents) return end_pixel(tile) - first_pixel(tile);
    i64 total = 0;
    for (i64 i = first_pixel(tile); i < end_pixel(tile); ++i) total += d.inside(example(tile), i);
    return total;
  }
  template <class F> void walk_pixel(i64 tile, i64 pixel, const F& f) const {
    for (i64 c = 0; c < d.c; c += kBlock)
      f((example(tile) * d.s + pixel) * d.c + c, std::min(kBlock, d.c - c), c);
  }

  // Sums `count` numbers over the pixels of a tile: f(offset, length, channel, sums of a run).
  template <class A, class F>
  void accumulate(i64 tile, i64 count, double* total, const F& f) const {
    std::vector<A> run(count);
    for (i64 i = first_pixel(tile); i < end_pixel(tile); i += kRun) {
      std::fill(run.begin(), run.end(), A(0));
      for (i64 j = i; j < std::min(i + kRun, end_pixel(tile)); ++j)
        if (d.inside(example(tile), j)) walk_pixel(tile, j, [&](i64 at, i64 n, i64 c) { f(at, n, c, run.data()); });
      for (i64 j = 0; j < count; ++j) total[j] += run[j];
    }
  }
};

// ---- blocks ------------------------------------------------------------------------------------

// Pointers to the coefficients of a row, or of the first row of a tile when `Last`.
template <class A> struct Coef {
  const A *mu, *a, *b, *t;
  Coef at(i64 c) const { return {mu + c, a + c, b + c, t + c}; }
};

template <class A> struct Sums { A s0, s1, st; };  // numbers, or pointers to one for each row

// A `residual`, null without Join, is added before the activation.
template <bool Last, bool Act, bool Join, class A>
inline void apply_block(const A* __restrict x, const A* __restrict residual, A* __restrict y,
                        Coef<A> k, i64 n) {
#pragma omp simd
  for (i64 i = 0; i < n; ++i) {
    const i64 j = Last ? i : 0;
    A z = (x[i] - k.mu[j]) * k.a[j] + k.b[j];
    if (Join) z += residual[i];
    if (Act) z = z <= k.t[j] ? k.t[j] : z;
    y[i] = z;
  }
}

template <bool Act, class A>
inline Sums<A> sum_block(const A* __restrict dy, const A* __restrict x, Coef<A> k, i64 n) {
  const A mu = *k.mu, a = *k.a, b = *k.b, t = *k.t;
  A s0 = 0, s1 = 0, st = 0;
#pragma omp simd reduction(+ : s0, s1, st)
  for (i64 i = 0; i < n; ++i) {
    const A c = x[i] - mu;
    const A keep = Act && c * a + b <= t ? A(0) : dy[i];
    s0 += keep;
    s1 += keep * c;
    if (Act) st += dy[i] - keep;
  }
  return {s0, s1, st};
}

template <bool Act, class A>
inline void sum_pixel(const A* __restrict dy, const A* __restrict x, Coef<A> k, A* __restrict s0,
                      A* __restrict s1, A* __restrict st, i64 n) {
#pragma omp simd
  for (i64 i = 0; i < n; ++i) {
    const A c = x[i] - k.mu[i];
    const A keep = Act && c * k.a[i] + k.b[i] <= k.t[i] ? A(0) : dy[i];
    s0[i] += keep;
    s1[i] += keep * c;
    if (Act) st[i] += dy[i] - keep;
  }
}

template <bool Last, bool Act, class A>
inline void grad_block(const A* __restrict dy, const A* __restrict x, A* __restrict dx, Coef<A> k,
                       const A* __restrict p, const A* __restrict q, i64 n) {
#pragma omp simd
  for (i64 i = 0; i < n; ++i) {
    const i64 j = Last ? i : 0;
    const A c = x[i] - k.mu[j];
    const A keep = Act && c * k.a[j] + k.b[j] <= k.t[j] ? A(0) : dy[i];
    dx[i] = keep * k.a[j] + (c * p[j] + q[j]);
  }
}

// ---- moments -----------------------------------------------------------------------------------

// Count, mean and squared deviations; kept by block and joined exactly (Chan et al.), so that a
// large mean costs no digits. Without `centre` the mean is 0 and m2 the sum of squares.
struct Moments {
  double n = 0, mean = 0, m2 = 0;
  void join(const Moments& other, bool centre) {
    if (other.n == 0) return;
    const double total = n + other.n;
    if (centre) {
      const double delta = other.mean - mean;
      m2 += delta * delta * n * other.n / total;
      mean += delta * other.n / total;
    }
    m2 += other.m2;
    n = total;
  }
};

template <class A> inline A sum(const A* __restrict x, i64 n) {
  A s = 0;
#pragma omp simd reduction(+ : s)
  for (i64 i = 0; i < n; ++i) s += x[i];
  return s;
}

template <class A> inline Moments block_moments(const A* __restrict x, i64 n, bool centre) {
  const A about = centre ? sum(x, n) / A(n) : A(0);
  A s1 = 0, s2 = 0;
#pragma omp simd reduction(+ : s1, s2)
  for (i64 i = 0; i < n; ++i) {
    const A v = x[i] - about;
    s1 += v;
    s2 += v * v;
  }
  if (!centre) return {double(n), 0, s2};
  const double rest = double(s1) / double(n);  // what rounding left of the mean
  return {double(n), about + rest, s2 - rest * s1};
}

template <class T> Moments moments(const T* x, i64 n, bool centre, Moments m = {}) {
  using A = typename Wide<T>::type;
  A buffer[kBlock];
  for (i64 i = 0; i < n; i += kBlock) {
    const i64 len = std::min(kBlock, n - i);
    m.join(block_moments(load(x + i, buffer, len), len, centre), centre);
  }
  return m;
}

// ---- normalization -----------------------------------------------------------------------------

enum Kind { kRms = 0, kGroup = 1, kDeviation = 2 };

template <class A> struct Problem {
  Shape shape;
  Kind kind;
  double eps;
  int threads;
  const A *weight, *bias, *tau;  // (C)
  A *mean, *rstd;                // (N, groups); no mean for kRms

  bool centre() const { return kind != kRms; }
  i64 width() const { return shape.c / shape.groups; }
  i64 rows() const { return shape.n * shape.c; }
  i64 groups() const { return shape.n * shape.groups; }
  i64 elements() const { return rows() * shape.s; }

  void set_stats(i64 group, Moments m) const {
    m.n = std::max(m.n, 1.0);  // an example without pixels
    const A var = A(m.m2 / (kind == kDeviation ? m.n - 1 : m.n)), e = A(eps);
    if (mean) mean[group] = A(m.mean);
    rstd[group] = kind == kDeviation ? 1 / (std::sqrt(var) + e) : 1 / std::sqrt(var + e);
  }

  A mu(i64 group) const { return mean ? mean[group] : A(0); }
  A scale(i64 group, i64 channel) const { return weight[channel] * rstd[group]; }

  // p and q of a group, whose first row and channel are given, from the sums of its rows.
  void gradients(i64 group, i64 row, i64 channel, Sums<A*> sums, A* p, A* q) const {
    const double r = rstd[group];
    const double count = double(width() * std::max<i64>(shape.area(group / shape.groups), 1));
    double g0 = 0, g1 = 0;
    for (i64 i = 0; i < width(); ++i) {
      g0 += double(weight[channel + i]) * sums.s0[row + i];
      g1 += double(weight[channel + i]) * sums.s1[row + i];
    }
    *p = A(-g1 * r * r * r / count);
    *q = kind == kRms ? A(0) : A(-g0 * r / count);
    if (kind == kDeviation) {
      const double deviation = 1 / r - eps;
      *p = deviation > 0 ? A(-g1 * r * r / ((count - 1) * deviation)) : A(0);
    }
  }
};

// Walks over the channels of a run of groups.
struct Cursor {
  i64 group, row, channel;
  template <class A> Cursor(const Problem<A>& job, i64 group_)
      : group(group_), row(group * job.width()), channel(row % job.shape.c) {}
  template <class A> void next(const Problem<A>& job) {
    ++group, row += job.width(), channel += job.width();
    if (channel == job.shape.c) channel = 0;
  }
};

template <bool Last, bool Act, class T, class A>
void apply_tile(const Layout<Last>& layout, i64 tile, const T* x, const T* residual, T* y,
                Coef<A> k) {
  A in[kBlock], in2[kBlock], out[kBlock];
  layout.walk(tile, [&](i64 at, i64 n, i64 c) {
    const A* v = load(x + at, in, n);
    A* z = target(y + at, out);
    if (residual)
      apply_block<Last, Act, true>(v, load(residual + at, in2, n), z, k.at(c), n);
    else
      apply_block<Last, Act, false>(v, (const A*)nullptr, z, k.at(c), n);
    store(y + at, out, n);
  });
  layout.clear(tile, y);
}

template <bool Act, class T, class A>
Sums<double> sum_row(const Layout<false>& layout, i64 row, const T* dy, const T* x, Coef<A> k) {
  A in[kBlock], grad[kBlock];
  Sums<double> total{0, 0, 0};
  layout.walk(row, [&](i64 at, i64 n, i64) {
    const Sums<A> s = sum_block<Act>(load(dy + at, grad, n), load(x + at, in, n), k, n);
    total = {total.s0 + s.s0, total.s1 + s.s1, total.st + s.st};
  });
  return total;
}

template <bool Last, bool Act, class T, class A>
void grad_tile(const Layout<Last>& layout, i64 tile, const T* dy, const T* x, T* dx, Coef<A> k,
               const A* p, const A* q) {
  A in[kBlock], grad[kBlock], out[kBlock];
  layout.walk(tile, [&](i64 at, i64 n, i64 c) {
    grad_block<Last, Act>(load(dy + at, grad, n), load(x + at, in, n), target(dx + at, out),
                          k.at(c), p + c, q + c, n);
    store(dx + at, out, n);
  });
  layout.clear(tile, dx);
}

// The coefficients of one row, by value.
template <class A> struct RowCoef {
  A mu, a, b, t;
  RowCoef(const Problem<A>& job, i64 group, i64 channel)
      : mu(job.mu(group)), a(job.scale(group, channel)), b(job.bias[channel]),
        t(job.tau[channel]) {}
  Coef<A> get() const { return {&mu, &a, &b, &t}; }
};

// Contiguous. Groups that fit a block are handled several at once, read and written a single time;
// larger ones one at a time, their second reading coming from the cache; and where there are fewer
// groups than threads (LN), channel by channel.
template <bool Act, class T, class A>
void forward_bundle(const Problem<A>& job, i64 first, i64 count, const T* x, const T* residual,
                    T* y) {
  const i64 s = job.shape.s, span = job.width() * s;
  A in[kBlock], in2[kBlock], out[kBlock];
  const A* v = load(x + first * span, in, count * span);
  const A* r = residual ? load(residual + first * span, in2, count * span) : nullptr;
  A* z = target(y + first * span, out);
  for (Cursor at(job, first); at.group < first + count; at.next(job)) {
    job.set_stats(at.group, block_moments(v, span, job.centre()));
    for (i64 i = 0; i < job.width(); ++i, v += s, z += s) {
      const RowCoef<A> k(job, at.group, at.channel + i);
      if (!r) {
        apply_block<false, Act, false>(v, r, z, k.get(), s);
        continue;
      }
      apply_block<false, Act, true>(v, r, z, k.get(), s);
      r += s;
    }
  }
  store(y + first * span, out, count * span);
}

template <bool Act, class T, class A>
void forward_rows(const Problem<A>& job, const T* x, const T* residual, T* y) {
  const Shape d = job.shape;
  const Layout<false> layout(d);
  const i64 span = job.width() * d.s, groups = job.groups();
  const auto row_moments = [&](i64 row, Moments m) {
    d.runs(row / d.c, [&](i64 first, i64 count) {
      m = moments(x + row * d.s + first, count, job.centre(), m);
    });
    return m;
  };
  const auto apply = [&](i64 row, i64 group, i64 channel) {
    apply_tile<false, Act>(layout, row, x, residual, y, RowCoef<A>(job, group, channel).get());
  };
  if (span <= kBlock && !d.extents) {
    const i64 bundle = kBlock / span;
    parallel((groups + bundle - 1) / bundle, job.elements(), job.threads, [&](i64 i) {
      const i64 first = i * bundle;
      forward_bundle<Act>(job, first, std::min(bundle, groups - first), x, residual, y);
    });
  } else if (groups >= job.threads) {
    parallel(groups, job.elements(), job.threads, [&](i64 g) {
      const Cursor at(job, g);
      Moments m;
      if (d.extents)
        for (i64 i = 0; i < job.width(); ++i) m = row_moments(at.row + i, m);
      else
        m = moments(x + g * span, span, job.centre());
      job.set_stats(g, m);
      for (i64 i = 0; i < job.width(); ++i) apply(at.row + i, g, at.channel + i);
    });
  } else {
    std::vector<Moments> part(job.rows());
    parallel(job.rows(), job.elements(), job.threads,
             [&](i64 row) { part[row] = row_moments(row, {}); });
    for (Cursor at(job, 0); at.group < groups; at.next(job)) {
      Moments m;
      for (i64 i = 0; i < job.width(); ++i) m.join(part[at.row + i], job.centre());
      job.set_stats(at.group, m);
    }
    parallel(job.rows(), job.elements(), job.threads,
             [&](i64 row) { apply(row, row / job.width(), row % d.c); });
  }
}

template <bool Act, class T, class A>
void backward_bundle(const Problem<A>& job, i64 first, i64 count, const T* dy, const T* x, T* dx,
                     Sums<A*> sums) {
  const i64 s = job.shape.s, width = job.width(), span = width * s;
  A in[kBlock], in2[kBlock], out[kBlock];
  const A* g = load(dy + first * span, in, count * span);
  const A* v = load(x + first * span, in2, count * span);
  A* z = target(dx + first * span, out);
  for (Cursor at(job, first); at.group < first + count; at.next(job)) {
    for (i64 i = 0; i < width; ++i) {
      const RowCoef<A> k(job, at.group, at.channel + i);
      const Sums<A> part = sum_block<Act>(g + i * s, v + i * s, k.get(), s);
      const i64 row = at.row + i;
      sums.s0[row] = part.s0, sums.s1[row] = part.s1, sums.st[row] = part.st;
    }
    A p, q;
    job.gradients(at.group, at.row, at.channel, sums, &p, &q);
    for (i64 i = 0; i < width; ++i, g += s, v += s, z += s) {
      const RowCoef<A> k(job, at.group, at.channel + i);
      grad_block<false, Act>(g, v, z, k.get(), &p, &q, s);
    }
  }
  store(dx + first * span, out, count * span);
}

template <bool Act, class T, class A>
void backward_rows(const Problem<A>& job, const T* dy, const T* x, T* dx, Sums<A*> sums) {
  const Layout<false> layout(job.shape);
  const i64 width = job.width(), span = width * job.shape.s, groups = job.groups();
  const auto sum = [&](i64 row, i64 group, i64 channel) {
    const auto s = sum_row<Act>(layout, row, dy, x, RowCoef<A>(job, group, channel).get());
    sums.s0[row] = A(s.s0), sums.s1[row] = A(s.s1), sums.st[row] = A(s.st);
  };
  const auto grad = [&](i64 row, i64 group, i64 channel, A p, A q) {
    const RowCoef<A> k(job, group, channel);
    grad_tile<false, Act>(layout, row, dy, x, dx, k.get(), &p, &q);
  };
  if (span <= kBlock && !job.shape.extents) {
    const i64 bundle = kBlock / span;
    parallel((groups + bundle - 1) / bundle, job.elements(), job.threads, [&](i64 i) {
      const i64 first = i * bundle;
      backward_bundle<Act>(job, first, std::min(bundle, groups - first), dy, x, dx, sums);
    });
  } else if (groups >= job.threads) {
    parallel(groups, job.elements(), job.threads, [&](i64 g) {
      const Cursor at(job, g);
      for (i64 i = 0; i < width; ++i) sum(at.row + i, g, at.channel + i);
      A p, q;
      job.gradients(g, at.row, at.channel, sums, &p, &q);
      for (i64 i = 0; i < width; ++i) grad(at.row + i, g, at.channel + i, p, q);
    });
  } else {
    const i64 c = job.shape.c;
    std::vector<A> p(groups), q(groups);
    parallel(job.rows(), job.elements(), job.threads,
             [&](i64 row) { sum(row, row / width, row % c); });
    for (Cursor at(job, 0); at.group < groups; at.next(job))
      job.gradients(at.group, at.row, at.channel, sums, &p[at.group], &q[at.group]);
    parallel(job.rows(), job.elements(), job.threads, [&](i64 row) {
      grad(row, row / width, row % c, p[row / width], q[row / width]);
    });
  }
}

// Channels last. Coefficients of every channel of every example, to be read along the channels.
template <class A> struct Table {
  std::vector<A> mu, a, b, t;
  explicit Table(const Problem<A>& job)
      : mu(job.rows()), a(job.rows()), b(job.rows()), t(job.rows()) {
    for (Cursor at(job, 0); at.group < job.groups(); at.next(job))
      for (i64 i = 0; i < job.width(); ++i) {
        mu[at.row + i] = job.mu(at.group);
        a[at.row + i] = job.scale(at.group, at.channel + i);
        b[at.row + i] = job.bias[at.channel + i];
        t[at.row + i] = job.tau[at.channel + i];
      }
  }
  Coef<A> at(i64 row) const { return {&mu[row], &a[row], &b[row], &t[row]}; }
};

template <bool Act, class T, class A>
void forward_last(const Problem<A>& job, const T* x, const T* residual, T* y) {
  const Shape d = job.shape;
  const Layout<true> layout(d);
  const bool centre = job.centre();
  std::vector<double> mean(layout.tiles * d.c), m2(layout.tiles * d.c);
  parallel(layout.tiles, job.elements(), job.threads, [&](i64 tile) {
    A buffer[kBlock];
    std::vector<A> centres(d.c);
    if (centre) {
      double* mu = &mean[tile * d.c];
      layout.template accumulate<A>(tile, d.c, mu, [&](i64 at, i64 n, i64 c, A* run) {
        const A* __restrict v = load(x + at, buffer, n);
        A* __restrict total = run + c;
#pragma omp simd
        for (i64 i = 0; i < n; ++i) total[i] += v[i];
      });
      for (i64 c = 0; c < d.c; ++c) {
        mu[c] /= std::max(1.0, double(layout.count(tile)));
        mu[c] = centres[c] = A(mu[c]);  // what is subtracted is what is remembered
      }
    }
    layout.template accumulate<A>(tile, d.c, &m2[tile * d.c], [&](i64 at, i64 n, i64 c, A* run) {
      const A* __restrict v = load(x + at, buffer, n);
      const A* __restrict m = centres.data() + c;
      A* __restrict total = run + c;
#pragma omp simd
      for (i64 i = 0; i < n; ++i) total[i] += (v[i] - m[i]) * (v[i] - m[i]);
    });
  });
  parallel(d.n, job.elements(), job.threads, [&](i64 example) {
    const i64 begin = example * layout.per_example, end = begin + layout.per_example;
    if (!centre && job.width() == 1) {  // the same as below, in vectors
      const double area = double(std::max<i64>(d.area(example), 1));
      double* __restrict total = &m2[begin * d.c];
      A* __restrict r = job.rstd + example * d.c;
      for (i64 tile = begin + 1; tile < end; ++tile)
        for (i64 c = 0; c < d.c; ++c) total[c] += m2[tile * d.c + c];
#pragma omp simd
      for (i64 c = 0; c < d.c; ++c) r[c] = 1 / std::sqrt(A(total[c] / area) + A(job.eps));
      return;
    }
    std::vector<Moments> channel(d.c);
    for (i64 tile = begin; tile < end; ++tile) {
      const double count = double(layout.count(tile));
      for (i64 c = 0; c < d.c; ++c)
        channel[c].join({count, mean[tile * d.c + c], m2[tile * d.c + c]}, centre);
    }
    for (i64 g = 0; g < d.groups; ++g) {
      Moments m;
      for (i64 i = 0; i < job.width(); ++i) m.join(channel[g * job.width() + i], centre);
      job.set_stats(example * d.groups + g, m);
    }
  });
  const Table<A> table(job);
  parallel(layout.tiles, job.elements(), job.threads, [&](i64 tile) {
    apply_tile<true, Act>(layout, tile, x, residual, y, table.at(layout.first_row(tile)));
  });
}

template <bool Act, class T, class A>
void backward_last(const Problem<A>& job, const T* dy, const T* x, T* dx, Sums<A*> sums) {
  const Shape d = job.shape;
  const Layout<true> layout(d);
  const Table<A> table(job);
  std::vector<double> part(layout.tiles * 3 * d.c);
  std::vector<A> p(job.rows()), q(job.rows());
  parallel(layout.tiles, job.elements(), job.threads, [&](i64 tile) {
    A in[kBlock], grad[kBlock];
    const Coef<A> k = table.at(layout.first_row(tile));
    const auto sum = [&](i64 at, i64 n, i64 c, A* run) {
      sum_pixel<Act>(load(dy + at, grad, n), load(x + at, in, n), k.at(c), run + c,
                     run + d.c + c, run + 2 * d.c + c, n);
    };
    layout.template accumulate<A>(tile, 3 * d.c, &part[tile * 3 * d.c], sum);
  });
  A* const targets[3] = {sums.s0, sums.s1, sums.st};
  parallel(d.n * 3, job.elements(), job.threads, [&](i64 index) {
    const i64 example = index / 3, which = index % 3;
    std::vector<double> total(d.c);
    for (i64 tile = example * layout.per_example; tile < (example + 1) * layout.per_example; ++tile)
      for (i64 c = 0; c < d.c; ++c) total[c] += part[(tile * 3 + which) * d.c + c];
    for (i64 c = 0; c < d.c; ++c) targets[which][example * d.c + c] = A(total[c]);
  });
  for (Cursor at(job, 0); at.group < job.groups(); at.next(job)) {
    A group_p, group_q;
    job.gradients(at.group, at.row, at.channel, sums, &group_p, &group_q);
    std::fill_n(&p[at.row], job.width(), group_p);
    std::fill_n(&q[at.row], job.width(), group_q);
  }
  parallel(layout.tiles, job.elements(), job.threads, [&](i64 tile) {
    const i64 row = layout.first_row(tile);
    grad_tile<true, Act>(layout, tile, dy, x, dx, table.at(row), &p[row], &q[row]);
  });
}

// Gradients of weight, bias and tau (3, C), and of eps unless null, from the sums of every row: in
// double, over the examples in order.
template <class A>
void parameter_gradients(const Problem<A>& job, Sums<A*> sums, A* by_channel, A* deps) {
  const Shape d = job.shape;
  std::vector<double> w(d.c), b(d.c), t(d.c);
  double e = 0;
  for (Cursor at(job, 0); at.group < job.groups(); at.next(job)) {
    const double r = job.rstd[at.group];
    for (i64 i = 0; i < job.width(); ++i) {
      const i64 row = at.row + i, c = at.channel + i;
      w[c] += sums.s1[row] * r;
      b[c] += sums.s0[row];
      t[c] += sums.st[row];
      e += job.weight[c] * sums.s1[row] * r * r * r;
    }
  }
  std::copy(w.begin(), w.end(), by_channel);
  std::copy(b.begin(), b.end(), by_channel + d.c);
  std::copy(t.begin(), t.end(), by_channel + 2 * d.c);
  if (deps) *deps = A(-0.5 * e);
}

// ---- fixed affine and residual join ------------------------------------------------------------

// Both keep their output y alone: it tells where the activation clamped (y = t). A null `scale`
// stands for the join alone, a null x2 for the affine alone. Where nothing varies by channel (a join
// with ReLU) the layout does not matter, and the tensor is cut anew into long rows.
template <bool Last> Layout<Last> point_layout(Shape d, bool by_channel) {
  if (Last || by_channel) return Layout<Last>(d);
  const i64 total = d.n * d.c * d.s;
  Layout<Last> layout(Shape{(total + kTile - 1) / kTile, 1, kTile, 1});
  layout.limit = total;
  return layout;
}

template <bool Last, bool Act, class T, class A>
void point_forward(Shape d, int threads, const T* x, const T* x2, T* y, const A* scale,
                   const A* shift, const A* tau) {
  const Layout<Last> layout = point_layout<Last>(d, scale || tau);
  parallel(layout.tiles, d.n * d.c * d.s, threads, [&](i64 tile) {
    A in[kBlock], in2[kBlock], out[kBlock];
    const i64 first = layout.first_row(tile) % layout.d.c;
    layout.walk(tile, [&](i64 at, i64 n, i64 c) {
      const A* v = load(x + at, in, n);
      A* z = target(y + at, out);
      const i64 channel = first + c;
      if (scale) {
        const A *__restrict a = scale + channel, *__restrict b = shift + channel;
#pragma omp simd
        for (i64 i = 0; i < n; ++i) z[i] = v[i] * a[Last ? i : 0] + b[Last ? i : 0];
        v = z;
      }
      if (x2) {
        const A* __restrict v2 = load(x2 + at, in2, n);
#pragma omp simd
        for (i64 i = 0; i < n; ++i) z[i] = v[i] + v2[i];
      }
      if (Act && tau) {
        const A* __restrict t = tau + channel;
#pragma omp simd
        for (i64 i = 0; i < n; ++i) z[i] = z[i] <= t[Last ? i : 0] ? t[Last ? i : 0] : z[i];
      } else if (Act) {
#pragma omp simd
        for (i64 i = 0; i < n; ++i) z[i] = z[i] <= 0 ? A(0) : z[i];
      }
      store(y + at, out, n);
    });
  });
}

template <bool Last, class A>
inline void point_grad_block(const A* __restrict dy, const A* __restrict y, A* __restrict dx,
                             const A* __restrict scale, const A* __restrict t,
                             A* __restrict dtau, i64 n) {
  A total = 0;
#pragma omp simd reduction(+ : total)
  for (i64 i = 0; i < n; ++i) {
    const i64 j = Last ? i : 0;
    const A keep = y[i] <= t[j] ? A(0) : dy[i];
    if (Last) dtau[i] += dy[i] - keep;
    else total += dy[i] - keep;
    dx[i] = keep * scale[j];
  }
  if (!Last) *dtau += total;
}

// dx = scale * dy where y > t; the sum of dy where it is not, in double and tile by tile, is dtau.
template <bool Last, class T, class A>
void point_backward(Shape d, int threads, const T* dy, const T* y, T* dx, const A* scale,
                    const A* tau, A* dtau) {
  const Layout<Last> layout = point_layout<Last>(d, scale || tau);
  const i64 width = Last ? d.c : 1;
  std::vector<double> part(layout.tiles * width), total(d.c);
  std::vector<A> scales(d.c, A(1)), thresholds(d.c);
  if (scale) std::copy(scale, scale + d.c, scales.begin());
  for (i64 c = 0; tau && c < d.c; ++c) thresholds[c] = as_stored<T>(tau[c]);
  parallel(layout.tiles, d.n * d.c * d.s, threads, [&](i64 tile) {
    A in[kBlock], in2[kBlock], out[kBlock];
    const i64 first = layout.first_row(tile) % layout.d.c;
    const auto block = [&](i64 at, i64 n, i64 c, A* run) {
      point_grad_block<Last>(load(dy + at, in, n), load(y + at, in2, n), target(dx + at, out),
                             &scales[first + c], &thresholds[first + c], run + c, n);
      store(dx + at, out, n);
    };
    if (Last) {
      layout.template accumulate<A>(tile, d.c, &part[tile * width], block);
    } else {
      layout.walk(tile, [&](i64 at, i64 n, i64) {
        A run = 0;
        block(at, n, 0, &run);
        part[tile] += run;
      });
    }
  });
  for (i64 tile = 0; tau && tile < layout.tiles; ++tile)
    for (i64 c = 0; c < width; ++c)
      total[layout.first_row(tile) % d.c + c] += part[tile * width + c];
  for (i64 c = 0; c < d.c; ++c) dtau[c] = A(total[c]);
}

// ---- dispatch ----------------------------------------------------------------------------------

// f(T) for the element type numbered as in cpp.py.
template <class F> void by_type(int dtype, const F& f) {
  switch (dtype) {
    case 0: return f(float());
    case 1: return f(double());
    case 2: return f(half());
    case 3: return f(bfloat());
  }
}

template <class F> void by_flag(bool flag, const F& f) {
  if (flag) f(std::true_type());
  else f(std::false_type());
}

}  // namespace

extern "C" {

// All that a kernel is told, as cpp.py packs it. What a kernel does not use, or has no value, is 0.
struct Call {
  i64 dtype, last, kind, act, threads, n, c, s, groups, width;
  double eps;
  const void *x, *x2, *weight, *bias, *tau;  // x2: what is added, or the output's gradient
  void *out, *mean, *rstd, *by_channel, *deps;
  const i64* extents;
};

}  // extern "C"

namespace {

// f(job, x, x2, out) in the element type of the call.
template <class F> void normalization(const Call& call, const F& f) {
  by_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    using A = typename Wide<T>::type;
    const std::vector<A> ones(call.weight ? 0 : call.c, A(1));
    const std::vector<A> zeros(call.bias && call.tau ? 0 : call.c, A(0));
    const Problem<A> job{{call.n, call.c, call.s, call.groups, call.extents, call.width},
                         Kind(call.kind),
                         call.eps,
                         int(call.threads),
                         call.weight ? (const A*)call.weight : ones.data(),
                         call.bias ? (const A*)call.bias : zeros.data(),
                         call.tau ? (const A*)call.tau : zeros.data(),
                         (A*)call.mean,
                         (A*)call.rstd};
    f(job, (const T*)call.x, (const T*)call.x2, (T*)call.out);
  });
}

}  // namespace

extern "C" {

void normdet_norm_forward(const Call* call) {
  normalization(*call, [&](const auto& job, auto x, auto residual, auto y) {
    by_flag(call->act, [&](auto flag) {
      constexpr bool Act = decltype(flag)::value;
      if (call->last) forward_last<Act>(job, x, residual, y);
      else forward_rows<Act>(job, x, residual, y);
    });
  });
}

void normdet_norm_backward(const Call* call) {
  normalization(*call, [&](const auto& job, auto x, auto dy, auto dx) {
    using A = std::decay_t<decltype(*job.weight)>;
    std::vector<A> s0(job.rows()), s1(job.rows()), st(job.rows());
    const Sums<A*> sums{s0.data(), s1.data(), st.data()};
    by_flag(call->act, [&](auto flag) {
      constexpr bool Act = decltype(flag)::value;
      if (call->last) backward_last<Act>(job, dy, x, dx, sums);
      else backward_rows<Act>(job, dy, x, dx, sums);
    });
    parameter_gradients(job, sums, (A*)call->by_channel, (A*)call->deps);
  });
}

void normdet_point_forward(const Call* call) {
  by_type(call->dtype, [&](auto type) {
    using T = decltype(type);
    using A = typename Wide<T>::type;
    by_flag(call->last && (call->weight || call->tau), [&](auto last_flag) {
      by_flag(call->act, [&](auto flag) {
        point_forward<decltype(last_flag)::value, decltype(flag)::value>(
            Shape{call->n, call->c, call->s, 1}, call->threads, (const T*)call->x,
            (const T*)call->x2, (T*)call->out, (const A*)call->weight, (const A*)call->bias,
            (const A*)call->tau);
      });
    });
  });
}

void normdet_point_backward(const Call* call) {
  by_type(call->dtype, [&](auto type) {
    using T = decltype(type);
    using A = typename Wide<T>::type;
    by_flag(call->last && (call->weight || call->tau), [&](auto flag) {
      point_backward<decltype(flag)::value>(
          Shape{call->n, call->c, call->s, 1}, call->threads, (const T*)call->x2,
          (const T*)call->x, (T*)call->out, (const A*)call->weight, (const A*)call->tau,
          (A*)call->by_channel);
    });
  });
}

}  // extern "C"
