/* 3x3 convolutions with stride 1 and a border of zeros by Winograd's F(4x4, 3x3): 36 multiplications for 16 outputs
 * instead of 144 (Lavin and Gray, arXiv 1509.09308). Images are float32, channels last, channels a multiple of PANEL.
 *
 * An image is cut into tiles of 4x4 outputs, each of which needs 6x6 inputs. At each of the 36 POINTS of a transformed
 * tile, a matrix (tiles, inputs) times the transformed filters (inputs, outputs) gives the transformed outputs. Tiles
 * are taken in blocks that stay in a core's cache, and OpenMP's threads share the blocks out. Filters are transformed
 * when they are used, which takes about as long as to read them from memory, where they would be four times as large.
 * Gradients of transformed filters lie as (POINTS, outputs / PANEL, inputs, PANEL). */

#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

/* ROWS x PANEL floats, the accumulators of a matrix product, fill the vector registers. */
enum { ROWS = LANES == 16 ? 16 : 6, PANEL = 16, VECTORS = PANEL / LANES, POINTS = 36 };
/* Bytes of a block's transformed tiles, and the fewest tiles for which the gradients of filters are read. */
enum { BLOCK = 500000, LEAST_TILES = 24 };
/* Bytes of transformed filters that each thread keeps, and the fewest tiles for which it transforms more than that. */
enum { KEPT = 2500000, TILES_PER_FILTER = 64 };
/* Panels that are transformed together, as their filters lie next to each other. */
enum { GROUP = 2 };

typedef void transform(const vector *, int, vector *, int);

typedef struct {
    long images, height, width, inputs, outputs; /* the last two: channels */
} shape;

/* One-dimensional transforms: vectors at a distance of `from` become others at a distance of `to`. */
INLINE void inputs_6_to_6(const vector *d, int from, vector *o, int to) {
    vector d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from];
    vector even = d4 - 4 * d2, odd = d3 - 4 * d1, even_at_2 = d4 - d2, odd_at_2 = 2 * (d3 - d1);
    o[0] = 4 * d[0] - 5 * d2 + d4;
    o[to] = even + odd;
    o[2 * to] = even - odd;
    o[3 * to] = even_at_2 + odd_at_2;
    o[4 * to] = even_at_2 - odd_at_2;
    o[5 * to] = 4 * d1 - 5 * d3 + d[5 * from];
}

INLINE void outputs_6_to_4(const vector *m, int from, vector *o, int to) {
    vector even = m[from] + m[2 * from], odd = m[from] - m[2 * from];
    vector even_at_2 = m[3 * from] + m[4 * from], odd_at_2 = m[3 * from] - m[4 * from];
    o[0] = m[0] + even + even_at_2;
    o[to] = odd + 2 * odd_at_2;
    o[2 * to] = even + 4 * even_at_2;
    o[3 * to] = odd + 8 * odd_at_2 + m[5 * from];
}

INLINE void gradients_4_to_6(const vector *g, int from, vector *o, int to) { /* the last one, transposed */
    vector even = g[0] + g[2 * from], odd = g[from] + g[3 * from];
    vector even_at_2 = g[0] + 4 * g[2 * from], odd_at_2 = 2 * g[from] + 8 * g[3 * from];
    o[0] = g[0];
    o[to] = even + odd;
    o[2 * to] = even - odd;
    o[3 * to] = even_at_2 + odd_at_2;
    o[4 * to] = even_at_2 - odd_at_2;
    o[5 * to] = g[3 * from];
}

/* Filters at a row of points: (inputs, 3 x 3, outputs) -> (panels, 6, inputs, PANEL), from the output `first` on. */
static void transform_filters(const float *filters, shape s, int row, long first, long panels, float *matrices) {
    static const float ROW[6][3] = {{1 / 4.f, 0, 0},
                                    {-1 / 6.f, -1 / 6.f, -1 / 6.f},
                                    {-1 / 6.f, 1 / 6.f, -1 / 6.f},
                                    {1 / 24.f, 1 / 12.f, 1 / 6.f},
                                    {1 / 24.f, -1 / 12.f, 1 / 6.f},
                                    {0, 0, 1}};
    const float *by = ROW[row];
    long step = s.inputs * PANEL;
    for (long c = 0; c < s.inputs; c++)
        for (long o = 0; o < panels * PANEL; o += LANES) { /* in this order, neighbours in memory are read together */
            const float *from = filters + 9 * c * s.outputs + first + o;
            float *to = matrices + o / PANEL * 6 * step + c * PANEL + o % PANEL;
            vector w[3];
            UNROLLED for (int i = 0; i < 3; i++)
                w[i] = by[0] * load(from + i * s.outputs) + by[1] * load(from + (3 + i) * s.outputs) +
                       by[2] * load(from + (6 + i) * s.outputs);
            vector even = (w[0] + w[2]) * (-1 / 6.f), odd = w[1] * (1 / 6.f);
            vector even_at_2 = w[0] * (1 / 24.f) + w[2] * (1 / 6.f), odd_at_2 = w[1] * (1 / 12.f);
            store(to, w[0] * (1 / 4.f));
            store(to + step, even - odd);
            store(to + 2 * step, even + odd);
            store(to + 3 * step, even_at_2 + odd_at_2);
            store(to + 4 * step, even_at_2 - odd_at_2);
            store(to + 5 * step, w[2]);
        }
}

