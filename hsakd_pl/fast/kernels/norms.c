/* Batch normalisation, an addition and a ReLU: after one pass over the maps for the statistics, in training, all in one
 * pass; their gradients in two. Maps are (rows, channels) with at least LANES channels, in float32 or, if `half`, in
 * bfloat16; everything else is float32. Each thread takes an equal part of the rows: the order of summation depends on
 * the number of threads alone.
 *
 * Channels are taken in slots of LANES. The last slot ends at the last channel, so it may overlap the one before. */

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

enum { BLOCK = 1 << 13 }; /* values whose sums are float32, and that a core's cache holds; sums of blocks are double */
enum { SHIFT_ROWS = 8 };  /* rows of a block whose mean shifts it */

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
    float *shift, *sum, *product;
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
    return rows > SHIFT_ROWS ? rows : SHIFT_ROWS;
}

/* The same expression in both directions, so that the gradients see the signs of the outputs. */
INLINE vector normalized(const task *t, const scratch *s, vector values, long c) {
    return (values - load(t->mean + c)) * load(s->factor + c) + load(t->bias + c);
}

/* Add the values of a row and their squares, both shifted, to those of a block. */
INLINE void add_values(const task *t, const scratch *s, long row, const int half) {
    for (long slot = 0; slot < slots_of(t->channels); slot++) {
        long c = start_of(slot, t->channels), at = slot * LANES;
        vector value = read(t->maps, row * t->channels + c, half) - load(s->shift + at);
        store(s->sum + at, load(s->sum + at) + value);
        store(s->product + at, load(s->product + at) + value * value);
    }
}

INLINE void write_outputs(const task *t, const scratch *s, long row, const int half, const int residual) {
    for (long slot = 0; slot < slots_of(t->channels); slot++) {
        long c = start_of(slot, t->channels), at = row * t->channels + c;
        vector value = normalized(t, s, read(t->maps, at, half), c);
        if (residual) value += read(t->residual, at, half);
        write(t->written, at, where_positive(value, value), half);
    }
}

/* The gradients behind the ReLU. Without a residual the outputs are computed again rather than read. */
INLINE vector masked(const task *t, const scratch *s, vector values, long at, long c, const int half,
                     const int residual) {
    vector output = residual ? read(t->outputs, at, half) : normalized(t, s, values, c);
    return where_positive(output, read(t->gradients, at, half));
}

/* Add the gradients of a row, and their products with the centred maps, to those of a block. */
INLINE void add_gradients(const task *t, const scratch *s, long row, const int half, const int residual) {
    for (long slot = 0; slot < slots_of(t->channels); slot++) {
        long c = start_of(slot, t->channels), at = row * t->channels + c;
        vector values = read(t->maps, at, half), gradient = masked(t, s, values, at, c, half, residual);
        if (residual) write(t->written_residual, at, gradient, half);
        float *sum = s->sum + slot * LANES, *product = s->product + slot * LANES;
        store(sum, load(sum) + gradient);
        store(product, load(product) + gradient * (values - load(t->mean + c)));
    }
}

/* Write the gradients of the maps in a row. */
INLINE void write_gradients(const task *t, const scratch *s, long row, const int half, const int residual) {
    for (long slot = 0; slot < slots_of(t->channels); slot++) {
        long c = start_of(slot, t->channels), at = row * t->channels + c;
        vector values = read(t->maps, at, half), gradient;
        if (residual)
            gradient = read(t->written_residual, at, half);
        else
            gradient = masked(t, s, values, at, c, half, residual);
        gradient -= load(s->mean_gradient + c) + (values - load(t->mean + c)) * load(s->slope + c);
        write(t->written, at, gradient * load(s->factor + c), half);
    }
}

/* Sum the values and squares of rows in double. A block is shifted by the mean of its first rows, since the squares of
 * values around 50 with a variance of 0.01 would leave nothing of it in float32. */
INLINE void sum_values(const task *t, const scratch *s, long first, long last, const int half) {
    long width = slots_of(t->channels) * LANES, block = block_of(t->channels);
    for (long start = first; start < last; start += block) {
        long end = smaller(start + block, last), count = end - start;
        for (long i = 0; i < width; i++) s->shift[i] = s->sum[i] = s->product[i] = 0;
        long few = smaller(SHIFT_ROWS, count);
        for (long row = start; row < start + few; row++) add_values(t, s, row, half);
        for (long i = 0; i < width; i++) {
            s->shift[i] = s->sum[i] / few;
            s->sum[i] = s->product[i] = 0;
        }
        for (long row = start; row < end; row++) add_values(t, s, row, half);
        for (long i = 0; i < width; i++) {
            double shift = s->shift[i], sum = s->sum[i];
            s->sums[i] += sum + count * shift;
            s->products[i] += s->product[i] + shift * (2 * sum + count * shift);
        }
    }
}

INLINE void sum_gradients(const task *t, const scratch *s, long first, long last, const int half, const int residual) {
    long width = slots_of(t->channels) * LANES, block = block_of(t->channels);
    for (long start = first; start < last; start += block) {
        long end = smaller(start + block, last);
        for (long i = 0; i < width; i++) s->sum[i] = s->product[i] = 0;
        for (long row = start; row < end; row++) add_gradients(t, s, row, half, residual);
        for (long i = 0; i < width; i++) {
            s->sums[i] += s->sum[i];
            s->products[i] += s->product[i];
        }
    }
}

/* Rows from the last block to the first: the last rows are still in the cache. */
#define FOR_ROWS_BACKWARDS(first, last)                                                   \
    for (long step = block_of(t->channels), end = last; end > first; end -= step)         \
        for (long row = end - step > first ? end - step : first; row < end; row++)

/* Memory for `threads` threads, filled with zeros. */
static void *allocate(long threads, long channels) {
    long width = slots_of(channels) * LANES;
    return calloc(width * (3 * sizeof(float) + threads * (3 * sizeof(float) + 2 * sizeof(double))), 1);
}

/* The part of that memory for one thread; the first three arrays are common to all. */
static scratch part_of(void *memory, long thread, long threads, long channels) {
    long width = slots_of(channels) * LANES;
    double *sums = (double *)memory + 2 * width * thread;
    float *common = (float *)((double *)memory + 2 * width * threads);
    float *own = common + 3 * width * (1 + thread);
    return (scratch){common, common + width, common + 2 * width, own, own + width, own + 2 * width, sums, sums + width};
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
        if (training) sum_values(t, s, first, last, half);
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
        FOR_ROWS_BACKWARDS(first, last) write_outputs(t, s, row, half, residual);
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
        sum_gradients(t, s, first, last, half, residual);
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
        FOR_ROWS_BACKWARDS(first, last) write_gradients(t, s, row, half, residual);
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
