/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What stands for common/page_alloc.c: frames, and the counts of a domain that
 * go with them. Frames that domains have had can be had again.
 */
#include <xen/mm.h>
#include <xen/sched.h>

#include "shim.h"
#include "internal.h"

/* Frames are handed out from the end of memory downwards. */
static unsigned long next_frame;
static PAGE_LIST_HEAD(freed);

unsigned long domain_adjust_tot_pages(struct domain *d, long pages)
{
    ASSERT(rspin_is_locked(&d->page_alloc_lock));
    d->tot_pages += pages;

    return d->tot_pages;
}

void domain_redeem_claim(struct domain *d, unsigned long pages)
{
    ASSERT(rspin_is_locked(&d->page_alloc_lock));
    d->outstanding_pages -= min(pages, d->outstanding_pages + 0UL);
}

int assign_pages(struct page_info *pg, unsigned int nr, struct domain *d,
                 unsigned int memflags)
{
    unsigned int i;
    int rc = 0;

    nrspin_lock(&d->page_alloc_lock);
    if ( d->is_dying )
        rc = -EINVAL;
    else if ( !(memflags & MEMF_no_refcount) )
    {
        if ( domain_tot_pages(d) + nr > d->max_pages )
            rc = -E2BIG;
        else if ( domain_adjust_tot_pages(d, nr) == nr )
            get_knownalive_domain(d);
    }

    for ( i = 0; !rc && i < nr; i++ )
    {
        BUG_ON(page_get_owner(&pg[i]) || pg[i].count_info);
        page_set_owner(&pg[i], d);
        pg[i].count_info = PGC_allocated | 1;
        page_list_add_tail(&pg[i], &d->page_list);
    }
    nrspin_unlock(&d->page_alloc_lock);

    return rc;
}

int assign_page(struct page_info *pg, unsigned int order, struct domain *d,
                unsigned int memflags)
{
    return assign_pages(pg, 1U << order, d, memflags);
}

struct page_info *alloc_domheap_pages(struct domain *d, unsigned int order,
                                      unsigned int memflags)
{
    struct page_info *pg = NULL;

    if ( d && shim_event(EV_FRAME_ALLOC, d->domain_id, 0, 0, 0) )
        return NULL;

    if ( !order )
        pg = page_list_remove_head(&freed);
    if ( !pg )
    {
        if ( !next_frame )
            next_frame = max_page;
        next_frame = (next_frame - (1UL << order)) & ~((1UL << order) - 1);
        pg = mfn_to_page(_mfn(next_frame));
    }
    memset(page_to_virt(pg), 0, PAGE_SIZE << order);

    if ( d && !(memflags & MEMF_no_owner) &&
         assign_page(pg, order, d, memflags) )
        BUG();

    return pg;
}

void free_domheap_pages(struct page_info *pg, unsigned int order)
{
    struct domain *d = page_get_owner(pg);
    unsigned int i;

    if ( d )
        nrspin_lock(&d->page_alloc_lock);

    for ( i = 0; i < 1U << order; i++ )
    {
        shim_event(EV_FRAME_FREED, mfn_x(page_to_mfn(pg + i)),
                   d ? d->domain_id : SHIM_NO_DOMAIN, 0, 0);
        if ( d )
            page_list_del(pg + i, &d->page_list);
        memset(pg + i, 0, sizeof(*pg));
        page_list_add_tail(pg + i, &freed);
    }

    if ( d )
    {
        bool drop = !domain_adjust_tot_pages(d, -(1L << order));

        nrspin_unlock(&d->page_alloc_lock);
        if ( drop )
            put_domain(d);
    }
}

void *alloc_xenheap_pages(unsigned int order, unsigned int memflags)
{
    return page_to_virt(alloc_domheap_pages(NULL, order, memflags));
}

/* The last reference of a domain is never dropped here. */
void domain_destroy(struct domain *d)
{
    shim_bug("domain_destroy()", __FILE__, __LINE__);
}
