// SPDX-License-Identifier: GPL-2.0-only
/*
 * Trace events, which can only be made in C, and the one line of the log.
 */

#include <linux/printk.h>
#include <linux/types.h>

#include "vmbeam_helpers.h"

#define CREATE_TRACE_POINTS
#include "vmbeam_trace.h"

void vmbeam_trace_begin(unsigned int domid_a, unsigned int domid_b, bool check,
			u64 cursor, u32 runs, u32 pairs)
{
	trace_vmbeam_batch_begin(domid_a, domid_b, check, cursor, runs, pairs);
}

void vmbeam_trace_end(unsigned int domid_a, unsigned int domid_b, bool check,
		      u64 cursor, u64 done, u64 tlb_flushes, int ret)
{
	trace_vmbeam_batch_end(domid_a, domid_b, check, cursor, done,
			       tlb_flushes, ret);
}

bool vmbeam_trace_refused_enabled(void)
{
	return trace_vmbeam_refused_enabled();
}

void vmbeam_trace_refused(unsigned int domid_a, unsigned int domid_b,
			  bool check, u64 gfn_a, u64 gfn_b, int status)
{
	trace_vmbeam_refused(domid_a, domid_b, check, gfn_a, gfn_b, status);
}

void vmbeam_record_kept(u64 id, unsigned int domid_a, unsigned int domid_b,
			u64 swapped, int error)
{
	trace_vmbeam_record(id, domid_a, domid_b, swapped, error);
	pr_warn_ratelimited("vmbeam: record %llu: %llu pairs of domains %u and %u remain swapped (error %d)\n",
			    id, swapped, domid_a, domid_b, error);
}
