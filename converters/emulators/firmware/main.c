/* Run emitted C over every row, and send what it gives: "ROWS", then for each row the outputs and the label, then "DONE".

   The rows were put into memory by qemu's loader: a count, then the rows. `subject.h`, written for each build, names the
   emitted functions: TYPE, INPUTS, OUTPUTS, CLASSIFIES, predict and label. */
#include "machine.h"
#include "subject.h"

#define ROWS_AT 0x21000000u

int main(void)
{
    const uint32_t count = *(const uint32_t *)ROWS_AT;
    const TYPE *row = (const TYPE *)(ROWS_AT + 16);
    uint32_t i;

    machine_send("ROWS", 4);
    for (i = 0; i < count; i++, row += INPUTS) {
        static TYPE out[OUTPUTS];
        int32_t label = -1;

        predict(row, out);
#if CLASSIFIES
        label = label_of(row);
#endif
        machine_send(out, sizeof out);
        machine_send(&label, sizeof label);
    }
    machine_send("DONE", 4);
    return 0;
}
