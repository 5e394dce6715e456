/* Batch normalisation, an addition and a ReLU: after one pass over the maps for the statistics, in training, all in one
 * pass; their gradients in two. Maps are (rows, channels) with at least LANES channels, in float32 or, if `half`, in
 * bfloat16; everything else is float32. Each thread takes an equal part of the rows: the order of summation depends on
 * the number of threads alone.
 *
 * Channels are taken in slots of LANES. The last slot ends at the last channel, so it may overlap the one before. */

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

enum { BLOCK = 1 << 13, LEAST_ROWS = 16 }; /* values and rows that are in float32 summed, and fit a core's cache */
enum { SHIFT_ROWS = 8 };                   /* rows of a block whose mean shifts it */
enum { SLOTS = 4 };                        /* slots whose sums are in registers at the same time */

typedef unsigned short halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
typedef unsigned int words __attribute__((vector_size(BYTES), aligned(4), may_alias));

typedef struct {
    const void *maps, *residual, *outputs, *gradients;
    void *written, *written_residual;
    const float *weight, *bias;
    float *mean, *variance, *weight_gradient, *bias_gradient; /* of each channel */
    long rows, channels;
    float epsilon;
} task;

/* For each channel: what the second pass needs, and what a thread sums, in slots. */
typedef struct {
    float *factor, *mean_gradient, *slope;
    double *sums, *products;
} scratch;

INLINE vector read(const void *from, long at, const int half) {
    if (!half) return load((const float *)from + at);
    return (vector)(__builtin_convertvector(*(const halves *)((const unsigned short *)from + at), words) << 16);
}

/* In bfloat16, round to the nearest, ties to even, and keep NaN, as PyTorch does. */
INLINE void write(void *to, long at, vector value, const int half) {
    if (!half) {
        store((float *)to + at, value);
        return;
    }
    words bits = (words)value, nan = (words)(value != value);
    words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    *(halves *)((unsigned short *)to + at) = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), halves);
}

/* `value` where `output` is positive or NaN, otherwise 0. */
INLINE vector where_positive(vector output, vector value) { return (vector)((words)value & ~(words)(output <= 0)); }

INLINE long slots_of(long channels) { return (channels + LANES - 1) / LANES; }
INLINE long start_of(long slot, long channels) { return smaller(slot * LANES, channels - LANES); }

static long block_of(long channels) {
    long rows = BLOCK / channels;
    return rows > LEAST_ROWS ? rows : LEAST_ROWS;
}

/* The constants of some slots, in registers. */
typedef struct {
    long channel[SLOTS];
    vector mean[SLOTS], factor[SLOTS], bias[SLOTS];
} constants;

INLINE constants constants_of(const task *t, const scratch *s, long slot, const int slots) {
    constants k;
    UNROLLED for (int i = 0; i < slots; i++) {
        long c = k.channel[i] = start_of(slot + i, t->channels);
        k.mean[i] = load(t->mean + c);
        k.factor[i] = load(s->factor + c);
        k.bias[i] = load(t->bias + c);
    }
    return k;
}

/* The same expression in both directions, so that the gradients see the signs of the outputs. */
INLINE vector normalized(const constants *k, int i, vector values) {
    return (values - k->mean[i]) * k->factor[i] + k->bias[i];
}

/* The gradients behind the ReLU. Without a residual the outputs are computed again rather than read. */
INLINE vector masked(const task *t, const constants *k, int i, vector values, long at, const int half,
                     const int residual) {
    vector output = residual ? read(t->outputs, at, half) : normalized(k, i, values);
    return where_positive(output, read(t->gradients, at, half));
}

/* Each of the following does its work for `slots` slots of the rows from `first` to `last`. */

/* Sum the values and squares in double. They are shifted by the mean of the first rows, since the squares of values
 * around 50 with a variance of 0.01 would leave nothing of it in float32. */
INLINE void sum_values(const task *t, const scratch *s, long slot, const int slots, long first, long last,
                       const int half, const int residual) {
    vector shift[SLOTS] = {0}, sum[SLOTS] = {0}, product[SLOTS] = {0};
    long few = smaller(SHIFT_ROWS, last - first);
    UNROLLED for (int i = 0; i < slots; i++) {
        long c = start_of(slot + i, t->channels);
        for (long row = first; row < first + few; row++) shift[i] += read(t->maps, row * t->channels + c, half);
        shift[i] /= (float)few;
    }
    for (long row = first; row < last; row++)
        UNROLLED for (int i = 0; i < slots; i++) {
            vector value = read(t->maps, row * t->channels + start_of(slot + i, t->channels), half) - shift[i];
            sum[i] += value;
            product[i] += value * value;
        }
    UNROLLED for (int i = 0; i < slots; i++)
        for (int lane = 0; lane < LANES; lane++) {
            long at = (slot + i) * LANES + lane, count = last - first;
            double by = shift[i][lane], summed = sum[i][lane];
            s->sums[at] += summed + count * by;
            s->products[at] += product[i][lane] + by * (2 * summed + count * by);
        }
}

