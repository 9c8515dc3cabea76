//! Counts what one thread allocates, so that a test can say how much a decoder took for the bytes that it was given. Linked
//! into whatever test names this crate. Changes nothing about how memory is allocated.

#![allow(unsafe_code)] // An allocator is unsafe by its trait; this one hands everything on to the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Bytes that this thread allocated and nobody freed on it since. Below zero when it freed what others allocated.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn took(bytes: usize) {
    // A thread that ends has no counters any more, and nobody reads them.
    let _ = LIVE.try_with(|live| {
        live.set(live.get().wrapping_add(bytes as isize));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

fn gave(bytes: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub(bytes as isize)));
}

// SAFETY: every call goes to the system's allocator with the very same arguments, and its answer comes back unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may lie side by side for a moment.
        took(size);
        gave(layout.size());
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What `work` gives, and how many bytes this thread held at most while it ran, beyond what it held before.
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let done = work();
    (
        done,
        usize::try_from(PEAK.get().wrapping_sub(before)).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_moment_counts_and_not_what_is_left() {
        let (kept, peak) = peak_of(|| {
            drop(vec![1_u8; 100_000]);
            vec![2_u8; 1_000]
        });
        assert_eq!(kept.len(), 1_000);
        assert!((100_000..101_000).contains(&peak), "{peak}");
        let ((), nothing) = peak_of(|| drop(kept));
        assert_eq!(nothing, 0);
    }
}
