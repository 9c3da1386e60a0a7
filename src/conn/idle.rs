//! An idle connection: waits for a request to begin.
//!
//! Invariant: a byte that is already in the socket wins over every reason to close but an abort
//! (rules S6, S7, S13), and the connection holds only its transport while nothing has arrived (rule
//! W12). Before each step, the connection asks its seat what the server wants. Reads no head.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use super::{Before, Conn};
use crate::stop::activity::Doing;
use crate::stop::orders::Order;
use crate::wire::{Idle, Incoming};

/// The next step of an idle connection.
pub(super) enum FirstBytes {
    /// A request has begun to arrive.
    Request(Incoming),
    /// The connection goes to the successor, with whatever is in its socket.
    Leave,
    /// The connection has to close.
    Close,
}

impl FirstBytes {
    fn of(read: io::Result<Option<Incoming>>) -> Self {
        read.ok().flatten().map_or(Self::Close, Self::Request)
    }
}

/// The next action by which an idle connection finds out whether a request has begun.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The connection lets other tasks run, and the client may send its request meanwhile.
    GiveWay,
    /// The connection reads, and registers for no event (rule W17).
    Look,
    /// The connection waits for an event.
    Wait,
    /// The connection reads, because there may have been an event.
    Read,
}

impl Conn<'_> {
    /// Waits for a request to begin.
    ///
    /// A byte that is already in the socket wins over every reason to close but an abort (rules S6,
    /// S7, S13).
    pub(super) async fn first_bytes(&mut self) -> FirstBytes {
        let Self { seat, idle, before, looks, .. } = self;
        let mut step = match before {
            // Most new clients have sent their request by now.
            Before::Accept => Step::Read,
            // Only a read can tell whether a wrapped stream holds something.
            _ if idle.transport.is_wrapped() => Step::Read,
            Before::Exchange if looks.begin() => Step::GiveWay,
            Before::Exchange | Before::Move => Step::Wait,
        };
        poll_fn(|cx| {
            if seat.order() == Order::Abort {
                // The abort also cuts a request that nobody has read, and the outcome has to name
                // that request. The outcome names an `Accepted` connection as cut, and leaves out
                // an `Idle` one.
                let asked = has_asked(idle, cx);
                seat.activity.begin(if asked { Doing::Accepted } else { Doing::Idle });
                return Poll::Ready(FirstBytes::Close);
            }
            // An expired connection stays for its last look, because it would be expired at the
            // successor, too.
            if seat.order() == Order::Leave && !seat.is_expired() {
                return Poll::Ready(FirstBytes::Leave);
            }
            let is_last = seat.is_expired() || seat.order() >= Order::LastLook;
            if is_last {
                step = Step::Read;
            }
            if step == Step::GiveWay {
                step = Step::Look;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if step == Step::Look {
                let read = idle.poll_request(cx, true);
                looks.end(read.is_ready());
                if let Poll::Ready(read) = read {
                    return Poll::Ready(FirstBytes::of(read));
                }
                step = Step::Wait;
            }
            // async-io may not report the event that woke this task (see `Socket::poll_event`), so
            // every later poll reads instead of asking for an event.
            if step == Step::Wait {
                step = Step::Read;
                match idle.transport.poll_event(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(FirstBytes::Close),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if let Poll::Ready(read) = idle.poll_request(cx, is_last) {
                return Poll::Ready(FirstBytes::of(read));
            }
            let doing = seat.doing();
            if idle.transport.has_begun() {
                // Under a wrapper, a part of a record has arrived that does not make a byte of
                // content yet (rules S6, S8).
                if doing != Doing::Head {
                    seat.begin(None);
                } else if seat.is_expired() {
                    return Poll::Ready(FirstBytes::Close);
                }
            } else if is_last {
                // The last look has found nothing.
                return Poll::Ready(FirstBytes::Close);
            } else if matches!(doing, Doing::Accepted | Doing::Head) {
                // TLS sends records of its own, so a record may end without a byte of a request.
                seat.activity.begin(Doing::Idle);
            }
            // The read has registered the task's waker.
            Poll::Pending
        })
        .await
    }
}

/// Returns `true` if the client has sent a part of a request that the server will not read any
/// more.
fn has_asked(idle: &mut Idle, cx: &mut Context<'_>) -> bool {
    if !idle.transport.is_wrapped() {
        return idle.transport.waiting() > 0;
    }
    match idle.poll_request(cx, true) {
        Poll::Ready(read) => matches!(read, Ok(Some(_))),
        Poll::Pending => idle.transport.has_begun(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::service;
    use super::*;
    use crate::address::Address;
    use crate::conn::Service;
    use crate::stop::orders::Departure;
    use crate::stop::origin::Origin;
    use crate::stop::seat::Seat;
    use crate::stream::socket::Socket;
    use crate::stream::transport::{Peer, Transport, Wrapped};
    use std::future::Future;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::thread;
    use std::time::Instant;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wakes {
        fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns the seat of a connection that has fallen idle, and whose listener the successor
    /// takes.
    fn seat(service: &Service) -> Arc<Seat> {
        service.orders.begin_hand_over(vec![Some(7)]);
        let origin = Origin::new(0, Address::Tcp(([127, 0, 0, 1], 80).into()));
        let since = Instant::now();
        let seat =
            Seat::of_listener(Some(Arc::new(origin)), Peer::Unix, service.orders.clone(), since);
        seat.fall_idle();
        seat
    }

    /// Returns a connection whose last request was answered.
    fn answered<'a>(service: &'a Service, seat: &'a Arc<Seat>, transport: Transport) -> Conn<'a> {
        Conn { before: Before::Exchange, ..Conn::moved(service, seat, Idle::new(transport)) }
    }

    /// Returns a waker, and the number of its wakes.
    fn counted() -> (Waker, Arc<Wakes>) {
        let wakes = Arc::new(Wakes::default());
        (Waker::from(wakes.clone()), wakes)
    }

    fn connected() -> (Transport, UnixStream) {
        let (socket, client) = UnixStream::pair().unwrap();
        (Transport::Plain(Socket::unix(socket).unwrap()), client)
    }

    /// An event at the server while a connection has given way.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Nothing,
        Stop,
        LingerOver,
        Abort,
        Leave,
        Expiry,
    }

    /// The connection's next step after the event.
    #[derive(Debug, PartialEq, Eq)]
    enum Does {
        Serves,
        Waits,
        Leaves,
        Closes,
    }

    /// Rules W17, S6, S13, S24 and H5: between the pause and the look, the server may want
    /// something else of the connection, and the request may have come or not.
    #[test]
    fn what_the_server_wants_comes_before_the_look() {
        use Does::{Closes, Leaves, Serves, Waits};
        let cases = [
            // The event, without and with a request in the socket.
            (Event::Nothing, Waits, Serves),
            (Event::Stop, Waits, Serves),
            (Event::LingerOver, Closes, Serves),
            (Event::Expiry, Closes, Serves),
            (Event::Abort, Closes, Closes),
            (Event::Leave, Leaves, Leaves),
        ];
        for (event, without, with) in cases {
            for (is_there, expected) in [(false, &without), (true, &with)] {
                let does = thread::spawn(move || between_pause_and_look(event, is_there));
                assert_eq!(does.join().unwrap(), *expected, "{event:?}, request: {is_there}");
            }
        }
    }

    fn between_pause_and_look(event: Event, is_there: bool) -> Does {
        let service = service();
        let seat = seat(&service);
        let (transport, mut client) = connected();
        let mut conn = answered(&service, &seat, transport);
        let (waker, wakes) = counted();
        let cx = &mut Context::from_waker(&waker);
        let mut first_bytes = pin!(conn.first_bytes());
        assert!(first_bytes.as_mut().poll(cx).is_pending());
        assert_eq!(wakes.count(), 1, "it has not given way");
        if is_there {
            client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        }
        match event {
            Event::Nothing => {}
            Event::Stop => service.shutdown.stop(),
            Event::LingerOver => {
                service.shutdown.stop();
                // The successor does not take the connection any more.
                seat.set_departure(Departure::Refused);
                service.orders.give(Order::LastLook);
            }
            Event::Abort => service.shutdown.abort(),
            Event::Leave => {
                service.shutdown.stop();
                seat.set_departure(Departure::Asked);
            }
            Event::Expiry => seat.expire(seat.activity.look()),
        }
        match first_bytes.as_mut().poll(cx) {
            Poll::Pending => Does::Waits,
            Poll::Ready(FirstBytes::Request(incoming)) => {
                assert_eq!(incoming.unread(), b"GET / HTTP/1.1\r\n");
                Does::Serves
            }
            Poll::Ready(FirstBytes::Leave) => Does::Leaves,
            Poll::Ready(FirstBytes::Close) => {
                // The outcome names a request that nobody has read (rule S13).
                let is_named = seat.doing() == Doing::Accepted;
                assert_eq!(is_named, is_there);
                Does::Closes
            }
        }
    }

    /// A look in vain registers for no event, so the connection has to wait for an event after the
    /// look.
    #[test]
    fn a_request_behind_the_look_wakes_the_connection() {
        let service = service();
        let seat = seat(&service);
        let (transport, mut client) = connected();
        let mut conn = answered(&service, &seat, transport);
        let (waker, wakes) = counted();
        let cx = &mut Context::from_waker(&waker);
        let mut first_bytes = pin!(conn.first_bytes());
        for _ in 0..2 {
            assert!(first_bytes.as_mut().poll(cx).is_pending());
        }
        assert_eq!(wakes.count(), 1);
        client.write_all(b"G").unwrap();
        while wakes.count() == 1 {
            thread::yield_now();
        }
        let Poll::Ready(FirstBytes::Request(_)) = first_bytes.poll(cx) else {
            panic!("the request is not read")
        };
    }

    /// The client closes the connection, and may have sent a last request before that.
    #[test]
    fn a_look_finds_the_end_of_the_stream() {
        for request in ["", "GET / HTTP/1.1\r\n\r\n"] {
            let service = service();
            let seat = seat(&service);
            let (transport, mut client) = connected();
            let mut conn = answered(&service, &seat, transport);
            let cx = &mut Context::from_waker(Waker::noop());
            let mut first_bytes = pin!(conn.first_bytes());
            assert!(first_bytes.as_mut().poll(cx).is_pending());
            client.write_all(request.as_bytes()).unwrap();
            drop(client);
            match first_bytes.poll(cx) {
                Poll::Ready(FirstBytes::Request(incoming)) => {
                    assert_eq!(incoming.unread(), request.as_bytes());
                }
                Poll::Ready(FirstBytes::Close) => assert!(request.is_empty()),
                _ => panic!("{request:?}: it waits"),
            }
        }
    }

    /// An idle connection that comes from another process has nothing to look for, and a read of a
    /// wrapped stream registers by itself.
    #[test]
    fn a_moved_connection_and_a_wrapped_one_do_not_give_way() {
        let service = service();
        let seat = seat(&service);
        let (end, _client) = UnixStream::pair().unwrap();
        let stream = Wrapped::new(smol::Async::new(end).unwrap());
        let wrapped = answered(&service, &seat, Transport::Wrapped(Box::new(stream)));
        let (transport, _client) = connected();
        let moved = Conn::moved(&service, &seat, Idle::new(transport));
        for mut conn in [wrapped, moved] {
            let (waker, wakes) = counted();
            assert!(pin!(conn.first_bytes()).poll(&mut Context::from_waker(&waker)).is_pending());
            assert_eq!(wakes.count(), 0);
        }
    }
}
