// SPDX-License-Identifier: GPL-2.0-only
/*
 * Proof that the layouts and numbers which the Rust side asserts (uapi.rs,
 * xen_abi.rs) are those of the headers. Nothing of this is in the module.
 */

#include <linux/build_bug.h>
#include <linux/stddef.h>
#include <linux/vmbeam.h>

#include "xen_swap.h"

#define CHECK_SIZE(type, size)						\
	static_assert(sizeof(struct type) == (size))
#define CHECK_FIELD(type, field, offset)				\
	static_assert(offsetof(struct type, field) == (offset))

CHECK_SIZE(vmbeam_info, 40);
CHECK_FIELD(vmbeam_info, features, 8);
CHECK_FIELD(vmbeam_info, max_add_runs, 16);
CHECK_FIELD(vmbeam_info, batch_pairs, 20);
CHECK_FIELD(vmbeam_info, max_runs, 24);
CHECK_FIELD(vmbeam_info, max_pairs, 32);

CHECK_SIZE(vmbeam_bind, 32);
CHECK_FIELD(vmbeam_bind, domid_a, 8);
CHECK_FIELD(vmbeam_bind, domid_b, 12);
CHECK_FIELD(vmbeam_bind, id_a, 16);
CHECK_FIELD(vmbeam_bind, id_b, 24);

CHECK_SIZE(vmbeam_run, 24);
CHECK_FIELD(vmbeam_run, gfn_b, 8);
CHECK_FIELD(vmbeam_run, nr, 16);
CHECK_FIELD(vmbeam_run, reserved, 20);

CHECK_SIZE(vmbeam_add, 40);
CHECK_FIELD(vmbeam_add, runs, 8);
CHECK_FIELD(vmbeam_add, nr_runs, 16);
CHECK_FIELD(vmbeam_add, bad_run, 20);
CHECK_FIELD(vmbeam_add, total_runs, 24);
CHECK_FIELD(vmbeam_add, total_pairs, 32);

CHECK_SIZE(vmbeam_check, 64);
CHECK_FIELD(vmbeam_check, first, 8);
CHECK_FIELD(vmbeam_check, nr, 16);
CHECK_FIELD(vmbeam_check, status, 24);
CHECK_FIELD(vmbeam_check, moves_before, 32);
CHECK_FIELD(vmbeam_check, done, 40);
CHECK_FIELD(vmbeam_check, refused, 48);
CHECK_FIELD(vmbeam_check, moves, 56);

CHECK_SIZE(vmbeam_commit, 64);
CHECK_FIELD(vmbeam_commit, expected, 8);
CHECK_FIELD(vmbeam_commit, nr, 16);
CHECK_FIELD(vmbeam_commit, status, 24);
CHECK_FIELD(vmbeam_commit, cursor, 32);
CHECK_FIELD(vmbeam_commit, swapped, 40);
CHECK_FIELD(vmbeam_commit, refused, 48);
CHECK_FIELD(vmbeam_commit, moved, 56);

CHECK_SIZE(vmbeam_status, 80);
CHECK_FIELD(vmbeam_status, state, 8);
CHECK_FIELD(vmbeam_status, domid_a, 12);
CHECK_FIELD(vmbeam_status, domid_b, 16);
CHECK_FIELD(vmbeam_status, activity, 20);
CHECK_FIELD(vmbeam_status, runs, 24);
CHECK_FIELD(vmbeam_status, pairs, 32);
CHECK_FIELD(vmbeam_status, cursor, 40);
CHECK_FIELD(vmbeam_status, swapped, 48);
CHECK_FIELD(vmbeam_status, refused, 56);
CHECK_FIELD(vmbeam_status, mode, 64);
CHECK_FIELD(vmbeam_status, reserved, 68);
CHECK_FIELD(vmbeam_status, moved, 72);

CHECK_SIZE(vmbeam_rollback, 32);
CHECK_FIELD(vmbeam_rollback, expected, 8);
CHECK_FIELD(vmbeam_rollback, cursor, 16);
CHECK_FIELD(vmbeam_rollback, restored, 24);

