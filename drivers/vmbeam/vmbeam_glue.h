/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Called from Rust, which declares them in rust/kernel/xen.rs.
 */
#ifndef __VMBEAM_GLUE_H__
#define __VMBEAM_GLUE_H__

int vmbeam_memory_op(unsigned int cmd, void *arg);
void vmbeam_cond_resched(void);

#endif /* __VMBEAM_GLUE_H__ */
