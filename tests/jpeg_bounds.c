/* Decodes boxes of JPEGs in arrays that end where the decoder may read and write no further, also of truncated and
 * damaged ones; a sanitizer stops it where it does. Returns 1 if a box differs from the same part of the whole image. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

int decode_box(const unsigned char *, long, long, long, long, long, long, long, unsigned char *);

enum { HEIGHT = 45, WIDTH = 70 }; /* neither fills its last block */

static unsigned char *encode(int wide, int high, int progressive, unsigned long *size) {
    struct jpeg_compress_struct info;
    struct jpeg_error_mgr handler;
    unsigned char *content = NULL, row[WIDTH * 3];
    info.err = jpeg_std_error(&handler);
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, &content, size);
    info.image_width = WIDTH, info.image_height = HEIGHT, info.input_components = 3, info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    info.comp_info[0].h_samp_factor = wide, info.comp_info[0].v_samp_factor = high;
    if (progressive) jpeg_simple_progression(&info);
    jpeg_start_compress(&info, TRUE);
    for (int y = 0; y < HEIGHT; y++) {
        for (int i = 0; i < WIDTH * 3; i++) row[i] = (i * 7 + y * y * 5) % 251;
        JSAMPROW place = row;
        jpeg_write_scanlines(&info, &place, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    return content;
}

static int decode(const unsigned char *content, long size, int top, int left, int height, int width,
                  const unsigned char *whole) {
    unsigned char *copy = malloc(size + !size), *pixels = malloc(height * width * 3);
    memcpy(copy, content, size);
    int differs = decode_box(copy, size, HEIGHT, WIDTH, top, left, height, width, pixels);
    for (int y = 0; whole && !differs && y < height; y++)
        differs = memcmp(pixels + y * width * 3, whole + ((top + y) * WIDTH + left) * 3, width * 3);
    free(copy), free(pixels);
    return differs != 0;
}

int main(void) {
    static const int SAMPLING[][2] = {{1, 1}, {2, 1}, {2, 2}};
    int failed = 0;
    srand(0);
    for (int kind = 0; kind < 6; kind++) {
        unsigned long size = 0;
        unsigned char *content = encode(SAMPLING[kind / 2][0], SAMPLING[kind / 2][1], kind % 2, &size);
        unsigned char *whole = malloc(HEIGHT * WIDTH * 3);
        failed |= decode_box(content, size, HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH, whole);
        for (int i = 0; i < 500; i++) {
            int top = rand() % HEIGHT, left = rand() % WIDTH;
            int height = 1 + rand() % (HEIGHT - top), width = 1 + rand() % (WIDTH - left);
            failed |= decode(content, size, top, left, height, width, whole);
            long cut = rand() % size;
            unsigned char before = content[cut];
            failed |= !decode(content, cut, top, left, height, width, NULL);
            content[cut] = rand();
            decode(content, size, top, left, height, width, NULL);
            content[cut] = before;
        }
        failed |= !decode(content, size, 0, 0, HEIGHT + 1, WIDTH, NULL);
        failed |= !decode(content, size, 0, 1, HEIGHT, WIDTH, NULL);
        free(content), free(whole);
    }
    return failed;
}
