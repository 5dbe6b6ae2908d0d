/* One HTML page about one run or several: curves with axes and values under the pointer, configuration, machine. It
 * needs nothing but itself: no network, no other file. */
#ifndef PEFT_TRAIN_REPORT_H
#define PEFT_TRAIN_REPORT_H

#include "model/session.h"

/* Before the first step: the resolved configuration to output_dir/config.yaml, the machine to environment.json. */
int train_report_begin(const config *c, const session *s);
/* Reads metrics.jsonl, config.yaml and environment.json of each directory and writes the page to `path`. A directory
 * without metrics.jsonl is an error, EXIT_INPUT; broken last lines (of a run that is going on) are left out. */
int train_report(const char *const *dirs, int n, const char *path);

#endif
