// SPDX-License-Identifier: GPL-2.0-only

//! How much of the heap a thread uses, and how much was at most.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;

/// The system's allocator, with a count.
struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;

thread_local! {
    /// Bytes that this thread took, without those that it gave back. Below 0 if others
    /// took them.
    static USED: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn grow(bytes: usize) {
    let used = USED.get() + bytes as isize;
    USED.set(used);
    PEAK.set(PEAK.get().max(used));
}

fn shrink(bytes: usize) {
    USED.set(USED.get() - bytes as isize);
}

// SAFETY: every call is passed on as it is, and the results as well.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps to the rules of this function, which are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may exist for a moment, when it has to move.
        grow(size);
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

/// What `work` gives, and the bytes by which this thread's heap grew at most meanwhile.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = USED.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before).max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_is_gone_already() {
        let (_, bytes) = peak(|| drop(std::hint::black_box(vec![1u8; 1 << 20])));
        assert_eq!(bytes, 1 << 20);
        let (_, bytes) = peak(|| {
            let other = std::thread::spawn(|| drop(std::hint::black_box(vec![1u8; 1 << 20])));
            other.join()
        });
        assert!(bytes < 1 << 16, "{bytes}");
    }
}
