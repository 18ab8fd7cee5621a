/* SPDX-License-Identifier: GPL-2.0-only */
/* What the harness calls that concerns populate-on-demand and limits of memory. */
#include <xen/mm.h>
#include <xen/sched.h>

#include <asm/p2m.h>
#include <asm/paging.h>

#include "shim.h"
#include "internal.h"
#include "mm-locks.h"

#define API __attribute__((visibility("default")))

/* Make entries populate-on-demand, as the toolstack has it done. */
API long shim_pod_mark(long id, long gfn, long order, long unused);
API long shim_pod_mark(long id, long gfn, long order, long unused)
{
    return guest_physmap_mark_populate_on_demand(shim_domains[id], gfn, order);
}

/* XENMEM_set_pod_target: frames for the cache. */
API long shim_pod_target(long id, long target, long unused1, long unused2);
API long shim_pod_target(long id, long target, long unused1, long unused2)
{
    int rc;

    do {
        rc = p2m_pod_set_mem_target(shim_domains[id], target);
    } while ( rc == -ERESTART );

    return rc;
}

API long shim_pod_state(long id, long state, long unused1, long unused2);
API long shim_pod_state(long id, long state, long unused1, long unused2)
{
    const struct domain *d = shim_domains[id];
    const struct p2m_domain *p2m = p2m_get_hostp2m(d);

    *(struct shim_pod *)state = (struct shim_pod){
        .tot_pages = d->tot_pages,
        .cache = p2m->pod.count,
        .entries = p2m->pod.entry_count,
        .max_guest = gfn_x(p2m->pod.max_guest),
        .claim = d->outstanding_pages,
        .references = atomic_read(&d->refcnt),
    };

    return 0;
}

/* A vCPU touches a gfn, and what is there is populated. */
API long shim_pod_touch(long id, long gfn, long unused1, long unused2);
API long shim_pod_touch(long id, long gfn, long unused1, long unused2)
{
    struct domain *d = shim_domains[id];
    p2m_type_t t;
    mfn_t mfn = get_gfn(d, gfn, &t);

    put_gfn(d, gfn);

    return mfn_x(mfn);
}

/* The balloon driver gives a gfn back; what of it populate-on-demand takes. */
API long shim_pod_decrease(long id, long gfn, long order, long unused);
API long shim_pod_decrease(long id, long gfn, long order, long unused)
{
    return p2m_pod_decrease_reservation(shim_domains[id], _gfn(gfn), order);
}

/* Where it is noted what a domain claims: uint32_t. */
API long shim_claim_field(long id, long unused1, long unused2, long unused3);
API long shim_claim_field(long id, long unused1, long unused2, long unused3)
{
    return _u(&shim_domains[id]->outstanding_pages);
}

API long shim_set_limit(long id, long max_pages, long claim, long unused);
API long shim_set_limit(long id, long max_pages, long claim, long unused)
{
    shim_domains[id]->max_pages = max_pages;
    shim_domains[id]->outstanding_pages = claim;

    return 0;
}
