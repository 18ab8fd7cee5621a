/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Faults on request, from a debug driver (VMBEAM_DEBUG=y).
 */
#ifndef VMBEAM_INJECT_H
#define VMBEAM_INJECT_H

#include "vmbeam_test.h"

#include "vmbeam_debug.h"

/* What a hypercall can say of pairs that it did not deal with. */
#define CLAIM_MORE 1
#define CLAIM_ALL 2

static int debug_device = -1;

/* Returns what was left of the previous request of the same kind. */
static inline __u64 inject(__u32 op, __u64 nr, __u64 runs, __s32 value, __u32 claim)
{
	struct vmbeam_debug arg = {
		.op = op,
		.nr = nr,
		.first = runs,
		.value = value,
		.domid = claim,
	};

	return ioctl(debug_device, VMBEAM_IOCTL_DEBUG, &arg) ? UINT64_MAX : arg.nr;
}

static inline void fail_alloc(__u64 nr)
{
	inject(VMBEAM_DEBUG_FAIL_ALLOC, nr, 0, 0, 0);
}

static inline void fail_call(__u64 nr, __u64 runs, int error)
{
	inject(VMBEAM_DEBUG_FAIL_CALL, nr, runs, error, 0);
}

/* Whether the fault that was asked for has happened; and no more faults. */
static inline bool happened(__u32 op)
{
	return inject(op, 0, 0, 0, 0) == 0;
}

/* Let the @nr-th hypercall wait, or the one that waits go on if that is 0. */
static inline void hold_call(__u64 nr)
{
	inject(VMBEAM_DEBUG_HOLD, nr, 0, 0, 0);
}

static inline void wait_until_held(void)
{
	struct vmbeam_debug arg = { .op = VMBEAM_DEBUG_HELD };

	while (!ioctl(debug_device, VMBEAM_IOCTL_DEBUG, &arg) && !arg.value)
		usleep(1000);
}

static inline void no_faults(void)
{
	hold_call(0);
	inject(VMBEAM_DEBUG_FAIL_ALLOC, 0, 0, 0, 0);
	inject(VMBEAM_DEBUG_FAIL_CALL, 0, 0, 0, 0);
	inject(VMBEAM_DEBUG_SIGNAL, 0, 0, 0, 0);
	inject(VMBEAM_DEBUG_SLOW, 0, 0, 0, 0);
}

#endif /* VMBEAM_INJECT_H */
