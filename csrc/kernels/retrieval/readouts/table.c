/* The table of read-outs, from which the command line, the help, the Python functions and the tests follow. */
#include "kernels/retrieval/readouts/readout.h"

#define READOUTS(ROW)                                                                                                  \
    ROW(sum)                                                                                                           \
    ROW(fwm)                                                                                                           \
    ROW(delta)                                                                                                         \
    ROW(softmax)

#define DECLARE(name) extern const Readout FWM_NAME(readout_##name);
#define LIST(name) &FWM_NAME(readout_##name),

READOUTS(DECLARE)

const Readout *const readouts[] = {READOUTS(LIST) NULL};

const FwmReadoutInfo *info_of_readout(size_t row)
{
    return readouts[row] ? &readouts[row]->info : NULL;
}
