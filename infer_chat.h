/* ./infer --chat: a conversation with history, edited lines and commands. */
#ifndef PEFT_INFER_CHAT_H
#define PEFT_INFER_CHAT_H

#include "infer_reply.h"

/* `first`: answered as one user turn, and that is all; NULL: talk until the end of input or /exit. */
int chat_run(app *a, const char *first);

#endif
