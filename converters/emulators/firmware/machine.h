/* What the firmware may ask of the machine. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdint.h>

/* Send bytes to the host. */
void machine_send(const void *bytes, uint32_t count);

/* End the emulation. */
void machine_end(void);

#endif
