//! Tests of `shared.rs`: nobody is woken under the lock.
//!
//! A waker in these tests looks whether the lock is free. The tests read no socket.

use super::super::head::Bounds;
use super::*;
use crate::stop::shutdown::Shutdown;
use crate::stream::connection::Connection;
use crate::stream::transport::Peer;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

/// Counts the times that it is woken while nobody has locked the wire.
#[derive(Default)]
struct Looks {
    wire: OnceLock<Arc<Wire>>,
    found_free: AtomicU32,
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        if self.wire.get().is_some_and(|wire| wire.0.try_lock().is_ok()) {
            self.found_free.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A waker may poll its task in place, and the task then locks the wire.
#[test]
fn a_reader_wakes_nobody_under_the_lock() {
    let head = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    let mut incoming = Incoming::behind(0);
    let read = incoming.fill(|room| {
        room[..head.len()].copy_from_slice(head);
        Poll::Ready(Ok(head.len()))
    });
    assert!(matches!(read, Poll::Ready(Ok(_))));
    let bounds = Bounds { head_bytes: 8192, headers: 100 };
    incoming.begin_message(&head::parse(head, bounds).unwrap().unwrap(), u64::MAX);
    let (_client, connection) = Connection::pair();
    let seat = Seat::new(Peer::Unknown, Shutdown::new().orders());
    let wire = Wire::new(connection.into_transport(None, None), incoming, seat.clone());
    let looks = Arc::new(Looks::default());
    let _ = looks.wire.set(wire.clone());
    let waker = Waker::from(looks.clone());
    let cx = &mut Context::from_waker(&waker);
    let is_woken = |times| looks.found_free.swap(0, Ordering::Relaxed) == times;

    // The connection's task has to send `100 Continue`.
    seat.register(&waker);
    assert!(wire.poll_read(0, cx, &mut [0; 8]).is_pending());
    assert!(is_woken(1));

    // The reader has had its turn.
    wire.lock().streak = TURN;
    assert!(wire.poll_read(0, cx, &mut [0; 8]).is_pending());
    assert!(is_woken(1));
}
