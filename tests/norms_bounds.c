/* Calls the kernel on arrays that end where it may read and write no further; a sanitizer stops it where it does. */

#include <stdlib.h>
#include <string.h>

int norm_relu(const void *, const void *, const float *, const float *, float *, float *, void *, long, long, double,
              int, int, int);
int norm_relu_gradients(const void *, const void *, const void *, const float *, const float *, float *, float *,
                        void *, void *, float *, float *, long, long, double, int, int, int);

static const long SHAPES[][2] = {/* rows, channels */
                                 {2, 16}, {1, 17}, {3, 116}, {700, 24}, {5, 2048}, {3000, 16}};

static void *array(long bytes) { return memset(malloc(bytes), 63, bytes); } /* 0.5 or 0.75 */

int main(void) {
    int failed = 0;
    for (unsigned i = 0; i < sizeof(SHAPES) / sizeof(*SHAPES); i++)
        for (int kind = 0; kind < 8; kind++)
            for (int threads = 1; threads < 4; threads++) {
                int half = kind & 1, added = kind >> 1 & 1, training = kind >> 2;
                long rows = SHAPES[i][0], channels = SHAPES[i][1], size = rows * channels * (half ? 2 : 4);
                void *maps = array(size), *outputs = array(size), *gradients = array(size);
                void *residual = added ? array(size) : NULL, *residual_gradients = added ? array(size) : NULL;
                float *vectors[6];
                for (int v = 0; v < 6; v++) vectors[v] = array(channels * sizeof(float));
                failed |= norm_relu(maps, residual, vectors[0], vectors[1], vectors[2], vectors[3], outputs, rows, channels,
                                    1e-5, half, training, threads);
                failed |= norm_relu_gradients(outputs, maps, added ? outputs : NULL, vectors[0], vectors[1], vectors[2],
                                              vectors[3], gradients, residual_gradients, vectors[4], vectors[5], rows,
                                              channels, 1e-5, half, training, threads);
                free(maps), free(outputs), free(gradients), free(residual), free(residual_gradients);
                for (int v = 0; v < 6; v++) free(vectors[v]);
            }
    return failed;
}
