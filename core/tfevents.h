/* TensorBoard event files: scalars by step. A file is a list of records (TFRecord: length, masked CRC-32C of the
 * length, data, masked CRC-32C of the data) and each datum an Event message of protocol buffers
 * (tensorflow/core/util/event.proto: wall_time 1, step 2, file_version 3, summary 5; summary.value 1 with tag 1 and
 * simple_value 2). */
#ifndef PEFT_CORE_TFEVENTS_H
#define PEFT_CORE_TFEVENTS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct tfevents {
    FILE *f; /* NULL: closed */
} tfevents;

int tfevents_open(tfevents *e, const char *dir); /* DIR/events.out.tfevents.TIME.HOST.PID; -1 EXIT_IO */
typedef struct tf_scalar {
    const char *tag; /* at most 64 bytes */
    float value;
} tf_scalar;
enum { TF_SCALARS_MAX = 8 };
/* One event; allocates nothing. A full disk is not worth a run: what cannot be written is left out. */
void tfevents_add(tfevents *e, int64_t step, const tf_scalar *s, int n);
void tfevents_close(tfevents *e);

uint32_t crc32c(const void *data, size_t n); /* Castagnoli, reflected, as iSCSI has it (RFC 3720, B.4) */

#endif
