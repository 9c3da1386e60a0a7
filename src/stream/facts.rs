//! [`Facts`]: the facts that a source or a wrapper tells about a connection.
//!
//! Invariant: a fact never changes once the connection is served, so a handler can keep a reference
//! to it. Looks into no value: the program's handler asks for a value by its type.

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;

/// The facts that the program tells of a connection.
#[derive(Default)]
pub(crate) struct Facts {
    /// Set if the client speaks HTTPS.
    pub(crate) is_https: bool,
    /// The program's values, each of a type of its own. The code of this crate never looks into a
    /// value, so a panic cannot leave one half changed.
    values: AssertUnwindSafe<Vec<Box<dyn Any + Send + Sync>>>,
}

impl Facts {
    /// Adds a value, in the place of an earlier one of the same type.
    pub(crate) fn add<T: Send + Sync + 'static>(&mut self, value: T) {
        self.values.retain(|other| !other.is::<T>());
        self.values.push(Box::new(value));
    }

    pub(crate) fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.values.iter().find_map(|value| value.downcast_ref())
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.is_https && self.values.is_empty()
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts")
            .field("is_https", &self.is_https)
            .field("values", &self.values.len())
            .finish()
    }
}
