/* Decode the box of a JPEG that a crop keeps. Of the rows above it and of the columns beside it, libjpeg-turbo decodes
 * the entropy code alone; the rows below it are only searched for markers, with which decoding everything would fail.
 * The pixels are those of decoding everything: where colours are stored with fewer pixels, MARGIN more are decoded
 * around the box, since each is interpolated with its neighbours. */

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001005
#error "libjpeg-turbo is older than 2.1.5"
#endif

enum { CHANNELS = 3, MARGIN = 2 * DCTSIZE };

typedef struct {
    struct jpeg_error_mgr manager; /* first, since libjpeg knows only this part */
    jmp_buf jump;
} errors;

static void give_up(j_common_ptr info) { longjmp(((errors *)info->err)->jump, 1); }

static void say_nothing(j_common_ptr info) { (void)info; }

/* Return whether colours are stored with as many pixels as brightness, or with half as many in a row or in both ways. */
static int is_usual(const struct jpeg_decompress_struct *info) {
    if (info->num_components != CHANNELS || info->data_precision != 8) return 0;
    const jpeg_component_info *parts = info->comp_info;
    int colours = parts[1].h_samp_factor == 1 && parts[1].v_samp_factor == 1 && parts[2].h_samp_factor == 1 &&
                  parts[2].v_samp_factor == 1;
    int wide = parts[0].h_samp_factor, high = parts[0].v_samp_factor;
    return colours && ((wide == 1 && high == 1) || (wide == 2 && (high == 1 || high == 2)));
}

/* Return whether what was not read of the only scan ends with the file, and has no other markers than restarts. */
static int ends_well(const struct jpeg_decompress_struct *info) {
    const unsigned char *place = info->src->next_input_byte, *end = place + info->src->bytes_in_buffer;
    if (info->unread_marker) place -= 2;
    while ((place = memchr(place, 0xff, end - place))) {
        if (++place == end) return 0;
        if (*place == JPEG_EOI) return place + 1 == end;
        if (*place && (*place < JPEG_RST0 || *place > JPEG_RST0 + 7)) return 0;
        place++;
    }
    return 0;
}

/* Write the pixels (height, width, CHANNELS) of the box at (top, left) to `pixels`, and return 0. Return 1 for a file
 * that is broken, unusual, or of another size than (full_height, full_width), or a box that is not inside it. */
int decode_box(const unsigned char *content, long size, long full_height, long full_width, long top, long left,
               long height, long width, unsigned char *pixels) {
    struct jpeg_decompress_struct info;
    errors handler;
    unsigned char *volatile row = NULL;
    volatile int failed = 1;
    if (top < 0 || left < 0 || height < 1 || width < 1 || top > full_height - height || left > full_width - width)
        return 1;
    info.err = jpeg_std_error(&handler.manager);
    handler.manager.error_exit = give_up;
    handler.manager.output_message = say_nothing;
    if (!setjmp(handler.jump)) {
        jpeg_create_decompress(&info);
        jpeg_mem_src(&info, content, size);
        jpeg_read_header(&info, TRUE);
        if (is_usual(&info) && info.image_height == full_height && info.image_width == full_width) {
            long margin = info.max_h_samp_factor > 1 ? MARGIN : 0;
            long first = left > margin ? left - margin : 0, last = left + width + margin;
            JDIMENSION start = first, columns = (last < full_width ? last : full_width) - first;
            info.out_color_space = JCS_RGB;
            jpeg_start_decompress(&info);
            if (columns < full_width) jpeg_crop_scanline(&info, &start, &columns); /* moves the start to a block's */
            if (top > margin) jpeg_skip_scanlines(&info, top - margin);
            row = malloc((size_t)info.output_width * CHANNELS);
            if (row) {
                JSAMPROW place = row;
                for (long y = info.output_scanline; y < top + height; y++) {
                    jpeg_read_scanlines(&info, &place, 1);
                    if (y >= top)
                        memcpy(pixels + (y - top) * width * CHANNELS, row + (left - start) * CHANNELS, width * CHANNELS);
                }
                failed = handler.manager.num_warnings > 0 || !(jpeg_has_multiple_scans(&info) || ends_well(&info));
            }
        }
    }
    free(row);
    jpeg_destroy_decompress(&info);
    return failed;
}
