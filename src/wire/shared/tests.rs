//! Tests of `shared.rs`: nobody is woken under the lock, and no stream is dropped under the lock.
//! Reports give up on the lock, but a connection's own task does not.
//!
//! A waker in these tests looks whether the lock is free. The tests read no socket.

use super::super::head::Bounds;
use super::super::{Begun, Gate};
use super::*;
use crate::stop::shutdown::Shutdown;
use crate::stream::connection::Connection;
use crate::stream::transport::Peer;
use futures_lite::future::block_on;
use futures_lite::{AsyncRead, AsyncWrite};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, mpsc};
use std::task::Wake;

const BOUNDS: Bounds = Bounds { head_bytes: 8192, headers: 100 };

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
    incoming.begin_message(&head::parse(head, BOUNDS).unwrap().unwrap(), u64::MAX);
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

/// A stream may wake a task when it is dropped, as a pipe wakes the reader at its other end.
#[test]
fn a_stream_is_not_dropped_under_the_lock() {
    for end in [End::Close, End::Reset, End::ShutDown] {
        let (mut client, connection) = Connection::pair();
        let seat = Seat::new(Peer::Unknown, Shutdown::new().orders());
        let transport = connection.into_transport(None, None);
        let wire = Wire::new(transport, Incoming::behind(0), seat);
        let looks = Arc::new(Looks::default());
        let _ = looks.wire.set(wire.clone());
        let waker = Waker::from(looks.clone());
        let cx = &mut Context::from_waker(&waker);
        assert!(Pin::new(&mut client).poll_read(cx, &mut [0; 8]).is_pending());

        wire.end(end);
        assert_eq!(looks.found_free.load(Ordering::Relaxed), 1, "{end:?}");
        assert!(Pin::new(&mut client).poll_read(cx, &mut [0; 8]).is_ready());
    }
}

/// A stream that blocks the thread of each reader for longer than a report waits.
struct Blocks {
    entered: mpsc::Sender<()>,
}

impl AsyncRead for Blocks {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.entered.send(()).unwrap();
        thread::sleep(10 * SOON);
        Poll::Pending
    }
}

impl AsyncWrite for Blocks {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        unreachable!("nothing is sent")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        unreachable!("nothing is sent")
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        unreachable!("nothing is sent")
    }
}

/// The response to a refused request has no body if the method is HEAD, so the connection's own
/// task has to find out the method (RFC 9110 section 9.3.2).
#[test]
fn the_task_of_a_connection_waits_for_the_name_of_its_request() {
    let (entered, enters) = mpsc::channel();
    let transport = Connection::new(Blocks { entered }).into_transport(None, None);
    let head = b"HEAD /page HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n";
    let seat = Seat::new(Peer::Unknown, Shutdown::new().orders());
    let mut gate = Gate::new(transport, Incoming::with(head), seat, BOUNDS);
    assert!(matches!(block_on(gate.head(u64::MAX)), Ok(Begun::Head(_))));

    // The handler reads the body on another thread.
    let (wire, key) = (gate.wire.clone(), gate.wire.lock().body_key);
    let reader = thread::spawn(move || {
        let cx = &mut Context::from_waker(Waker::noop());
        wire.poll_read(key, cx, &mut [0; 9]).is_pending()
    });
    enters.recv().unwrap();
    assert_eq!(gate.request_line(), ("HEAD".to_owned(), "/page".to_owned()));
    assert!(reader.join().unwrap());
}
