/* SPDX-License-Identifier: MIT */
/*
 * The swap of frames, as hypervisor-patches/ adds it to Xen's public memory.h.
 * The handles are 64 bits wide for every caller.
 */
#ifndef __VMBEAM_XEN_SWAP_H__
#define __VMBEAM_XEN_SWAP_H__

#include <linux/types.h>

struct xen_mem_swap_run {
	__aligned_u64 gfn_a;
	__aligned_u64 gfn_b;
	u32 nr;
	u32 pad;
};

struct xen_mem_swap_frames {
	u16 domid_a;
	u16 domid_b;
	u32 flags;
	u32 nr_runs;
	u32 version;
	__aligned_u64 runs;
	__aligned_u64 status;
	__aligned_u64 nr_pairs;
	__aligned_u64 done;
	__aligned_u64 id_a;
	__aligned_u64 id_b;
	__aligned_u64 stats;
	u32 nr_stats;
	u32 pad;
	__aligned_u64 to_a;
	__aligned_u64 to_b;
};

#endif /* __VMBEAM_XEN_SWAP_H__ */
