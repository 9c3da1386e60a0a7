//! [`Idle`]: a connection between two requests. [`Movable`]: a connection with which another task
//! or process can go on.
//!
//! Invariant: an idle connection owns no buffer (rule W12). Empty lines in front of a request are
//! not a request yet (RFC 9112 section 2.2), but they count as a part of its head, however the
//! reads cut them.

use std::io;
use std::task::{Context, Poll, ready};

use super::head::EMPTY_LINES;
use super::incoming::Incoming;
use crate::stream::transport::Transport;

/// A connection between two requests: its transport, and nothing else.
pub(crate) struct Idle {
    pub(crate) transport: Transport,
    /// The number of bytes of empty lines that have come.
    empty: usize,
}

impl Idle {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, empty: 0 }
    }

    /// Makes the connection idle again. `incoming` must hold nothing but empty lines.
    pub(super) fn behind(incoming: &Incoming, transport: Transport) -> Self {
        Self { transport, empty: incoming.unread().len() }
    }

    /// Returns the connection with what was read of it.
    pub(crate) fn into_movable(self) -> Movable {
        Movable { transport: self.transport, ahead: EMPTY_LINES[..self.empty].to_vec() }
    }

    /// Reads the beginning of a request. Returns `None` at the end of the stream. With `is_last`,
    /// does not register for readiness, like [`Transport::poll_last_read`].
    pub(crate) fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        is_last: bool,
    ) -> Poll<io::Result<Option<Incoming>>> {
        let Self { transport, empty } = self;
        loop {
            let mut incoming = Incoming::behind(*empty);
            let n = ready!(incoming.fill(|room| {
                if is_last {
                    transport.poll_last_read(cx, room)
                } else {
                    transport.poll_read(cx, room)
                }
            }))?;
            if n == 0 {
                return Poll::Ready(Ok(None));
            }
            if incoming.has_request() {
                return Poll::Ready(Ok(Some(incoming)));
            }
            *empty = incoming.unread().len();
        }
    }
}

/// A connection with no exchange under way: its transport, and the bytes that were read and not
/// answered.
pub(crate) struct Movable {
    pub(crate) transport: Transport,
    /// Empty lines, a part of a head, or requests that the client has sent ahead.
    pub(crate) ahead: Vec<u8>,
}

