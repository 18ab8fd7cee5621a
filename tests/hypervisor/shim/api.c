/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the harness calls: making a machine and domains in it, looking at them,
 * and the hypercall. Everything enters through shim_enter(), which changes to a
 * stack of Xen's layout.
 */
#include <xen/mm.h>
#include <xen/pdx.h>
#include <xen/rangeset.h>
#include <xen/sched.h>

#include <asm/hap.h>
#include <asm/hvm/hvm.h>
#include <asm/hvm/vmx/vmcs.h>
#include <asm/p2m.h>
#include <asm/paging.h>

#include <public/hvm/params.h>
#include <public/memory.h>

#include "shim.h"
#include "internal.h"
#include "mm-locks.h"

#define API __attribute__((visibility("default")))

struct domain *shim_domains[SHIM_DOMAINS];
unsigned long (*shim_handler)(unsigned int kind, unsigned long a,
                              unsigned long b, unsigned long c,
                              unsigned long d);

extern char __per_cpu_start[], __per_cpu_data_end[];
extern char shim_traps_start[], shim_traps_end[];
extern const char shim_trap_names[];
extern const unsigned int shim_nr_traps;

/* The methods of the P2Ms, while ours are in their place. */
static typeof(((struct p2m_domain *)0)->set_entry) real_set_entry;
static typeof(((struct p2m_domain *)0)->set_leaves) real_set_leaves;
static struct page_info *(*real_alloc_page)(struct domain *d);
static void (*real_free_page)(struct domain *d, struct page_info *pg);

/* ---- The stack -------------------------------------------------------- */

static char stack[STACK_SIZE] __aligned(STACK_SIZE);

#define cpu_info() get_cpu_info_from_stack(_u(stack))

long shim_on_stack(void *top, long (*fn)(long a, long b, long c, long d),
                   long a, long b, long c, long d);

API long shim_enter(long (*fn)(long a, long b, long c, long d),
                    long a, long b, long c, long d);
API long shim_enter(long (*fn)(long a, long b, long c, long d),
                    long a, long b, long c, long d)
{
    unsigned long sp = _u(__builtin_frame_address(0));

    /* From within an event we are there already. */
    if ( sp - _u(stack) < STACK_SIZE )
        return fn(a, b, c, d);

    return shim_on_stack(cpu_info(), fn, a, b, c, d);
}

/* ---- Facts ------------------------------------------------------------ */

API void shim_layout(struct shim_layout *l);
API void shim_layout(struct shim_layout *l)
{
    *l = (struct shim_layout){
        .frames = FRAMETABLE_VIRT_START,
        .frames_size = FRAMETABLE_SIZE,
        .m2p = RDWR_MPT_VIRT_START,
        .m2p_size = MPT_VIRT_SIZE,
        .direct_map = DIRECTMAP_VIRT_START,
        .direct_map_size = PML4_ENTRY_BYTES,
        .traps = _u(shim_traps_start),
        .traps_size = shim_traps_end - shim_traps_start,
        .sizeof_page_info = sizeof(struct page_info),
        .count_info_mask = PGC_count_mask,
        .count_offset = offsetof(struct page_info, count_info),
        .list_offset = offsetof(struct page_info, list),
        .owner_offset = offsetof(struct page_info, v.inuse._domain),
        .page_allocated = PGC_allocated,
        .args_size = sizeof(struct xen_mem_swap_frames),
        .done_offset = offsetof(struct xen_mem_swap_frames, done),
        .version = XENMEM_SWAP_VERSION,
        .stats_offset = offsetof(struct xen_mem_swap_frames, stats),
        .nr_stats_offset = offsetof(struct xen_mem_swap_frames, nr_stats),
        .id_offset = offsetof(struct xen_mem_swap_frames, id_a),
        .nr_stats = XENMEM_SWAP_NR_STATS,
        .to_offset = offsetof(struct xen_mem_swap_frames, to_a),
    };
}

/* The name of what was called or read and isn't there. */
API const char *shim_trap_name(unsigned int nr);
API const char *shim_trap_name(unsigned int nr)
{
    const char *p = shim_trap_names;

    if ( nr >= shim_nr_traps )
        return NULL;
    while ( nr-- )
        p += strlen(p) + 1;

    return p;
}

/* ---- The machine ------------------------------------------------------ */

