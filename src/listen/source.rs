//! [`Source`]: a stream of connections that the program itself provides for a listener.
//!
//! Invariant: a panic of the program's stream ends only the source. The listener above decides what
//! the server does then.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::Stream;

use crate::stream::connection::Connection;
use crate::stream::transport::{Peer, Transport};

/// A stream of connections.
pub(crate) struct Source {
    /// `None` once the stream has ended.
    stream: Option<Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>>,
    /// The line of the program that has made the stream a listener.
    place: &'static Location<'static>,
    /// The message of the stream's panic.
    failure: Option<String>,
}

impl Source {
    #[track_caller]
    pub(crate) fn new(stream: impl Stream<Item = io::Result<Connection>> + Send + 'static) -> Self {
        Self { stream: Some(Box::pin(stream)), place: Location::caller(), failure: None }
    }

    /// Returns the next connection, or wakes `cx` when there is one. After the end of the stream,
    /// always returns `Pending`.
    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Transport, Peer)>> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        match catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_next(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Some(connection))) => {
                return Poll::Ready(connection.map(|connection| {
                    let peer = connection.peer();
                    (connection.into_transport(None, None), peer)
                }));
            }
            Ok(Poll::Ready(None)) => {}
            Err(panic) => {
                let (place, told) = (self.place, message(&*panic));
                let failure = format!("the source of connections of {place} has panicked: {told}");
                self.failure = Some(failure);
            }
        }
        self.end();
        Poll::Pending
    }

    /// Returns the message of the stream's panic, if there was one.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn end(&mut self) {
        let stream = self.stream.take();
        // The panic hook has logged a panic of `drop`, and nothing is left that could fail.
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