INLINE void write_outputs(const task *t, const scratch *s, long slot, const int slots, long first, long last,
                          const int half, const int residual) {
    constants k = constants_of(t, s, slot, slots);
    for (long row = first; row < last; row++)
        UNROLLED for (int i = 0; i < slots; i++) {
            long at = row * t->channels + k.channel[i];
            vector value = normalized(&k, i, read(t->maps, at, half));
            if (residual) value += read(t->residual, at, half);
            write(t->written, at, where_positive(value, value), half);
        }
}

/* Sum the gradients, and their products with the centred maps. */
INLINE void sum_gradients(const task *t, const scratch *s, long slot, const int slots, long first, long last,
                          const int half, const int residual) {
    constants k = constants_of(t, s, slot, slots);
    vector sum[SLOTS] = {0}, product[SLOTS] = {0};
    for (long row = first; row < last; row++)
        UNROLLED for (int i = 0; i < slots; i++) {
            long at = row * t->channels + k.channel[i];
            vector values = read(t->maps, at, half), gradient = masked(t, &k, i, values, at, half, residual);
            if (residual) write(t->written_residual, at, gradient, half);
            sum[i] += gradient;
            product[i] += gradient * (values - k.mean[i]);
        }
    UNROLLED for (int i = 0; i < slots; i++)
        for (int lane = 0; lane < LANES; lane++) {
            s->sums[(slot + i) * LANES + lane] += sum[i][lane];
            s->products[(slot + i) * LANES + lane] += product[i][lane];
        }
}

INLINE void write_gradients(const task *t, const scratch *s, long slot, const int slots, long first, long last,
                            const int half, const int residual) {
    constants k = constants_of(t, s, slot, slots);
    vector mean_gradient[SLOTS], slope[SLOTS];
    UNROLLED for (int i = 0; i < slots; i++) {
        mean_gradient[i] = load(s->mean_gradient + k.channel[i]);
        slope[i] = load(s->slope + k.channel[i]);
    }
    for (long row = first; row < last; row++)
        UNROLLED for (int i = 0; i < slots; i++) {
            long at = row * t->channels + k.channel[i];
            vector values = read(t->maps, at, half), gradient;
            if (residual)
                gradient = read(t->written_residual, at, half);
            else
                gradient = masked(t, &k, i, values, at, half, residual);
            gradient -= mean_gradient[i] + (values - k.mean[i]) * slope[i];
            write(t->written, at, gradient * k.factor[i], half);
        }
}

/* Call one of them for all slots of a block of rows. */
#define FOR_SLOTS(work, first, last)                                                     \
    for (long slot = 0, all = slots_of(t->channels); slot < all; slot += SLOTS)          \
        switch (smaller(SLOTS, all - slot)) {                                            \
        case 1: work(t, s, slot, 1, first, last, half, residual); break;                 \
        case 2: work(t, s, slot, 2, first, last, half, residual); break;                 \
        case 3: work(t, s, slot, 3, first, last, half, residual); break;                 \
        default: work(t, s, slot, SLOTS, first, last, half, residual);                   \
        }

#define FOR_BLOCKS(work, first, last)                                                    \
    for (long start = first; start < last; start += block_of(t->channels))               \
        FOR_SLOTS(work, start, smaller(start + block_of(t->channels), last))

/* From the last block to the first: the last rows are still in the cache. */
#define FOR_BLOCKS_BACKWARDS(work, first, last)                                          \
    for (long end = last; end > first; end -= block_of(t->channels))                     \
        FOR_SLOTS(work, end - block_of(t->channels) > first ? end - block_of(t->channels) : first, end)

