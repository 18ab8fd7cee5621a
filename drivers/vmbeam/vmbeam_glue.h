/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Called from Rust, which declares them in rust/kernel/.
 */
#ifndef __VMBEAM_GLUE_H__
#define __VMBEAM_GLUE_H__

#include <linux/types.h>

int vmbeam_memory_op(unsigned int cmd, void *arg);
void vmbeam_cond_resched(void);
void vmbeam_pin_module(void);
void vmbeam_unpin_module(void);

void vmbeam_trace_begin(unsigned int domid_a, unsigned int domid_b, bool check,
			u64 cursor, u32 runs, u32 pairs);
void vmbeam_trace_end(unsigned int domid_a, unsigned int domid_b, bool check,
		      u64 cursor, u64 done, u64 tlb_flushes, int ret);
bool vmbeam_trace_refused_enabled(void);
void vmbeam_trace_refused(unsigned int domid_a, unsigned int domid_b,
			  bool check, u64 gfn_a, u64 gfn_b, int status);
void vmbeam_record_kept(u64 id, unsigned int domid_a, unsigned int domid_b,
			u64 swapped, int error);

#ifdef VMBEAM_DEBUG
void vmbeam_debug_raise(int sig);
void vmbeam_debug_sleep(unsigned int msecs);
#endif

#endif /* __VMBEAM_GLUE_H__ */