static long tiles_of(long size) { return (size + 3) / 4; }

/* Offsets into the images of a tile's size x size pixels, `border` of them above and left of its outputs; -1: none. */
static void find_pixels(long *offsets, int size, int border, long tile, shape s, long channels) {
    long down = tiles_of(s.height), across = tiles_of(s.width);
    long image = tile / (down * across), top = tile / across % down * 4 - border, left = tile % across * 4 - border;
    for (int i = 0; i < size * size; i++) {
        long y = top + i / size, x = left + i % size;
        int inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
        offsets[i] = inside ? ((image * s.height + y) * s.width + x) * channels : -1;
    }
}

/* Transformed tiles from `first` on: a matrix (count, channels) for each point, one `step` after the other. */
INLINE void read_tiles(const int size, transform one_dimension, const float *images, long channels, shape s, long first,
                       long count, float *matrices, long step) {
    for (long tile = 0; tile < count; tile++) {
        long pixels[POINTS];
        find_pixels(pixels, size, (size - 4) / 2, first + tile, s, channels);
        for (long c = 0; c < channels; c += LANES) {
            vector d[POINTS], half[POINTS];
            UNROLLED for (int i = 0; i < size * size; i++)
                d[i] = pixels[i] < 0 ? (vector){0} : load(images + pixels[i] + c);
            UNROLLED for (int i = 0; i < size; i++) one_dimension(d + i, size, half + i, size);
            UNROLLED for (int i = 0; i < 6; i++) one_dimension(half + size * i, 1, d + 6 * i, 1);
            UNROLLED for (int i = 0; i < POINTS; i++) store(matrices + i * step + tile * channels + c, d[i]);
        }
    }
}

static void write_tiles(float *images, shape s, const float *bias, long first, long count, const float *matrices,
                        long step) {
    for (long tile = 0; tile < count; tile++) {
        long pixels[16];
        find_pixels(pixels, 4, 0, first + tile, s, s.outputs);
        for (long c = 0; c < s.outputs; c += LANES) {
            vector m[POINTS], half[24], o[16], shift = bias ? load(bias + c) : (vector){0};
            UNROLLED for (int i = 0; i < POINTS; i++) m[i] = load(matrices + i * step + tile * s.outputs + c);
            UNROLLED for (int i = 0; i < 6; i++) outputs_6_to_4(m + i, 6, half + i, 6);
            UNROLLED for (int i = 0; i < 4; i++) outputs_6_to_4(half + 6 * i, 1, o + 4 * i, 1);
            UNROLLED for (int i = 0; i < 16; i++)
                if (pixels[i] >= 0) store(images + pixels[i] + c, o[i] + shift);
        }
    }
}

/* o[r][0:PANEL] = or += sum over d of a[r * row + d * column] * b[d * width][0:PANEL], for r < rows <= ROWS. */
INLINE void multiply(const int add, const float *a, long row, long column, const float *b, long width, long depth,
                     float *o, long o_width, long rows) {
    vector sums[ROWS][VECTORS] = {0};
    for (long d = 0; d < depth; d++, a += column, b += width) {
        vector panel[VECTORS];
        UNROLLED for (int v = 0; v < VECTORS; v++) panel[v] = load(b + v * LANES);
        UNROLLED for (int r = 0; r < ROWS; r++)
            UNROLLED for (int v = 0; v < VECTORS; v++) sums[r][v] += a[r * row] * panel[v];
    }
    UNROLLED for (int r = 0; r < ROWS; r++)
        UNROLLED for (int v = 0; v < VECTORS; v++) {
            float *to = o + r * o_width + v * LANES;
            if (r < rows) {
                if (add) sums[r][v] += load(to);
                store(to, sums[r][v]);
            }
        }
}