API long shim_init(long handler, long nr_frames, long ept, long percpu);
API long shim_init(long handler, long nr_frames, long ept, long percpu)
{
    struct cpu_info *info = cpu_info();
    unsigned long size = __per_cpu_data_end - __per_cpu_start;
    unsigned int cpu;

    shim_handler = (void *)handler;

    /* CPU 0 runs the caller, CPU n domain n, the last one belongs to nobody. */
    for ( cpu = 1; cpu <= SHIM_DOMAINS; cpu++ )
        __per_cpu_offset[cpu] = percpu + cpu * size - _u(__per_cpu_start);
    for ( cpu = 0; cpu <= SHIM_DOMAINS; cpu++ )
        __cpumask_set_cpu(cpu, &cpu_online_map);
    info->processor_id = 0;
    info->per_cpu_offset = 0;

    max_page = nr_frames;
    set_pdx_range(0, nr_frames);
    max_pdx = nr_frames;
    machine_to_phys_mapping_valid = true;

    hvm_funcs.caps.hap = true;
    hvm_funcs.caps.hap_superpage_2mb = true;
    hvm_funcs.caps.hap_superpage_1gb = true;
    if ( ept )
    {
        __set_bit(X86_FEATURE_VMX, boot_cpu_data.x86_capability);
        vmx_ept_vpid_cap = VMX_EPT_WALK_LENGTH_4_SUPPORTED |
                           VMX_EPT_MEMORY_TYPE_WB | VMX_EPT_AD_BIT |
                           VMX_EPT_SUPERPAGE_2MB | VMX_EPT_SUPERPAGE_1GB |
                           VMX_EPT_INVEPT_INSTRUCTION |
                           VMX_EPT_INVEPT_SINGLE_CONTEXT |
                           VMX_EPT_INVEPT_ALL_CONTEXT;
    }

    mmio_ro_ranges = rangeset_new(NULL, "r/o mmio ranges",
                                  RANGESETF_prettyprint_hex);

    return mmio_ro_ranges ? 0 : -ENOMEM;
}

static int cf_check
set_entry(struct p2m_domain *p2m, gfn_t gfn, mfn_t mfn, unsigned int order,
          p2m_type_t t, p2m_access_t a, int sve)
{
    int rc;

    ASSERT(p2m_locked_by_me(p2m));
    if ( p2m_is_hostp2m(p2m) &&
         shim_event(EV_SET_ENTRY, p2m->domain->domain_id, 0, 0, 0) )
        return -ENOMEM;
    rc = real_set_entry(p2m, gfn, mfn, order, t, a, sve);
    if ( !rc && p2m_is_hostp2m(p2m) )
        shim_event(EV_WRITE, p2m->domain->domain_id, gfn_x(gfn), mfn_x(mfn),
                   order | (t << 8));

    return rc;
}

static int cf_check
set_leaves(struct p2m_domain *p2m, const gfn_t *gfns, const mfn_t *mfns,
           unsigned int nr, p2m_type_t t, p2m_access_t a)
{
    unsigned int i;
    int rc;

    ASSERT(p2m_locked_by_me(p2m));
    if ( shim_event(EV_SET_LEAVES, p2m->domain->domain_id, 0, 0, 0) )
        return -ENOMEM;
    rc = real_set_leaves(p2m, gfns, mfns, nr, t, a);
    for ( i = 0; !rc && i < nr; i++ )
        shim_event(EV_WRITE, p2m->domain->domain_id, gfn_x(gfns[i]),
                   mfn_x(mfns ? mfns[i] : INVALID_MFN), t << 8);

    return rc;
}

static struct page_info *cf_check alloc_page(struct domain *d)
{
    if ( shim_event(EV_PTP_ALLOC, d->domain_id, 0, 0, 0) )
        return NULL;

    return real_alloc_page(d);
}

static void cf_check free_page(struct domain *d, struct page_info *pg)
{
    shim_event(EV_PTP_FREE, d->domain_id, mfn_x(page_to_mfn(pg)), 0, 0);
    real_free_page(d, pg);
}

