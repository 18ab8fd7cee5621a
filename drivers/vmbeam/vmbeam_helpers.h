/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Called from Rust, which declares each where it is called.
 */
#ifndef __VMBEAM_HELPERS_H__
#define __VMBEAM_HELPERS_H__

#include <linux/types.h>

bool vmbeam_is_initial_domain(void);
int vmbeam_memory_op(unsigned int cmd, void *arg);

void vmbeam_trace_begin(unsigned int domid_a, unsigned int domid_b, bool check,
			u64 cursor, u32 runs, u32 pairs);
void vmbeam_trace_end(unsigned int domid_a, unsigned int domid_b, bool check,
		      u64 cursor, u64 done, u64 tlb_flushes, int ret);
bool vmbeam_trace_refused_enabled(void);
void vmbeam_trace_refused(unsigned int domid_a, unsigned int domid_b,
			  bool check, u64 gfn_a, u64 gfn_b, int status);
void vmbeam_record_kept(u64 id, unsigned int domid_a, unsigned int domid_b,
			u64 swapped, int error);

/* In a debug build only. */
void vmbeam_debug_raise(int sig);
void vmbeam_debug_sleep(unsigned int msecs);

#endif /* __VMBEAM_HELPERS_H__ */
