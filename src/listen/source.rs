//! [`Source`]: a stream of connections that the program itself provides for a listener.
//!
//! Invariant: a panic of the program's stream ends the source and nothing else. The listener
//! decides what follows from that.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::Stream;

use crate::stream::connection::Connection;
use crate::stream::facts::Facts;
use crate::stream::transport::{Peer, Transport};

/// An accepted connection.
pub(crate) struct Accepted {
    pub(crate) transport: Transport,
    pub(crate) peer: Peer,
    /// The facts that the source gives about the connection.
    pub(crate) facts: Facts,
}

/// A stream of connections.
pub(crate) struct Source {
    /// The stream, or `None` after its end.
    stream: Option<Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>>,
    /// The line of the program that has made a listener of the stream.
    place: &'static Location<'static>,
}

impl Source {
    #[track_caller]
    pub(crate) fn new(stream: impl Stream<Item = io::Result<Connection>> + Send + 'static) -> Self {
        Self { stream: Some(Box::pin(stream)), place: Location::caller() }
    }

    /// Returns the next connection, or wakes `cx` when there is one. After the end of the stream,
    /// always returns `Pending`.
    ///
    /// # Errors
    ///
    /// Returns the message of the stream's panic. The caller then drops the source.
    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Result<Poll<io::Result<Accepted>>, String> {
        let Some(stream) = &mut self.stream else { return Ok(Poll::Pending) };
        match catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_next(cx))) {
            Ok(Poll::Pending) => Ok(Poll::Pending),
            Ok(Poll::Ready(Some(connection))) => {
                Ok(Poll::Ready(connection.map(|mut connection| {
                    let (peer, facts) = (connection.peer(), connection.take_facts());
                    Accepted { transport: connection.into_transport(None, None), peer, facts }
                })))
            }
            Ok(Poll::Ready(None)) => {
                self.end();
                Ok(Poll::Pending)
            }
            Err(panic) => {
                let (place, told) = (self.place, message(&*panic));
                Err(format!("the source of connections of {place} has panicked: {told}"))
            }
        }
    }

    fn end(&mut self) {
        let stream = self.stream.take();
        // If the drop panics, too, the panic hook has reported that, and nothing else depends on
        // it.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