API long shim_domain_create(long id, long flags, long pool, long observe);
API long shim_domain_create(long id, long flags, long pool, long observe)
{
    struct domain *d;
    struct vcpu *v, **vcpus;
    struct p2m_domain *p2m;
    int rc;

    d = alloc_xenheap_pages(get_order_from_bytes(sizeof(*d)), 0);
    v = alloc_xenheap_pages(get_order_from_bytes(sizeof(*v)), 0);
    vcpus = xzalloc_array(struct vcpu *, 1);

    d->domain_id = id;
    d->unique_id = SHIM_UNIQUE_ID + id;
    d->max_vcpus = 1;
    d->vcpu = vcpus;
    d->max_pages = UINT_MAX;
    atomic_set(&d->refcnt, 1);
    d->is_privileged = flags & SHIM_PRIVILEGED;
    d->options = flags & SHIM_PV ? 0 : XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap;
    if ( flags & SHIM_NESTED )
        d->options |= XEN_DOMCTL_CDF_nested_virt;
    rspin_lock_init(&d->domain_lock);
    rspin_lock_init(&d->page_alloc_lock);
    INIT_PAGE_LIST_HEAD(&d->page_list);
    INIT_PAGE_LIST_HEAD(&d->extra_page_list);
    INIT_PAGE_LIST_HEAD(&d->xenpage_list);
    INIT_LIST_HEAD(&d->pdev_list);
    rangeset_domain_initialise(d);
    d->arch.hvm.vmx.exec_sp = true;
    if ( !zalloc_cpumask_var(&d->dirty_cpumask) )
        return -ENOMEM;
    __cpumask_set_cpu(id, d->dirty_cpumask);

    v->domain = d;
    v->processor = id;
    vcpus[0] = v;
    shim_domains[id] = d;

    if ( !id )
    {
        hardware_domain = d;
        set_current(v);
    }

    if ( flags & SHIM_PV )
        return 0;

    d->arch.hvm.params = xzalloc_array(uint64_t, HVM_NR_PARAMS);
    if ( !d->arch.hvm.params )
        return -ENOMEM;
    d->arch.hvm.params[HVM_PARAM_ALTP2M] = flags & SHIM_ALTP2M
                                           ? XEN_ALTP2M_mixed
                                           : XEN_ALTP2M_disabled;

    mm_lock_init(&d->arch.nested_p2m_lock);
    rc = paging_domain_init(d);
    if ( rc )
        return rc;
    p2m = p2m_get_hostp2m(d);

    paging_lock(d);
    rc = hap_set_allocation(d, pool, NULL);
    paging_unlock(d);

    rc = rc ?: hap_enable(d, PG_external | PG_translate | PG_refcounts);
    if ( rc )
        return rc;
    paging_vcpu_init(v);
    /* As construct_vmcs() does it. */
    if ( cpu_has_vmx )
        p2m->ept.mfn = pagetable_get_pfn(p2m_get_pagetable(p2m));

    if ( observe )
    {
        real_set_entry = p2m->set_entry;
        p2m->set_entry = set_entry;
        real_set_leaves = p2m->set_leaves;
        p2m->set_leaves = set_leaves;
        real_alloc_page = d->arch.paging.alloc_page;
        d->arch.paging.alloc_page = alloc_page;
        real_free_page = d->arch.paging.free_page;
        d->arch.paging.free_page = free_page;
    }

    return 0;
}

/* ---- Memory of a domain ----------------------------------------------- */

static int write_entry(struct domain *d, gfn_t gfn, mfn_t mfn,
                       unsigned int order, p2m_type_t t, p2m_access_t a)
{
    struct p2m_domain *p2m = p2m_get_hostp2m(d);
    int rc;

    p2m_lock(p2m);
    rc = p2m_set_entry(p2m, gfn, mfn, order, t, a);
    p2m_unlock(p2m);

    return rc;
}

/* Give frames to a domain and map them, as the toolstack has it done. */
API long shim_populate(long id, long gfn, long mfn, long order);
API long shim_populate(long id, long gfn, long mfn, long order)
{
    struct domain *d = shim_domains[id];
    unsigned long i;

    nrspin_lock(&d->page_alloc_lock);
    for ( i = 0; i < 1UL << order; i++ )
    {
        struct page_info *pg = mfn_to_page(_mfn(mfn + i));

        memset(pg, 0, sizeof(*pg));
        page_set_owner(pg, d);
        pg->count_info = PGC_allocated | 1;
        page_list_add_tail(pg, &d->page_list);
    }
    if ( domain_adjust_tot_pages(d, 1UL << order) == 1UL << order )
        get_knownalive_domain(d);
    nrspin_unlock(&d->page_alloc_lock);

    for ( i = 0; i < 1UL << order; i++ )
        set_gpfn_from_mfn(mfn + i, gfn + i);

    return write_entry(d, _gfn(gfn), _mfn(mfn), order, p2m_ram_rw,
                       p2m_get_hostp2m(d)->default_access);
}

/* Write an entry of another kind: a hole, a type, an access. */
API long shim_write(long id, long gfn, long mfn, long how);
API long shim_write(long id, long gfn, long mfn, long how)
{
    return write_entry(shim_domains[id], _gfn(gfn), _mfn(mfn), how & 0xff,
                       (how >> 8) & 0xff, (how >> 16) & 0xff);
}