/* Memory for `threads` threads, filled with zeros. */
static void *allocate(long threads, long channels) {
    long bytes = slots_of(channels) * LANES * (3 * sizeof(float) + threads * 2 * sizeof(double));
    void *memory = aligned_alloc(BYTES, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

/* The part of that memory for one thread; the first three arrays are common to all. */
static scratch part_of(void *memory, long thread, long threads, long channels) {
    long width = slots_of(channels) * LANES;
    double *sums = (double *)memory + 2 * width * thread;
    float *common = (float *)((double *)memory + 2 * width * threads);
    return (scratch){common, common + width, common + 2 * width, sums, sums + width};
}

/* Sums of a channel over all threads. */
static void sums_of(void *memory, long threads, long channels, long channel, double *sum, double *product) {
    long slot = smaller(channel / LANES, slots_of(channels) - 1);
    long at = slot * LANES + channel - start_of(slot, channels);
    *sum = *product = 0;
    for (long thread = 0; thread < threads; thread++) {
        scratch s = part_of(memory, thread, threads, channels);
        *sum += s.sums[at];
        *product += s.products[at];
    }
}

static float inverse_deviation(const task *t, long channel) { return 1 / sqrtf(t->variance[channel] + t->epsilon); }

INLINE int forward(const task *t, const int half, const int residual, int training, int threads) {
    void *memory = allocate(threads, t->channels);
    if (!memory) return 1;
#pragma omp parallel num_threads(threads)
    {
        long thread = omp_get_thread_num(), team = omp_get_num_threads();
        long first = t->rows * thread / team, last = t->rows * (thread + 1) / team;
        scratch own = part_of(memory, thread, threads, t->channels), *s = &own;
        if (training) FOR_BLOCKS(sum_values, first, last)
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < t->channels; c++) {
            if (training) {
                double sum, product;
                sums_of(memory, threads, t->channels, c, &sum, &product);
                double mean = sum / t->rows, variance = product / t->rows - mean * mean;
                t->mean[c] = mean;
                t->variance[c] = variance < 0 ? 0 : variance;
            }
            s->factor[c] = t->weight[c] * inverse_deviation(t, c);
        }
        FOR_BLOCKS_BACKWARDS(write_outputs, first, last)
    }
    free(memory);
    return 0;
}

INLINE int backward(const task *t, const int half, const int residual, int training, int threads) {
    void *memory = allocate(threads, t->channels);
    if (!memory) return 1;
#pragma omp parallel num_threads(threads)
    {
        long thread = omp_get_thread_num(), team = omp_get_num_threads();
        long first = t->rows * thread / team, last = t->rows * (thread + 1) / team;
        scratch own = part_of(memory, thread, threads, t->channels), *s = &own;
#pragma omp single
        for (long c = 0; c < t->channels; c++) s->factor[c] = t->weight[c] * inverse_deviation(t, c);
        FOR_BLOCKS(sum_gradients, first, last)
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < t->channels; c++) {
            double sum, product, inverse = inverse_deviation(t, c);
            sums_of(memory, threads, t->channels, c, &sum, &product);
            t->bias_gradient[c] = sum;
            t->weight_gradient[c] = product * inverse;
            if (training) {
                s->mean_gradient[c] = sum / t->rows;
                s->slope[c] = product * inverse * inverse / t->rows;
            }
        }
        FOR_BLOCKS_BACKWARDS(write_gradients, first, last)
    }
    free(memory);
    return 0;
}

#define FOR_KINDS(function, half, residual, ...)                                            \
    (half ? residual ? function(&t, 1, 1, __VA_ARGS__) : function(&t, 1, 0, __VA_ARGS__)    \
          : residual ? function(&t, 0, 1, __VA_ARGS__) : function(&t, 0, 0, __VA_ARGS__))

/* maps (rows, channels), residual like maps or NULL -> outputs = max(0, norm(maps) + residual). In training, mean and
 * (biased) variance are written, otherwise read. 1: no memory. */
int norm_relu(const void *maps, const void *residual, const float *weight, const float *bias, float *mean,
              float *variance, void *outputs, long rows, long channels, double epsilon, int half, int training,
              int threads) {
    task t = {.maps = maps, .residual = residual, .weight = weight, .bias = bias, .mean = mean, .variance = variance,
              .written = outputs, .rows = rows, .channels = channels, .epsilon = epsilon};
    return FOR_KINDS(forward, half, residual, training, threads);
}

/* gradients of the outputs -> those of maps, residual (or NULL, then outputs too), weight and bias. 1: no memory. */
int norm_relu_gradients(const void *gradients, const void *maps, const void *outputs, const float *weight,
                        const float *bias, float *mean, float *variance, void *map_gradients,
                        void *residual_gradients, float *weight_gradient, float *bias_gradient, long rows,
                        long channels, double epsilon, int half, int training, int threads) {
    task t = {.maps = maps, .outputs = outputs, .gradients = gradients, .weight = weight, .bias = bias, .mean = mean,
              .variance = variance, .written = map_gradients, .written_residual = residual_gradients,
              .weight_gradient = weight_gradient, .bias_gradient = bias_gradient, .rows = rows, .channels = channels,
              .epsilon = epsilon};
    return FOR_KINDS(backward, half, residual_gradients, training, threads);
}
