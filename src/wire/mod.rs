//! One HTTP/1.1 message at a time, in front of async-h1.
//!
//! This folder reads and writes heads, and gives async-h1 one clean message from memory (rules W1,
//! W2). [`Gate`] is the way in. The folder sends only what it is given, and does not decide when a
//! connection stops.

pub(crate) mod asked;
pub(crate) mod body;
pub(crate) mod buffer;
pub(crate) mod fault;
mod field;
mod gate;
pub(crate) mod head;
mod head_fields;
mod idle;
mod incoming;
mod outgoing;
mod request;
mod request_line;
pub(crate) mod response;
mod response_head;
mod shared;
mod target;
mod trailers;
mod upgraded;
mod watch;

// The generated tests of `head`, `target`, `body` and `request`, which see private modules.
#[cfg(test)]
#[path = "../../tests/properties/differential.rs"]
mod differential;
#[cfg(test)]
#[path = "../../tests/properties/mod.rs"]
mod properties;
#[cfg(test)]
#[path = "../../tests/properties/requests.rs"]
mod requests;

pub(crate) use gate::{Begun, Broken, Gate};
pub(crate) use idle::{Idle, Movable};
pub(crate) use incoming::{Incoming, Rest};
pub(crate) use watch::OpenExchange;
