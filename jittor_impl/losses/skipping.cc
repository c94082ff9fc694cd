// Loops over a block of classes, for skipping.py, which defines ONEDNN (whether it is there) and NORM_FLOOR.
//
// Embeddings are unit vectors, (N, D), or turned, (D, N). Of a block of classes: prototypes (size, D), norms (size,),
// cosines (size, N). The list: for each class in order, `counts` of them, the samples of its active entries, rising.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

constexpr int64_t TILE = 128;  // classes whose prototypes and cosines stay in a core's cache
constexpr int64_t FEW = 32;  // samples that are looked at one by one where any is active
constexpr int TARGET = -4;  // stands for the cosine of a sample's own class, which is below every `least`
constexpr double FLOOR = NORM_FLOOR;

// c = a b + beta c, or with the transpose of a: a is (m, k), or turned (k, m); b (k, n); c (m, n)
template <class T> void product(bool turned, int64_t m, int64_t n, int64_t k, const T* a, const T* b, int beta, T* c) {
    #pragma omp parallel for
    for (int64_t i = 0; i < m; i++) {
        T* row = c + i * n;
        if (!beta) std::fill_n(row, n, T(0));
        for (int64_t l = 0; l < k; l++) {
            const T factor = turned ? a[l * m + i] : a[i * k + l];
            for (int64_t j = 0; j < n; j++) row[j] += factor * b[l * n + j];
        }
    }
}

#if ONEDNN
// Jittor has loaded the library for all. Inside a parallel loop it runs in the calling thread.
extern "C" int dnnl_sgemm(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t,
                          float, float*, int64_t);

template <> void product(bool turned, int64_t m, int64_t n, int64_t k, const float* a, const float* b, int beta,
                         float* c) {
    const int status = dnnl_sgemm(turned ? 'T' : 'N', 'N', m, n, k, 1, a, turned ? m : k, b, n, beta, c, n);
    if (status) throw std::runtime_error("oneDNN's matrix product failed, status " + std::to_string(status));
}
#endif

template <class T> void add(int64_t d, T factor, const T* __restrict__ vector, T* __restrict__ sum) {
    for (int64_t l = 0; l < d; l++) sum[l] += factor * vector[l];
}

template <class T> T clip(T cosine) { return std::min(std::max(cosine, T(-1)), T(1)); }

// Cosines and norms of the classes from `begin` to `end`, and which entries are active; `samples` has N places a class.
// The gradient, if wanted, is set to 0 here, where the threads are at work already.
template <class T> void screen_tile(int64_t begin, int64_t end, int64_t first, int64_t n, int64_t d, T least,
                                    const T* turned_embeddings, const T* prototypes, const int* labels, T* norms,
                                    T* cosines, int* samples, int* counts, T* cosine_sums, T* nearest_other,
                                    T* grad_prototypes) {
    product(false, end - begin, n, d, prototypes + begin * d, turned_embeddings, 0, cosines + begin * n);
    for (int64_t j = begin; j < end; j++) {
        const T* prototype = prototypes + j * d;
        T* row = cosines + j * n;
        T square = 0, sum = 0;
        for (int64_t k = 0; k < d; k++) square += prototype[k] * prototype[k];
        norms[j] = std::sqrt(std::max(square, T(FLOOR * FLOOR)));
        const T inverse = 1 / norms[j];
        for (int64_t i = 0; i < n; i++) sum += row[i] *= inverse;
        cosine_sums[j] = sum;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t j = labels[i] - first;
        if (begin <= j && j < end) cosines[j * n + i] = TARGET;
    }
    for (int64_t j = begin; j < end; j++) {
        const T* row = cosines + j * n;
        int* list = samples + j * n;
        int count = 0;
        for (int64_t start = 0; start < n; start += FEW) {
            const int64_t stop = std::min(start + FEW, n);
            int active = 0;
            for (int64_t i = start; i < stop; i++) {
                nearest_other[i] = std::max(nearest_other[i], row[i]);
                active += !(row[i] < least);  // so that a NaN is active and reaches the loss
            }
            if (active)
                for (int64_t i = start; i < stop; i++) {  // no branch: half of them might be guessed wrong
                    list[count] = i;
                    count += !(row[i] < least);
                }
        }
        counts[j] = count;
        if (grad_prototypes) std::fill_n(grad_prototypes + j * d, d, T(0));
    }
}

