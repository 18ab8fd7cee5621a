/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the harness (Rust) and the shim (C) agree on. src/ffi.rs has the other
 * half.
 */
#ifndef VMBEAM_SHIM_H
#define VMBEAM_SHIM_H

/* Something that Xen's code does or asks for. The answer's meaning depends. */
enum shim_event {
	EV_PRINT,		/* a: text */
	EV_BUG,			/* a: text, b: file, c: line; doesn't return */
	EV_ALLOC,		/* a: size, b: alignment -> address or 0 */
	EV_FREE,		/* a: address */
	EV_PTP_ALLOC,		/* a: domid -> non-zero: fail */
	EV_PTP_FREE,		/* a: domid, b: mfn */
	EV_COPY_IN,		/* a: address, b: length -> non-zero: fault */
	EV_COPY_OUT,		/* a: address, b: length -> non-zero: fault */
	EV_PREEMPT,		/* -> non-zero: yes */
	EV_CONTINUE,		/* a continuation was made */
	EV_FLUSH_DOMAIN,	/* a: domid: translations of this P2M */
	EV_IPI,			/* a: mask of CPUs: one round */
	EV_FLUSH_LINEAR,	/* a: mask: linear translations of these CPUs */
	EV_FLUSH_NESTED,	/* a: domid: one nested P2M */
	EV_WRITE,		/* a: domid, b: gfn, c: mfn, d: order | type << 8 */
	EV_LOCK,		/* a: address */
	EV_UNLOCK,		/* a: address */
	EV_FRAME_FREED,		/* a: mfn: the last reference was dropped */
	EV_CRASH,		/* a: domid */
	EV_FRAME_ALLOC,		/* a: domid: a frame for it -> non-zero: fail */
	EV_UNMAP,		/* a: domid: its device model is to drop mappings */
	EV_SET_LEAVES,		/* a: domid: entries are written -> non-zero: fail */
	EV_SET_ENTRY,		/* a: domid: one is written -> non-zero: fail */
	EV_FLUSH_IOMMU,		/* a: domid, b: dfn: the IOMMU's TLB */
	EV_FLUSH_CACHES,	/* a: mask of CPUs: written back and emptied */
};

/* What a gfn leads to, and the state of the frame there. */
struct shim_entry {
	uint64_t mfn;
	uint32_t type, order, access, pad;
};

struct shim_frame {
	uint64_t count_info, type_info, gpfn;
	uint32_t owner, pad;
};

/* Fixed facts of this build. */
struct shim_layout {
	uint64_t frames, frames_size;
	uint64_t m2p, m2p_size;
	uint64_t direct_map, direct_map_size;
	uint64_t traps, traps_size;
	uint64_t sizeof_page_info, count_info_mask, count_offset;
	uint64_t list_offset, owner_offset, page_allocated;
	/* of struct xen_mem_swap_frames */
	uint64_t args_size, version, done_offset, id_offset;
	uint64_t stats_offset, nr_stats_offset, nr_stats, to_offset;
};

#define SHIM_NO_DOMAIN 0xffffffffu

/* shim_domain_create() */
#define SHIM_NESTED (1u << 0)
#define SHIM_PRIVILEGED (1u << 1)
#define SHIM_PV (1u << 2)
#define SHIM_ALTP2M (1u << 3)

/* Ids of domains are this and the domid. */
#define SHIM_UNIQUE_ID 0x5eed00000000ul

/* Locks of a domain */
struct shim_locks {
	uint64_t domain, page_alloc, pod, paging, nested_p2m;
};

/* Populate-on-demand, and what counts with it */
struct shim_pod {
	uint64_t tot_pages, cache, entries, max_guest, claim, references;
};

#endif /* VMBEAM_SHIM_H */
