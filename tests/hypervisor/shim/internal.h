/* SPDX-License-Identifier: GPL-2.0-only */
/* Shared by the files of the shim. */
#ifndef VMBEAM_SHIM_INTERNAL_H
#define VMBEAM_SHIM_INTERNAL_H

#define SHIM_DOMAINS 8

#define _u(p) ((unsigned long)(p))

extern struct domain *shim_domains[SHIM_DOMAINS];
/* A gfn around which no 2M entry will do, as there memory is of two types. */
extern unsigned long shim_mixed;

unsigned long shim_event(unsigned int kind, unsigned long a, unsigned long b,
                         unsigned long c, unsigned long d);

#endif /* VMBEAM_SHIM_INTERNAL_H */
