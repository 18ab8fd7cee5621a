/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The linker sends what Xen's files call as _spin_lock() and so on to
 * __wrap__spin_lock(). Tell the harness, then call the real one. Only in the
 * library that is tested, not in the one that is timed.
 */
#include <xen/spinlock.h>

#include "shim.h"
#include "internal.h"

#define WRAP_LOCK(name, type)                                   \
void __real_ ## name(type *lock);                               \
void __wrap_ ## name(type *lock);                               \
void __wrap_ ## name(type *lock)                                \
{                                                               \
    shim_event(EV_LOCK, _u(lock), 0, 0, 0);                     \
    __real_ ## name(lock);                                      \
}

#define WRAP_UNLOCK(name, type)                                 \
void __real_ ## name(type *lock);                               \
void __wrap_ ## name(type *lock);                               \
void __wrap_ ## name(type *lock)                                \
{                                                               \
    __real_ ## name(lock);                                      \
    shim_event(EV_UNLOCK, _u(lock), 0, 0, 0);                   \
}

WRAP_LOCK(_spin_lock, spinlock_t)
WRAP_UNLOCK(_spin_unlock, spinlock_t)
WRAP_LOCK(_rspin_lock, rspinlock_t)
WRAP_UNLOCK(_rspin_unlock, rspinlock_t)
WRAP_LOCK(_nrspin_lock, rspinlock_t)
WRAP_UNLOCK(_nrspin_unlock, rspinlock_t)