CHECK_SIZE(vmbeam_cancel, 8);

CHECK_SIZE(vmbeam_record, 120);
CHECK_FIELD(vmbeam_record, id, 8);
CHECK_FIELD(vmbeam_record, domid_a, 16);
CHECK_FIELD(vmbeam_record, domid_b, 20);
CHECK_FIELD(vmbeam_record, id_a, 24);
CHECK_FIELD(vmbeam_record, id_b, 32);
CHECK_FIELD(vmbeam_record, state, 40);
CHECK_FIELD(vmbeam_record, error, 44);
CHECK_FIELD(vmbeam_record, time, 48);
CHECK_FIELD(vmbeam_record, pid, 56);
CHECK_FIELD(vmbeam_record, reserved, 60);
CHECK_FIELD(vmbeam_record, runs, 64);
CHECK_FIELD(vmbeam_record, pairs, 72);
CHECK_FIELD(vmbeam_record, cursor, 80);
CHECK_FIELD(vmbeam_record, swapped, 88);
CHECK_FIELD(vmbeam_record, refused, 96);
CHECK_FIELD(vmbeam_record, mode, 104);
CHECK_FIELD(vmbeam_record, reserved2, 108);
CHECK_FIELD(vmbeam_record, moved, 112);

CHECK_SIZE(vmbeam_adopt, 16);
CHECK_FIELD(vmbeam_adopt, id, 8);

CHECK_SIZE(vmbeam_abandon, 24);
CHECK_FIELD(vmbeam_abandon, expected, 8);
CHECK_FIELD(vmbeam_abandon, cursor, 16);

static_assert(VMBEAM_IOC_TYPE == 0xbb);
static_assert(VMBEAM_IOCTL_INFO == 0xbb80);
static_assert(VMBEAM_IOCTL_BIND == 0xbb81);
static_assert(VMBEAM_IOCTL_ADD == 0xbb82);
static_assert(VMBEAM_IOCTL_CHECK == 0xbb83);
static_assert(VMBEAM_IOCTL_COMMIT == 0xbb84);
static_assert(VMBEAM_IOCTL_STATUS == 0xbb85);
static_assert(VMBEAM_IOCTL_ROLLBACK == 0xbb86);
static_assert(VMBEAM_IOCTL_CANCEL == 0xbb87);
static_assert(VMBEAM_IOCTL_RECORD == 0xbb88);
static_assert(VMBEAM_IOCTL_ADOPT == 0xbb89);
static_assert(VMBEAM_IOCTL_ABANDON == 0xbb8a);

CHECK_SIZE(xen_mem_swap_run, 24);
CHECK_FIELD(xen_mem_swap_run, gfn_b, 8);
CHECK_FIELD(xen_mem_swap_run, nr, 16);
CHECK_FIELD(xen_mem_swap_run, pad, 20);

CHECK_SIZE(xen_mem_swap_frames, 96);
CHECK_FIELD(xen_mem_swap_frames, domid_b, 2);
CHECK_FIELD(xen_mem_swap_frames, flags, 4);
CHECK_FIELD(xen_mem_swap_frames, nr_runs, 8);
CHECK_FIELD(xen_mem_swap_frames, version, 12);
CHECK_FIELD(xen_mem_swap_frames, runs, 16);
CHECK_FIELD(xen_mem_swap_frames, status, 24);
CHECK_FIELD(xen_mem_swap_frames, nr_pairs, 32);
CHECK_FIELD(xen_mem_swap_frames, done, 40);
CHECK_FIELD(xen_mem_swap_frames, id_a, 48);
CHECK_FIELD(xen_mem_swap_frames, id_b, 56);
CHECK_FIELD(xen_mem_swap_frames, stats, 64);
CHECK_FIELD(xen_mem_swap_frames, nr_stats, 72);
CHECK_FIELD(xen_mem_swap_frames, pad, 76);
CHECK_FIELD(xen_mem_swap_frames, to_a, 80);
CHECK_FIELD(xen_mem_swap_frames, to_b, 88);