API long shim_lookup(long id, long gfn, long entry, long unused);
API long shim_lookup(long id, long gfn, long entry, long unused)
{
    struct p2m_domain *p2m = p2m_get_hostp2m(shim_domains[id]);
    struct shim_entry *e = (void *)entry;
    p2m_type_t t;
    p2m_access_t a;
    unsigned int order;
    mfn_t mfn = p2m->get_entry(p2m, _gfn(gfn), &t, &a, 0, &order, NULL);

    *e = (struct shim_entry){
        .mfn = mfn_x(mfn), .type = t, .order = order, .access = a,
    };

    return 0;
}

API long shim_frame(long mfn, long frame, long unused1, long unused2);
API long shim_frame(long mfn, long frame, long unused1, long unused2)
{
    const struct page_info *pg = mfn_to_page(_mfn(mfn));
    const struct domain *d = page_get_owner(pg);
    struct shim_frame *f = (void *)frame;

    *f = (struct shim_frame){
        .count_info = pg->count_info,
        .type_info = pg->u.inuse.type_info,
        .gpfn = get_gpfn_from_mfn(mfn),
        .owner = d ? d->domain_id : SHIM_NO_DOMAIN,
    };

    return 0;
}

/* The frames on the list of a domain; their number. */
API long shim_list(long id, long out, long max, long unused);
API long shim_list(long id, long out, long max, long unused)
{
    const struct page_info *pg;
    unsigned long *mfns = (void *)out;
    long nr = 0;

    page_list_for_each ( pg, &shim_domains[id]->page_list )
    {
        if ( nr < max )
            mfns[nr] = mfn_x(page_to_mfn(pg));
        if ( nr++ > max )
            break;
    }

    return nr;
}

/* ---- What others do to a frame or a domain ---------------------------- */

API long shim_get_page(long mfn, long id, long unused1, long unused2);
API long shim_get_page(long mfn, long id, long unused1, long unused2)
{
    return get_page(mfn_to_page(_mfn(mfn)), shim_domains[id]);
}

API long shim_put_page(long mfn, long unused1, long unused2, long unused3);
API long shim_put_page(long mfn, long unused1, long unused2, long unused3)
{
    put_page(mfn_to_page(_mfn(mfn)));

    return 0;
}

API long shim_set_special(long mfn, long on, long unused1, long unused2);
API long shim_set_special(long mfn, long on, long unused1, long unused2)
{
    struct page_info *pg = mfn_to_page(_mfn(mfn));

    if ( on )
        pg->count_info |= PGC_xen_heap;
    else
        pg->count_info &= ~PGC_xen_heap;

    return 0;
}

API long shim_set_owner(long mfn, long id, long unused1, long unused2);
API long shim_set_owner(long mfn, long id, long unused1, long unused2)
{
    page_set_owner(mfn_to_page(_mfn(mfn)), shim_domains[id]);

    return 0;
}

/* Assign a device to a domain. */
API long shim_set_device(long id, long on, long unused1, long unused2);
API long shim_set_device(long id, long on, long unused1, long unused2)
{
    static LIST_HEAD(device);

    if ( on )
        list_add(&device, &shim_domains[id]->pdev_list);
    else
        list_del(&device);

    return 0;
}

/*
 * Let a domain have an IOMMU, whose tables are the P2M's own with EPT.  With
 * 'later' it's put off to flush its TLB, as xenmem_add_to_physmap() does it.
 */
API long shim_set_iommu(long id, long on, long later, long unused1);
API long shim_set_iommu(long id, long on, long later, long unused1)
{
    struct domain *d = shim_domains[id];

    if ( on )
        d->options |= XEN_DOMCTL_CDF_iommu;
    else
        d->options &= ~XEN_DOMCTL_CDF_iommu;
    dom_iommu(d)->hap_pt_share = on && cpu_has_vmx;
    dom_iommu(d)->need_sync = on && !cpu_has_vmx;
    this_cpu(iommu_dont_flush_iotlb) = later;

    return 0;
}

/*
 * Let memory of a domain be of types for which no 2M entry will do.  That is so
 * only for one that was given memory of a device.
 */
API long shim_mix_types(long id, long gfn, long unused1, long unused2);
API long shim_mix_types(long id, long gfn, long unused1, long unused2)
{
    struct domain *d = shim_domains[id];
    int rc;

    if ( !d->iomem_caps )
        d->iomem_caps = rangeset_new(d, "I/O Memory", RANGESETF_prettyprint_hex);
    rc = gfn == ~0L ? rangeset_remove_singleton(d->iomem_caps, 0)
                    : rangeset_add_singleton(d->iomem_caps, 0);
    shim_mixed = gfn;
    p2m_memory_type_changed(d);

    return rc;
}