// Returns how many entries `cosines` holds: the active ones, or all of them where they are too many for a list.
template <class T> int64_t screen(int64_t size, int64_t first, int64_t n, int64_t d, double least, double dense_share,
                                  const T* turned_embeddings, const T* prototypes, const int* labels, T* norms,
                                  T* cosines, int* samples, int* counts, T* cosine_sum, T* nearest_other,
                                  T* grad_prototypes) {
    const T threshold = least > -1 ? least : -2;  // a cosine may round to less than -1
    std::vector<T> cosine_sums(size);
    #pragma omp parallel
    {
        std::vector<T> nearest(n, TARGET);
        #pragma omp for schedule(dynamic)
        for (int64_t begin = 0; begin < size; begin += TILE)
            screen_tile(begin, std::min(begin + TILE, size), first, n, d, threshold, turned_embeddings, prototypes,
                        labels, norms, cosines, samples, counts, cosine_sums.data(), nearest.data(),
                        grad_prototypes);
        #pragma omp critical
        for (int64_t i = 0; i < n; i++) nearest_other[i] = std::max(nearest_other[i], nearest[i]);
    }
    int64_t total = 0;
    double sum = 0;
    for (int64_t j = 0; j < size; j++) {
        total += counts[j];
        sum += cosine_sums[j];
    }
    *cosine_sum += sum;
    if (total > dense_share * size * n) return size * n;
    int64_t place = 0;
    for (int64_t j = 0; j < size; j++)
        for (int64_t k = 0; k < counts[j]; k++, place++) {
            samples[place] = samples[j * n + k];
            cosines[place] = cosines[j * n + samples[place]];
        }
    return total;
}

// What the entries of other classes give; in a dense block `cosines` and `weights` are (size, N). Without
// `grad_prototypes` only the samples' losses.
template <class T> void push(bool dense, int64_t size, int64_t n, int64_t d, const T* embeddings, const T* prototypes,
                             const T* norms, const T* cosines, const int* samples, const int* counts, const T* weights,
                             const T* sample_factors, T* grad_prototypes, T* grad_unit_embeddings, T* inter_losses) {
    std::vector<int64_t> starts(size + 1);
    for (int64_t j = 0; j < size; j++) starts[j + 1] = starts[j] + (dense ? n : counts[j]);
    std::unique_ptr<T[]> factors(new T[starts[size]]);  // g / ||w||
    std::vector<double> losses(n);
    std::vector<T> along(size);  // v . w^ / ||w||

    // threads that have to wait for one another cost more than a short list
    const bool shared = starts[size] * d > 1 << 18;

    const auto weight_of = [&](int64_t k) { return cosines[k] == TARGET ? T(0) : weights[k]; };
    const auto remove_radial_part = [&](int64_t j) {
        if (norms[j] > FLOOR) add(d, -along[j] / norms[j], prototypes + j * d, grad_prototypes + j * d);
    };
    const auto factor_of = [&](int64_t j, int64_t k, int64_t i) {
        return factors[k] = weight_of(k) * sample_factors[i] / norms[j];
    };

    #pragma omp parallel for if (shared)
    for (int64_t j = 0; j < (grad_prototypes ? size : 0); j++) {
        T sum = 0;
        if (dense)
            for (int64_t i = 0; i < n; i++) sum += factor_of(j, j * n + i, i) * cosines[j * n + i];
        else
            for (int64_t k = starts[j]; k < starts[j + 1]; k++) {
                sum += factor_of(j, k, samples[k]) * cosines[k];
                add(d, factors[k], embeddings + samples[k] * d, grad_prototypes + j * d);
            }
        along[j] = sum;
        if (!dense && starts[j] < starts[j + 1]) remove_radial_part(j);
    }
    constexpr int64_t SHARE = 16;  // samples that one thread serves: then no two write to a row
    #pragma omp parallel for if (shared)
    for (int64_t begin = 0; begin < n; begin += SHARE) {
        const int64_t end = std::min(begin + SHARE, n);
        for (int64_t j = 0; j < size; j++)
            if (dense)
                for (int64_t i = begin; i < end; i++) losses[i] += weight_of(j * n + i) * clip(cosines[j * n + i]);
            else
                for (int64_t k = starts[j]; k < starts[j + 1]; k++) {
                    const int64_t i = samples[k];
                    if (i < begin || i >= end) continue;
                    losses[i] += weight_of(k) * clip(cosines[k]);
                    if (grad_prototypes) add(d, factors[k], prototypes + j * d, grad_unit_embeddings + i * d);
                }
    }
    for (int64_t i = 0; i < n; i++) inter_losses[i] += losses[i];
    if (dense && grad_prototypes) {
        product(false, size, d, n, factors.get(), embeddings, 0, grad_prototypes);
        product(true, n, d, size, factors.get(), prototypes, 1, grad_unit_embeddings);
        #pragma omp parallel for
        for (int64_t j = 0; j < size; j++) remove_radial_part(j);
    }
}

// What the samples give to the prototypes of their own classes in the block, and these to the samples.
template <class T> void pull(int64_t size, int64_t first, int64_t n, int64_t d, const T* embeddings,
                             const T* prototypes, const int* labels, const T* norms, const T* target_cosines,
                             const T* weights, const T* sample_factors, T* grad_prototypes,
                             T* grad_unit_embeddings) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t j = labels[i] - first;
        if (j < 0 || j >= size) continue;
        const T factor = -weights[i] * sample_factors[i] / norms[j];
        const T along = norms[j] > FLOOR ? target_cosines[i] / norms[j] : 0;
        for (int64_t l = 0; l < d; l++) {
            grad_prototypes[j * d + l] += factor * (embeddings[i * d + l] - along * prototypes[j * d + l]);
            grad_unit_embeddings[i * d + l] += factor * prototypes[j * d + l];
        }
    }
}
