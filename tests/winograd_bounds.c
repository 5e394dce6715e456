/* Calls the kernel on arrays that end where it may read and write no further; a sanitizer stops it where it does. */

#include <stdlib.h>

int winograd_convolve(const float *, const float *, const float *, float *, long, long, long, long, long);
int winograd_filter_gradients(const float *, const float *, float *, long, long, long, long, long, long);

static const long SHAPES[][5] = {/* number, height, width, in, out */
                                 {1, 4, 4, 16, 32}, {3, 7, 5, 48, 80}, {5, 1, 3, 16, 16}, {9, 32, 32, 32, 32},
                                 {3, 9, 8, 128, 128}, {40, 6, 10, 64, 16},
                                 {70, 4, 4, 144, 144}};

static float *array(long size) {
    float *values = malloc(size * sizeof(float));
    for (long i = 0; i < size; i++) values[i] = (float)(i % 7 - 3);
    return values;
}

int main(void) {
    int failed = 0;
    for (unsigned i = 0; i < sizeof(SHAPES) / sizeof(*SHAPES); i++) {
        const long *s = SHAPES[i], pixels = s[0] * s[1] * s[2], pairs = s[3] * s[4];
        float *images = array(pixels * s[3]), *outputs = array(pixels * s[4]), *bias = array(s[4]), *filters = array(9 * pairs);
        float *transformed = array(36 * pairs);
        failed |= winograd_convolve(images, filters, bias, outputs, s[0], s[1], s[2], s[3], s[4]);
        for (long threads = 1; threads < 4; threads++)
            failed |= winograd_filter_gradients(images, outputs, transformed, s[0], s[1], s[2], s[3], s[4], threads);
        free(images), free(outputs), free(bias), free(filters), free(transformed);
    }
    return failed;
}
