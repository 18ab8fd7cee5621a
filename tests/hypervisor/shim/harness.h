/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Included by force, right after Xen's config.h, into every Xen file that the
 * harness compiles. Nothing else about these files is changed.
 */
#ifndef VMBEAM_HARNESS_H
#define VMBEAM_HARNESS_H

/*
 * Xen lives in the upper half of the address space, a program in the lower.
 * Move all slots of Xen's fixed layout (M2P, frame table, direct map) there:
 * slot 256, where it begins, becomes slot 64. All addresses and the distances
 * between them follow from this macro.
 */
#undef PML4_ADDR
#define PML4_ADDR(slot) ((_AC(slot, UL) - 256 + 64) << PML4_ENTRY_BITS)

#ifndef __ASSEMBLY__

/* Report a failed assertion with its text; there is no trap handler here. */
void shim_bug(const char *what, const char *file, int line)
	__attribute__((__noreturn__));

#define BUG() shim_bug("BUG", __FILE__, __LINE__)
#define WARN() shim_bug("WARN", __FILE__, __LINE__)
#define assert_failed(msg) shim_bug("ASSERT(" msg ")", __FILE__, __LINE__)

#endif /* __ASSEMBLY__ */

#endif /* VMBEAM_HARNESS_H */
