//! [`Buffer`]: storage for bytes on their way, which the thread lends.
//!
//! Invariant: a buffer has an owner only while bytes may be in it. A thread keeps a few buffers for
//! its next owners, so that a request neither allocates nor clears a buffer. No owner looks at
//! bytes that an earlier one left, because each owner knows how much it has filled.

use std::cell::RefCell;
use std::mem;
use std::ops::{Deref, DerefMut};

/// Bytes that go back to the thread when they are dropped.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

/// The size of a new buffer, in bytes. Most heads fit, and small bodies with them.
pub(crate) const SIZE: usize = 4 * 1024;

/// The number of spare buffers that a thread keeps.
const KEPT: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Buffer {
    /// Returns a buffer of [`SIZE`] bytes, which may hold anything.
    pub(crate) fn new() -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        Self(spare.unwrap_or_else(|| vec![0; SIZE]))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A buffer that has grown is not kept, because it would be large for ever.
        if self.0.len() == SIZE {
            let bytes = mem::take(&mut self.0);
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < KEPT {
                    spare.push(bytes);
                }
            });
        }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_lent_again_and_a_grown_one_is_not() {
        let mut first = Buffer::new();
        first[0] = 7;
        drop(first);
        let mut again = Buffer::new();
        assert_eq!((again.len(), again[0]), (SIZE, 7));
        again.resize(2 * SIZE, 0);
        drop(again);
        assert_eq!((Buffer::new().len(), Buffer::new()[0]), (SIZE, 0));
    }

    #[test]
    fn a_thread_keeps_a_few() {
        let many: Vec<_> = (0..2 * KEPT).map(|_| Buffer::new()).collect();
        drop(many);
        assert_eq!(SPARE.with(|spare| spare.borrow().len()), KEPT);
    }
}