impl Movable {
    /// Returns the connection as an idle one, and the beginning of a request if one was read.
    pub(crate) fn into_idle(self) -> (Idle, Option<Incoming>) {
        let Self { transport, ahead } = self;
        let incoming = Incoming::with(&ahead);
        if incoming.has_request() {
            (Idle::new(transport), Some(incoming))
        } else {
            (Idle::behind(&incoming, transport), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::seeded;
    use crate::stop::orders::Orders;
    use crate::stop::seat::Seat;
    use crate::stream::socket::Socket;
    use crate::stream::transport::Peer;
    use crate::wire::buffer::SIZE;
    use crate::wire::head::Bounds;
    use crate::wire::{Begun, Gate};
    use futures_lite::future::{block_on, poll_once};
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    const GET: &str = "GET /one HTTP/1.1\r\nHost: test\r\n\r\n";

    fn connected() -> (Transport, UnixStream) {
        let (socket, client) = UnixStream::pair().unwrap();
        (Transport::Plain(Socket::unix(socket).unwrap()), client)
    }

    fn gate(transport: Transport, incoming: Incoming) -> Gate {
        let seat = Seat::new(Peer::Unix, Arc::new(Orders::under(Arc::default())));
        Gate::new(transport, incoming, seat, Bounds { head_bytes: 16 * 1024, headers: 100 })
    }

    /// Lets an active connection leave before it has parsed a head.
    fn leave(transport: Transport, incoming: Incoming) -> Movable {
        gate(transport, incoming).into_movable().expect("it is connected")
    }

    /// Goes on with a connection, and lets it leave again.
    fn moved(connection: Movable) -> Movable {
        match connection.into_idle() {
            (idle, None) => idle.into_movable(),
            (idle, Some(incoming)) => leave(idle.transport, incoming),
        }
    }

    /// Returns `true` if the server reads what the client sends, and the client what the server
    /// does.
    fn is_connected(transport: &mut Transport, client: &mut UnixStream) -> bool {
        client.write_all(b"ping").unwrap();
        let mut read = [0; 4];
        let n = block_on(poll_fn(|cx| transport.poll_read(cx, &mut read))).unwrap();
        client.set_nonblocking(true).unwrap();
        let is_open = |client: &mut UnixStream| {
            let read = client.read(&mut [0]);
            read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        &read[..n] == b"ping" && is_open(client)
    }

    #[test]
    fn what_was_read_ahead_goes_along_however_often_it_goes() {
        let many = GET.repeat(50);
        let long = format!("GET /{} HTTP/1.1\r\nHost: test\r\n", "x".repeat(3 * SIZE));
        let in_front = format!("\r\n\r\n{GET}");
        let full = [b'x'; SIZE];
        let longest = vec![b'x'; crate::limits::Limits::MOST_AHEAD];
        let mut all: Vec<&[u8]> =
            vec![b"G", GET.as_bytes(), &GET.as_bytes()[..20], &full, &longest];
        all.extend([&many, &long, &in_front].map(|text| text.as_bytes()));
        all.extend((0..=EMPTY_LINES.len()).map(|end| &EMPTY_LINES[..end]));
        // One empty line more than those that are tolerated, and a lone line end.
        all.extend([&b"\r\n\r\n\r\n\r\n\r\n"[..], b"\n", b"\r\r"]);
        for ahead in all {
            let (transport, mut client) = connected();
            let mut connection = Movable { transport, ahead: ahead.to_vec() };
            for _ in 0..3 {
                connection = moved(connection);
                assert_eq!(connection.ahead, ahead);
            }
            assert!(is_connected(&mut connection.transport, &mut client));
        }
    }

    #[test]
    fn empty_lines_alone_are_no_request() {
        let has_request = |ahead: &[u8]| {
            let (transport, _client) = connected();
            Movable { transport, ahead: ahead.to_vec() }.into_idle().1.is_some()
        };
        assert!((0..=EMPTY_LINES.len()).all(|end| !has_request(&EMPTY_LINES[..end])));
        assert!([&b"\r\n\r\n\r\n\r\n\r\n"[..], b"\n", b"\r\r", b"G"].into_iter().all(has_request));
    }

    #[test]
    fn what_is_behind_an_exchange_goes_along() {
        let (transport, _client) = connected();
        let all = GET.repeat(3);
        let (idle, incoming) = Movable { transport, ahead: all.into() }.into_idle();
        let mut gate = gate(idle.transport, incoming.unwrap());
        for left in [2, 1, 0] {
            assert!(matches!(block_on(gate.head(0)), Ok(Begun::Head(_))));
            let Movable { transport, ahead } = gate.into_movable().unwrap();
            assert_eq!(ahead, GET.repeat(left).as_bytes());
            gate = self::gate(transport, Incoming::with(&ahead));
        }
    }

    /// A client's bytes come in pieces, and the connection moves between some of them.
    #[test]
    fn nothing_is_lost_or_read_twice_wherever_the_connection_moves() {
        let mut random = seeded();
        for _ in 0..300 {
            let empty = &EMPTY_LINES[..random.usize(..=EMPTY_LINES.len())];
            let path = "x".repeat(if random.bool() { 3 } else { random.usize(..2 * SIZE) });
            let request = format!("POST /{path} HTTP/1.1\r\nHost: test\r\n\r\n");
            let sent = [empty, request.repeat(random.usize(..4)).as_bytes()].concat();
            let (transport, mut client) = connected();
            let mut connection = Movable { transport, ahead: Vec::new() };
            let mut begins = 0;
            while begins < sent.len() {
                let most = if random.bool() { 5 } else { sent.len() };
                let end = sent.len().min(begins + random.usize(1..=most));
                client.write_all(&sent[begins..end]).unwrap();
                let (mut idle, mut incoming) = connection.into_idle();
                loop {
                    let read = poll_fn(|cx| match &mut incoming {
                        None => idle.poll_request(cx, false).map_ok(|read| incoming = read),
                        Some(incoming) => {
                            incoming.fill(|room| idle.transport.poll_read(cx, room)).map_ok(drop)
                        }
                    });
                    match block_on(poll_once(read)) {
                        Some(read) => read.unwrap(),
                        None => break,
                    }
                }
                connection = match incoming {
                    None => idle.into_movable(),
                    Some(incoming) => leave(idle.transport, incoming),
                };
                assert_eq!(connection.ahead, &sent[..end]);
                begins = end;
            }
            assert!(is_connected(&mut connection.transport, &mut client));
        }
    }
}