static long block_of(shape s) {
    long tiles = BLOCK / (POINTS * (s.inputs + s.outputs) * (long)sizeof(float));
    return (tiles > LEAST_TILES ? tiles : LEAST_TILES + ROWS - 1) / ROWS * ROWS;
}

static long round_up(long size, long unit) { return (size + unit - 1) / unit * unit; }
static long larger(long a, long b) { return a > b ? a : b; }

static float *allocate(long floats) { return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64); }

/* images (number, height, width, in), filters (in, 3, 3, out), bias (out) or NULL -> outputs (number, height, width,
 * out). 1: no memory. */
int winograd_convolve(const float *images, const float *filters, const float *bias, float *outputs, long number,
                      long height, long width, long in, long out) {
    shape s = {number, height, width, in, out};
    long tiles = number * tiles_of(height) * tiles_of(width), block = block_of(s);
    int keep = POINTS * in * out * (long)sizeof(float) <= KEPT, failed = 0;
    if (!keep) block = larger(block, round_up(smaller(TILES_PER_FILTER, tiles / omp_get_max_threads()), ROWS));
    long step = block * in, group = keep ? out : GROUP * PANEL;
#pragma omp parallel reduction(| : failed)
    {
        float *read = allocate(POINTS * block * (in + out)), *written = read + POINTS * step;
        float *transformed = allocate((keep ? POINTS : 6) * in * group);
        int ready = 0;
        failed = !read || !transformed;
#pragma omp for schedule(dynamic)
        for (long first = 0; first < tiles; first += block) {
            if (failed) continue;
            long count = smaller(block, tiles - first);
            read_tiles(6, inputs_6_to_6, images, in, s, first, count, read, step);
            for (int row = 0; row < 6; row++)
                for (long panel = 0; panel < out; panel += PANEL) {
                    float *points = transformed + (keep ? row * 6 * in * out : 0), *to = written + panel;
                    if (!ready && panel % group == 0)
                        transform_filters(filters, s, row, panel, smaller(group, out - panel) / PANEL, points);
                    points += panel % group * 6 * in;
                    for (int i = 0; i < 6; i++)
                        for (long t = 0; t < count; t += ROWS)
                            multiply(0, read + (row * 6 + i) * step + t * in, in, 1, points + i * in * PANEL, PANEL, in,
                                     to + ((row * 6 + i) * block + t) * out, out, smaller(ROWS, count - t));
                }
            ready = keep;
            write_tiles(outputs, s, bias, first, count, written, block * out);
        }
        free(transformed);
        free(read);
    }
    return failed;
}

/* images (number, height, width, in), gradients (number, height, width, out) -> those of the filters. 1: no memory.
 * The order of the sum depends on the number of threads alone. */
int winograd_filter_gradients(const float *images, const float *gradients, float *filters, long number, long height,
                              long width, long in, long out, long threads) {
    shape s = {number, height, width, in, out};
    long tiles = number * tiles_of(height) * tiles_of(width), block = block_of(s), step = block * in;
    long size = POINTS * in * out;
    float *sums = calloc(threads * size, sizeof(float));
    int failed = !sums;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
    for (long thread = 0; thread < threads; thread++) {
        float *sum = sums + thread * size, *read = allocate(POINTS * block * (in + out)), *to = read + POINTS * step;
        failed |= !read;
        if (failed) continue;
        long last = tiles * (thread + 1) / threads;
        for (long first = tiles * thread / threads; first < last; first += block) {
            long count = smaller(block, last - first);
            read_tiles(6, inputs_6_to_6, images, in, s, first, count, read, step);
            read_tiles(4, gradients_4_to_6, gradients, out, s, first, count, to, block * out);
            for (long point = 0; point < POINTS; point++)
                for (long panel = 0; panel < out; panel += PANEL)
                    for (long c = 0; c < in; c += ROWS)
                        multiply(1, read + point * step + c, 1, in, to + point * block * out + panel, out, count,
                                 sum + (point * out + panel) * in + c * PANEL, PANEL, smaller(ROWS, in - c));
        }
        free(read);
    }
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < (failed ? 0 : size); i++) {
        filters[i] = 0;
        for (long thread = 0; thread < threads; thread++) filters[i] += sums[thread * size + i];
    }
    free(sums);
    return failed;
}
