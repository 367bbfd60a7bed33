// Encodes a second of a tone, decodes it, and says how many bytes it took: roundtrip MODEL_FOLDER
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "undertone.h"

enum { RATE = 24000, PIECE = 1000 };

static int fail(const char *what) {
    fprintf(stderr, "roundtrip: %s: %s\n", what, undertone_last_error());
    return EXIT_FAILURE;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: roundtrip MODEL_FOLDER\n");
        return EXIT_FAILURE;
    }
    if (undertone_model_open("/nowhere") || undertone_last_error()[0] == '\0') return fail("no error");
    UndertoneModel *model = undertone_model_open(argv[1]);
    if (!model) return fail("model");
    if (undertone_encoder_new(model, 6.2, RATE, 0)) return fail("6.2 kbit/s is no rate");
    UndertoneEncoder *encoder = undertone_encoder_new(model, 6.0, RATE, 0);
    UndertoneDecoder *decoder = undertone_decoder_new(model);
    undertone_model_free(model);
    if (!encoder || !decoder) return fail("encoder, decoder");

    float pcm[PIECE];
    uint8_t bytes[256];
    size_t sent = 0, heard = 0, count;
    double energy = 0;
    for (int at = 0; at <= RATE; at += PIECE) {
        for (int i = 0; i < PIECE; i++) pcm[i] = 0.3f * sinf(0.05f * (float)(at + i));
        if (at == RATE ? undertone_encoder_finish(encoder) : undertone_encoder_push(encoder, pcm, PIECE))
            return fail("encode");
        while ((count = undertone_encoder_pull(encoder, bytes, sizeof bytes)) > 0) {
            sent += count;
            if (undertone_decoder_push(decoder, bytes, count)) return fail("decode");
        }
    }
    if (undertone_decoder_finish(decoder)) return fail("end");
    while ((count = undertone_decoder_pull(decoder, pcm, PIECE)) > 0) {
        heard += count;
        for (size_t i = 0; i < count; i++) energy += pcm[i] * pcm[i];
    }
    undertone_encoder_free(encoder);
    undertone_decoder_free(decoder);

    double level = sqrt(energy / (double)RATE);
    printf("%d samples, %zu bytes, %zu samples of level %.3f\n", RATE, sent, heard, level);
    // A sine of 0.3 has level 0.212.
    return heard == RATE && level > 0.15 && level < 0.27 ? EXIT_SUCCESS : EXIT_FAILURE;
}
