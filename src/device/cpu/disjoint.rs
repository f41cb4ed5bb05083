//! A slice that several tasks write at once, each a part of its own.
//!
//! [`super::threads`] hands out task numbers, not slices; where the parts are not simple chunks
//! (planes of pages, heads of rows) the borrow checker cannot see that they never meet.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice, cut by its users.
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose parts are used by one thread at a time (`Disjoint::part`).
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above; sharing it gives no access without the promise that `part` asks for.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for as long as the parts are in use.
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// One part.
    ///
    /// # Safety
    /// While the result lives, no other live part may overlap `range`.
    ///
    /// # Panics
    /// If `range` is not inside the slice.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "exclusiveness is the caller's promise")]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part outside its slice");
        // SAFETY: valid and alive: inside a slice borrowed for `'a`; exclusive: promised above.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
