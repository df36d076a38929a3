/* The table of update rules: the command line, the help, the Python functions and the tests follow from it. */
#include "kernels/readouts/readout.h"

#define RULES(ROW)                                                                                                     \
    ROW(sum)                                                                                                           \
    ROW(fwm)                                                                                                           \
    ROW(delta)                                                                                                         \
    ROW(softmax)

#define DECLARE(name) extern const Readout FWM_NAME(readout_##name);
#define LIST(name) &FWM_NAME(readout_##name),

RULES(DECLARE)

const Readout *const readouts[] = {RULES(LIST) NULL};
