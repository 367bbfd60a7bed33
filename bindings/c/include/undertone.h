// The undertone codec: samples to the bytes of a .utn stream and back.
//
// Functions that return int give 0, or -1 after an error; those that make something give NULL after
// one. undertone_last_error() then says what happened. A thing may be used by one thread at a time;
// a model by any number. Made by cbindgen: change src/lib.rs instead.

#ifndef UNDERTONE_H
#define UNDERTONE_H

#include <stddef.h>
#include <stdint.h>

// Bytes to samples.
typedef struct UndertoneDecoder UndertoneDecoder;

// Samples to bytes.
typedef struct UndertoneEncoder UndertoneEncoder;

// A model that was read from its folder.
typedef struct UndertoneModel UndertoneModel;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What the last error of this thread was; valid until the next one. Never NULL.
const char *undertone_last_error(void);

// Reads a model folder and checks its hashes. `folder` is a path that ends with a zero byte.
//
// # Safety
// `folder` is NULL or a string that ends with a zero byte.
struct UndertoneModel *undertone_model_open(const char *folder);

// Lets go of a model; encoders and decoders made of it go on. NULL is allowed.
//
// # Safety
// `model` is NULL or came from `undertone_model_open`, and is not used again.
void undertone_model_free(struct UndertoneModel *model);

// An encoder of one stream of `kbps` kbit/s (0.5 to 12 in steps of 0.5), for samples of one channel at `sample_rate_hz` (8000 to
// 192000), in bundles of `bundle_frames` frames of 20 ms (1 to 50; 0: the usual 5).
//
// # Safety
// `model` is NULL or came from `undertone_model_open`.
struct UndertoneEncoder *undertone_encoder_new(const struct UndertoneModel *model,
                                               double kbps,
                                               uint32_t sample_rate_hz,
                                               uint8_t bundle_frames);

// Encodes `length` samples in -1 to 1; the bytes are then there to be pulled.
//
// # Safety
// `encoder` is NULL or came from `undertone_encoder_new`; `pcm` points to `length` floats.
int undertone_encoder_push(struct UndertoneEncoder *encoder, const float *pcm, uintptr_t length);

// Ends the stream; its last bytes are then there to be pulled.
//
// # Safety
// `encoder` is NULL or came from `undertone_encoder_new`.
int undertone_encoder_finish(struct UndertoneEncoder *encoder);

// Moves up to `room` bytes to `bytes`; returns how many. 0: none are there yet.
//
// # Safety
// `encoder` is NULL or came from `undertone_encoder_new`; `bytes` has room for `room` bytes.
uintptr_t undertone_encoder_pull(struct UndertoneEncoder *encoder, uint8_t *bytes, uintptr_t room);

// Lets go of an encoder. NULL is allowed.
//
// # Safety
// `encoder` is NULL or came from `undertone_encoder_new`, and is not used again.
void undertone_encoder_free(struct UndertoneEncoder *encoder);

// A decoder of one stream, packed or coded; it gives one channel at 24000 Hz.
//
// # Safety
// `model` is NULL or came from `undertone_model_open`.
struct UndertoneDecoder *undertone_decoder_new(const struct UndertoneModel *model);

// Decodes `length` bytes of the stream, in pieces of any length; the samples are then there to be pulled.
//
// # Safety
// `decoder` is NULL or came from `undertone_decoder_new`; `bytes` points to `length` bytes.
int undertone_decoder_push(struct UndertoneDecoder *decoder,
                           const uint8_t *bytes,
                           uintptr_t length);

// Gives the last samples free to be pulled; -1 if the stream's end has not come.
//
// # Safety
// `decoder` is NULL or came from `undertone_decoder_new`.
int undertone_decoder_finish(struct UndertoneDecoder *decoder);

// Moves up to `room` samples to `pcm`; returns how many. 0: none are there yet.
//
// # Safety
// `decoder` is NULL or came from `undertone_decoder_new`; `pcm` has room for `room` floats.
uintptr_t undertone_decoder_pull(struct UndertoneDecoder *decoder, float *pcm, uintptr_t room);

// Lets go of a decoder. NULL is allowed.
//
// # Safety
// `decoder` is NULL or came from `undertone_decoder_new`, and is not used again.
void undertone_decoder_free(struct UndertoneDecoder *decoder);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UNDERTONE_H */