API long shim_set_dying(long id, long on, long unused1, long unused2);
API long shim_set_dying(long id, long on, long unused1, long unused2)
{
    shim_domains[id]->is_dying = on ? DOMDYING_dying : DOMDYING_alive;

    return 0;
}

API long shim_log_dirty(long id, long on, long unused1, long unused2);
API long shim_log_dirty(long id, long on, long unused1, long unused2)
{
    struct domain *d = shim_domains[id];
    const struct log_dirty_ops *ops = d->arch.paging.log_dirty.ops;

    return on ? ops->enable(d) : ops->disable(d);
}

/* Which of up to 64 gfns a device model would draw again; none: no tracking. */
API long shim_track_vram(long id, long gfn, long nr, long bitmap);
API long shim_track_vram(long id, long gfn, long nr, long bitmap)
{
    XEN_GUEST_HANDLE(void) handle;

    set_xen_guest_handle(handle, (void *)bitmap);

    return hap_track_dirty_vram(shim_domains[id], gfn, nr, handle);
}

API long shim_dirty_count(long id, long unused1, long unused2, long unused3);
API long shim_dirty_count(long id, long unused1, long unused2, long unused3)
{
    return shim_domains[id]->arch.paging.log_dirty.dirty_count;
}

/* Make an entry in a nested guest's P2M, as a fault of that guest does. */
API long shim_nested_write(long id, long which, long gfn, long mfn);
API long shim_nested_write(long id, long which, long gfn, long mfn)
{
    struct p2m_domain *p2m = shim_domains[id]->arch.nested_p2m[which];
    int rc;

    p2m_lock(p2m);
    /* In use, for the nested guest whose own tables are there. */
    p2m->np2m_base = PAGE_SIZE;
    rc = p2m_set_entry(p2m, _gfn(gfn), _mfn(mfn), PAGE_ORDER_4K, p2m_ram_rw,
                       p2m_access_rwx);
    p2m_unlock(p2m);

    return rc;
}

API long shim_nested_lookup(long id, long which, long gfn, long unused);
API long shim_nested_lookup(long id, long which, long gfn, long unused)
{
    struct p2m_domain *p2m = shim_domains[id]->arch.nested_p2m[which];
    p2m_type_t t;
    p2m_access_t a;

    return mfn_x(p2m->get_entry(p2m, _gfn(gfn), &t, &a, 0, NULL, NULL));
}

API long shim_locks(long id, long locks, long unused1, long unused2);
API long shim_locks(long id, long locks, long unused1, long unused2)
{
    struct domain *d = shim_domains[id];

    *(struct shim_locks *)locks = (struct shim_locks){
        .domain = _u(&d->domain_lock),
        .page_alloc = _u(&d->page_alloc_lock),
        .pod = _u(&p2m_get_hostp2m(d)->pod.lock.lock),
        .paging = _u(&d->arch.paging.lock.lock),
        .nested_p2m = _u(&d->arch.nested_p2m_lock.lock),
    };

    return 0;
}

/* Is this domain's P2M locked? For the end of a call and for events. */
API long shim_p2m_locked(long id, long unused1, long unused2, long unused3);
API long shim_p2m_locked(long id, long unused1, long unused2, long unused3)
{
    return p2m_locked_by_me(p2m_get_hostp2m(shim_domains[id]));
}

/* Anything that a call must not leave behind. */
API long shim_residue(long id, long unused1, long unused2, long unused3);
API long shim_residue(long id, long unused1, long unused2, long unused3)
{
    const struct domain *d = shim_domains[id];
    const struct p2m_domain *p2m = p2m_get_hostp2m(d);

    return p2m->lock.recurse_count || p2m->lock.lock.writer_activating ||
           p2m->defer_flush || p2m->need_flush || p2m->defer_nested_flush ||
           this_cpu(mm_lock_level) || this_cpu(rcu_lock_cnt) ||
           preempt_count() || atomic_read(&d->pause_count);
}

/* ---- The hypercall ---------------------------------------------------- */

API long shim_memory_op(long op, long arg, long unused1, long unused2);
API long shim_memory_op(long op, long arg, long unused1, long unused2)
{
    XEN_GUEST_HANDLE_PARAM(void) handle;

    set_xen_guest_handle(handle, (void *)arg);

    return arch_memory_op(op, handle);
}
