/* Energy of the processor packages since some beginning, where the machine tells it: Linux' powercap (RAPL) counters.
 */
#ifndef PEFT_CORE_ENERGY_H
#define PEFT_CORE_ENERGY_H

enum { ENERGY_PACKAGES = 8 };
typedef struct energy {
    int n;                                                /* packages that can be read; 0: unknown */
    double last[ENERGY_PACKAGES], range[ENERGY_PACKAGES]; /* microjoules; counters begin again at range */
    double joules;                                        /* counted so far */
    const char *root;
} energy;
void energy_open(energy *e, const char *root); /* root: "/sys/class/powercap" */
double energy_joules(energy *e);               /* since energy_open; call at least once a minute. NAN: unknown */

#endif
