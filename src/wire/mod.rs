//! The gate in front of async-h1: owns a connection's read buffer and admits exactly one
//! well-formed message at a time.
//!
//! Invariant: async-h1 sees one message's body at a time, and never a byte of the next message
//! (rules W1, W2). A [`Gate`] lives while a connection is active, and an idle connection has none
//! (rule W12). The gate takes no decision on stopping and sends only what it is given.

pub(crate) mod body;
pub(crate) mod buffer;
pub(crate) mod fault;
pub(crate) mod head;
mod incoming;
mod outgoing;
mod request;
pub(crate) mod response;
mod target;
mod trailers;
mod upgraded;

// The generated tests of `head`, `target` and `body`, which see private modules.
#[cfg(test)]
#[path = "../../tests/properties/differential.rs"]
mod differential;
#[cfg(test)]
#[path = "../../tests/properties/mod.rs"]
mod properties;

use futures_lite::FutureExt;
use http_types::{Request, StatusCode, upgrade};
use log::Level;
use smol::channel;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use crate::activity::{Doing, Wait};
use crate::client::Received;
use crate::orders::Order;
use crate::seat::{Call, Describe, Seat};
use crate::socket::Left;
use crate::transport::{Peer, Transport};
use buffer::Buffer;
use fault::{BodyError, Lost};
use head::{Bounds, Head, Parse};
use incoming::Incoming;
pub(crate) use incoming::Rest;
use outgoing::Outgoing;
use response::{Filled, Reply};
use upgraded::Upgraded;

/// The bytes of an active connection, in and out.
pub(crate) struct Gate {
    wire: Arc<Mutex<Wire>>,
    seat: Arc<Seat>,
    bounds: Bounds,
    /// What is to be sent; responses to pipelined requests gather here (rule W10).
    output: Outgoing,
}

/// Why there is no next head.
pub(crate) enum NoHead {
    /// The client has closed, or is gone.
    Closed,
    /// The head is to be answered with this status.
    Refused(StatusCode),
}

/// A response that could not be sent whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client may have seen some of it: the connection is of no use any more.
    Seen,
    /// Nothing of it was sent: another can take its place.
    Unseen,
}

impl Gate {
    /// Takes over a connection that has sent the first `n` of `bytes`.
    pub(crate) fn new(
        transport: Transport,
        bytes: Buffer,
        n: usize,
        seat: Arc<Seat>,
        bounds: Bounds,
    ) -> Self {
        let wire = Arc::new(Mutex::new(Wire {
            transport: Some(transport),
            incoming: Incoming::new(bytes, n),
            exchange: 0,
            reader: None,
            writer: None,
            reads: 0,
            streak: 0,
            undelivered: 0,
            is_open_ended: false,
            is_read_to_end: false,
            seat: seat.clone(),
        }));
        Self { wire, seat, bounds, output: Outgoing::default() }
    }

    /// The head of the next message, once it has arrived.
    pub(crate) async fn head(&mut self, longest_body: u64) -> Result<Head, NoHead> {
        self.wire().incoming.finish_message();
        let wire: Arc<dyn Describe> = self.wire.clone();
        self.seat.begin(Some(Arc::downgrade(&wire)));
        let mut judged = 0;
        poll_fn(|cx| self.poll_head(cx, longest_body, &mut judged)).await
    }

    /// Parses the head that has arrived so far, and reads more until the head is complete.
    ///
    /// `judged` is how many bytes of the head [`head::parse`] has already seen. A client may send a
    /// head byte by byte, and parsing it from its beginning for every byte would be slow.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        longest_body: u64,
        judged: &mut usize,
    ) -> Poll<Result<Head, NoHead>> {
        loop {
            let mut wire = lock(&self.wire);
            let unread = wire.incoming.unread();
            let is_full = unread.len() >= self.bounds.head_bytes;
            let verdict = if is_full || head::may_decide(unread, *judged) {
                head::parse(unread, self.bounds)
            } else {
                Parse::Partial
            };
            *judged = unread.len();
            match verdict {
                Parse::Complete(head) => {
                    wire.incoming.begin_message(&head, longest_body);
                    wire.exchange = wire.exchange.wrapping_add(1);
                    self.seat.activity.go_on(Doing::Handler);
                    return Poll::Ready(Ok(head));
                }
                Parse::Reject(status) => return Poll::Ready(Err(NoHead::Refused(status))),
                Parse::Partial => {}
            }
            let Wire { transport, incoming, .. } = &mut *wire;
            let Some(transport) = transport else { return Poll::Ready(Err(NoHead::Closed)) };
            let read = incoming.poll_fill(transport, cx);
            drop(wire);
            match read {
                Poll::Ready(Ok(0)) if is_empty_lines(self.wire().incoming.unread()) => {
                    return Poll::Ready(Err(NoHead::Closed));
                }
                // A client may close its side of the connection and still listen.
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(NoHead::Refused(StatusCode::BadRequest)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(NoHead::Closed)),
                Poll::Pending if self.seat.is_expired() => {
                    return Poll::Ready(Err(NoHead::Refused(StatusCode::RequestTimeout)));
                }
                Poll::Pending => {
                    // The client may wait for these before it sends the rest.
                    if let Poll::Ready(Err(_)) = self.poll_flush(cx) {
                        return Poll::Ready(Err(NoHead::Closed));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Makes the request that the handler gets.
    ///
    /// # Errors
    ///
    /// 400 if no URL says what the client has asked for. [`head::parse`] has refused every other
    /// fault.
    pub(crate) fn request(&self, head: &Head) -> Result<Request, StatusCode> {
        let exchange = self.wire().exchange;
        let decoded = request::with_body(head.framing, &self.wire, exchange);
        let wire = self.wire();
        let message = wire.incoming.message();
        let mut request = request::request(head, message, decoded)?;
        request
            .ext_mut()
            .insert(Received { target: head.target(message).into(), seat: self.seat.clone() });
        Ok(request)
    }

    /// Returns what is left of the message's body.
    pub(crate) fn rest(&self) -> Rest {
        self.wire().incoming.rest()
    }

    /// Notes that the server is about to call the request's handler, and returns that call.
    pub(crate) fn call(&self) -> Call {
        self.seat.call()
    }

    /// Returns what the server wants of the connection now.
    pub(crate) fn order(&self) -> Order {
        self.seat.order()
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> Peer {
        self.seat.peer()
    }

    /// Method and target of the message under way, for log lines.
    pub(crate) fn describe(&self) -> (String, String) {
        self.wire.describe().unwrap_or_default()
    }

    /// The status for a body that the client got wrong.
    pub(crate) fn fault(&self) -> Option<StatusCode> {
        self.wire().incoming.fault()
    }

    /// Returns `true` if the body of `reply` is made of the request's body.
    ///
    /// Polls the body of `reply` for its first bytes and looks whether that has read the request's
    /// body. The result may be a false `true` if another task reads the request's body at the same
    /// moment.
    pub(crate) async fn feeds(&mut self, reply: &mut Reply) -> bool {
        let before = self.wire().reads;
        let asked = poll_fn(|cx| {
            reply.poll_begin(cx);
            Poll::Ready(())
        });
        // A panic of the response's body is ignored here, because `respond` polls that body again
        // and ends the response there (rule S17).
        let _ = AssertUnwindSafe(asked).catch_unwind().await;
        // The client may hold back its first byte until it gets `100 Continue`.
        self.say_continue();
        self.wire().reads != before
    }

    /// Whether someone still holds the request's body: the response's may be made of it.
    pub(crate) fn body_is_held(&self) -> bool {
        Arc::strong_count(&self.wire) > 1
    }

    /// Reads and drops the rest of the body. Returns `false` if the body is malformed or cut short,
    /// if the client is gone, or if the server wants idle connections to end before the body has
    /// ended.
    ///
    /// The server has sent the response by now, so nobody waits for the rest, and the drain may end
    /// this early. The response has promised that the connection goes on, so the body may be of any
    /// length.
    pub(crate) async fn discard_body(&mut self) -> bool {
        self.wire().incoming.lift_bound();
        self.seat.activity.go_on(Doing::Discarding);
        poll_fn(|cx| {
            let discarded = self.poll_discard(cx, u64::MAX);
            let is_over = self.seat.order() >= Order::LastLook;
            match discarded {
                Poll::Ready(Discarded::Whole) => Poll::Ready(true),
                Poll::Ready(Discarded::Bad) => Poll::Ready(false),
                Poll::Ready(Discarded::Some(_)) | Poll::Pending if is_over => Poll::Ready(false),
                Poll::Ready(Discarded::Some(_)) => {
                    // A fast client must not keep other connections from their turn.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => self.poll_tend(cx).map(|()| false),
            }
        })
        .await
    }

    /// Reads and drops at most `most` bytes of the body that have already arrived.
    ///
    /// Returns `true` if the body is complete, or if its rest is not known to be malformed or
    /// longer than what is left of `most`.
    pub(crate) async fn discard_arrived(&mut self, mut most: u64) -> bool {
        poll_fn(|cx| {
            let discarded = self.poll_discard(cx, most);
            match discarded {
                Poll::Ready(Discarded::Whole) => Poll::Ready(true),
                Poll::Ready(Discarded::Bad) => Poll::Ready(false),
                Poll::Ready(Discarded::Some(n)) => {
                    most -= n;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Ready(self.rest().is_at_most(most)),
            }
        })
        .await
    }

    fn poll_discard(&self, cx: &mut Context<'_>, most: u64) -> Poll<Discarded> {
        let mut displaced = None;
        let discarded = self.wire().poll_discard(cx, most, &mut displaced);
        // The lock is released before this, because a waker may run any code.
        if let Some(reader) = displaced.filter(|reader| !reader.will_wake(cx.waker())) {
            reader.wake();
        }
        discarded
    }

    /// Returns how many bytes behind the message have arrived, apart from empty lines; at least 1
    /// if part of a request has arrived. The caller must have taken the message whole.
    pub(crate) async fn waiting(&self) -> u64 {
        // Only a read shows what a wrapped stream holds. A wrapped stream may return `Pending`
        // although it holds data, so poll it a few more times.
        let mut looks = LAST_LOOKS;
        poll_fn(|cx| {
            let wire = &mut *self.wire();
            let Some(transport) = &mut wire.transport else { return Poll::Ready(()) };
            if !transport.is_wrapped() {
                // So few bytes may be empty lines, so read and check them.
                if (1..=EMPTY as u64).contains(&transport.waiting()) {
                    let _ = wire.incoming.poll_fill(transport, cx);
                }
                return Poll::Ready(());
            }
            while wire.incoming.unread().len() < READ_AHEAD {
                match wire.incoming.poll_fill(transport, cx) {
                    Poll::Ready(Ok(n)) if n > 0 => looks = LAST_LOOKS,
                    Poll::Pending if looks > 1 => {
                        looks -= 1;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Ready(_) | Poll::Pending => break,
                }
            }
            Poll::Ready(())
        })
        .await;
        let wire = self.wire();
        let transport = wire.transport.as_ref();
        let begun = u64::from(transport.is_some_and(Transport::has_begun));
        match transport.map_or(0, Transport::waiting) {
            0 if is_empty_lines(wire.incoming.unread()) => begun,
            in_socket => in_socket + wire.incoming.unread().len() as u64 + begun,
        }
    }

    /// Bytes of the message that were taken from the connection, head included.
    pub(crate) fn taken(&self) -> u64 {
        self.wire().incoming.taken()
    }

    /// Sends pending output and cuts off a client whose body stalls, while the handler runs.
    ///
    /// Returns when the client is gone (rule S22) or takes nothing, unless the handler holds a
    /// guard.
    pub(crate) async fn tend(&mut self) {
        poll_fn(|cx| {
            let gone = self.answer_sweep();
            self.say_continue();
            // A client that takes nothing may have got part of an earlier response, and no other
            // response may follow that part.
            if (gone || self.poll_tend(cx).is_ready()) && !self.is_over() {
                if !self.seat.is_held() {
                    return Poll::Ready(());
                }
                self.reset();
            }
            Poll::Pending
        })
        .await;
    }

    /// Looks at the socket for the state of the client if the sweep has asked for it, and notifies
    /// the tasks that wait for the client to leave. Returns `true` if the client is gone (rule
    /// S22).
    fn answer_sweep(&self) -> bool {
        if !self.seat.take_asked() {
            return false;
        }
        let left = self.wire().transport.as_ref().map_or(Some(Left::Gone), Transport::left);
        if let Some(left) = left {
            self.seat.leave(left);
        }
        left == Some(Left::Gone)
    }

    /// Appends `100 Continue` to the output if a reader waits for a body that the client sends only
    /// then.
    fn say_continue(&mut self) {
        if self.wire().incoming.take_continue() {
            let end = self.output.len();
            self.output.replace(end..end, CONTINUE);
        }
    }

    fn poll_tend(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.seat.is_expired() && self.seat.stage().waits_for_body() {
            let reader = self.wire().end_wait_for_body(cx);
            if let Some(reader) = reader {
                reader.wake();
            }
        }
        match self.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Pending if self.seat.is_expired() => Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// Encodes a response and sends what does not fit the buffer. [`Gate::flush`] sends the rest,
    /// together with the next response (rule W10).
    ///
    /// Returns an error when the client is gone, even while the response's body is pending (rule
    /// S22).
    pub(crate) async fn respond(&mut self, reply: &mut Reply) -> Result<(), Broken> {
        self.seat.activity.go_on(Doing::Response);
        self.forget_wait_for_body();
        let expects_continue = {
            let mut wire = self.wire();
            wire.is_open_ended = reply.ends_with_connection();
            if wire.transport.as_ref().is_some_and(Transport::is_wrapped) {
                // What is no socket may hold back what it is given, until it is flushed.
                reply.gather();
            }
            wire.incoming.expects_continue()
        };
        let begin = self.output.len();
        // Whether the client can have seen any of this response.
        let mut unseen = true;
        let mut flushed = false;
        let sent = poll_fn(|cx| {
            if self.answer_sweep() {
                unseen = false;
                return Poll::Ready(false);
            }
            loop {
                if self.output.len() >= FULL && !reply.is_inside_head() {
                    if flushed {
                        // A client that is faster than the response must not keep others from
                        // their turn.
                        flushed = false;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    unseen = false;
                    match self.poll_flush(cx) {
                        Poll::Ready(Ok(())) => flushed = true,
                        Poll::Pending if !self.seat.is_expired() => return Poll::Pending,
                        Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(false),
                    }
                }
                let filled = reply.poll_fill(cx, &mut self.output);
                // The body of the response is made of the request's, which the client sends only
                // after this. Within the final response it would be too late (rule W7).
                if expects_continue && self.wire().incoming.take_continue() && unseen {
                    self.output.replace(begin..begin, CONTINUE);
                }
                match filled {
                    Poll::Ready(Ok(Filled::Whole)) => return Poll::Ready(true),
                    Poll::Ready(Ok(Filled::More)) => {}
                    Poll::Ready(Ok(Filled::Slice)) => {
                        unseen = false;
                        match self.poll_send_slice(cx, reply) {
                            Poll::Ready(Ok(true)) => return Poll::Ready(true),
                            Poll::Ready(Ok(false)) => {
                                // Others have their turn.
                                cx.waker().wake_by_ref();
                                return Poll::Pending;
                            }
                            Poll::Pending if !self.seat.is_expired() => return Poll::Pending,
                            Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(false),
                        }
                    }
                    Poll::Ready(Err(error)) => {
                        let (method, path) = self.describe();
                        let peer = self.seat.peer();
                        // A client's fault is logged at a lower level, so that clients cannot fill
                        // the log. A response that is made of the request's body fails with it.
                        let is_clients = self.wire().incoming.is_cut();
                        let level = if is_clients { Level::Debug } else { Level::Warn };
                        log::log!(level, "{peer} {method} {path}: the response's body: {error}");
                        return Poll::Ready(false);
                    }
                    Poll::Pending => {
                        unseen = false;
                        flushed = false;
                        return self.poll_tend(cx).map(|()| false);
                    }
                }
            }
        });
        // A panic of the response's body is an end of it like any other (rule S17).
        let is_whole = AssertUnwindSafe(sent).catch_unwind().await.unwrap_or(false);
        if is_whole {
            if reply.ends_with_connection() {
                // Until everything has left, the end of the connection would make a part of the
                // response look whole.
                self.flush().await?;
                self.wire().is_open_ended = false;
            }
            Ok(())
        } else if unseen {
            let end = self.output.len();
            self.output.replace(begin..end, b"");
            Err(Broken::Unseen)
        } else {
            Err(Broken::Seen)
        }
    }

    /// Ends a wait for the body whose reader may be gone: a handler may stop waiting, and the gate
    /// itself has discarded only what had arrived. A reader that still waits is woken, and begins
    /// to wait anew. Otherwise the client would have to send a body that nobody reads.
    fn forget_wait_for_body(&self) {
        if !self.seat.activity.look().waits_for(Wait::Body) {
            return;
        }
        let mut wire = self.wire();
        self.seat.activity.got(Wait::Body);
        let reader = wire.reader.take();
        drop(wire);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Hands the raw stream to the task that waits for it. Returns when that task has dropped the
    /// stream (rule S11), or when the client is gone (rule S22). In the second case the task's
    /// later reads and writes fail.
    pub(crate) async fn upgrade(&self, to: upgrade::Sender) {
        self.seat.activity.begin(Doing::Upgraded);
        let (open, closed) = channel::bounded::<Infallible>(1);
        let stream = Upgraded { wire: self.wire.clone(), _open: open };
        to.send(upgrade::Connection::new(stream)).await;
        // Nothing is ever sent: this is the moment when the stream is dropped.
        let dropped = async {
            let _ = closed.recv().await;
        };
        let gone = poll_fn(|_| match self.answer_sweep() && self.has_nothing_to_read() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        dropped.or(gone).await;
    }

    /// Returns `true` if the owner of an upgraded stream can read nothing more from it. A
    /// connection that both sides have closed looks gone, although the client's last bytes may be
    /// unread.
    fn has_nothing_to_read(&self) -> bool {
        let wire = self.wire();
        let Some(transport) = &wire.transport else { return true };
        let is_empty = || {
            !transport.is_wrapped() && transport.waiting() == 0 && wire.incoming.unread().is_empty()
        };
        wire.is_read_to_end || transport.is_reset() || is_empty()
    }

    /// Sends everything, unless the client is gone (rule S22).
    pub(crate) async fn flush(&mut self) -> Result<(), Broken> {
        poll_fn(|cx| match self.poll_flush(cx) {
            Poll::Pending if self.seat.is_expired() || self.answer_sweep() => {
                Poll::Ready(Err(Broken::Seen))
            }
            sent => sent.map_err(|_| Broken::Seen),
        })
        .await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(cx, &[]).map_ok(drop)
    }

    /// Sends everything and some of the body, from where it lies; `true` if that was the rest.
    fn poll_send_slice(
        &mut self,
        cx: &mut Context<'_>,
        reply: &mut Reply,
    ) -> Poll<io::Result<bool>> {
        let slice = ready!(reply.poll_slice(cx))?;
        let n = ready!(self.poll_send(cx, slice))?;
        Poll::Ready(Ok(reply.sent(n)))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, tail: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &mut *lock(&self.wire);
        let Some(transport) = &mut wire.transport else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let activity = &self.seat.activity;
        let before = transport.metered_sent();
        let sent = self.output.poll_send(transport, cx, tail, || {
            let look = activity.look();
            if look.waits_for(Wait::Room) {
                activity.got(Wait::Room);
            } else if look.doing() == Doing::Response && !look.waits_for(Wait::Body) {
                // A response that goes out is progress (rule S20), but buys no time for a body.
                activity.progress();
            }
        });
        if sent.is_ready() {
            // The wrapper may have sent what it had held back, without a further write.
            activity.got(Wait::Room);
            return sent;
        }
        // Progress is what the socket takes, including what a wrapper has held back, and what the
        // client's kernel takes from the socket. The server's kernel signals room only when a good
        // part of its buffer is free, so look at the socket before the client counts as stalled.
        let has_waited = activity.look().waits_for(Wait::Room);
        let mut moves = transport.metered_sent() != before || !has_waited;
        if moves || self.seat.is_expired() {
            let undelivered = transport.undelivered();
            moves |= undelivered != wire.undelivered;
            wire.undelivered = undelivered;
        }
        activity.wait(Wait::Room, true);
        if moves {
            activity.progress();
        }
        sent
    }

    /// Whether bytes of a next message have been read.
    pub(crate) fn has_input(&self) -> bool {
        !is_empty_lines(self.wire().incoming.unread())
    }

    /// The connection falls idle: what is left is its transport, and how many bytes of empty lines
    /// were read (rule W12).
    pub(crate) fn into_transport(self) -> Option<(Transport, usize)> {
        self.seat.end();
        let mut wire = self.wire();
        let empty = wire.incoming.unread().len();
        wire.transport.take().map(|transport| (transport, empty))
    }

    /// Gives the transport back, to end the connection. Sends nothing; see [`Gate::flush`].
    pub(crate) fn take_transport(self) -> Option<Transport> {
        self.wire().transport.take()
    }

    /// Ends the connection with a reset, so that the client cannot take a part of the response for
    /// the whole. A task that still reads the body gets an error.
    pub(crate) fn reset(&self) {
        let mut wire = self.wire();
        if let Some(transport) = wire.transport.take() {
            transport.reset_on_close();
        }
        let reader = wire.reader.take();
        drop(wire);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Returns `true` if the connection has ended.
    fn is_over(&self) -> bool {
        self.wire().transport.is_none()
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }
}

impl Drop for Gate {
    /// A body that the handler has left behind somewhere must not keep the socket open.
    fn drop(&mut self) {
        let mut wire = self.wire();
        match &wire.transport {
            // Its owner, in another task, is told by the end of the stream.
            Some(transport) if self.seat.doing() == Doing::Upgraded && transport.has_socket() => {
                transport.shut_down();
            }
            Some(transport) if wire.is_open_ended => {
                transport.reset_on_close();
                wire.transport = None;
            }
            _ => wire.transport = None,
        }
        // Whoever still waits for the body is told; the transport does not do it when it goes.
        let waiting = [wire.reader.take(), wire.writer.take()];
        drop(wire);
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Whether `bytes` are no beginning of a request, but empty lines that some clients send behind
/// one (RFC 9112 section 2.2).
pub(crate) fn is_empty_lines(bytes: &[u8]) -> bool {
    bytes.len() <= EMPTY && bytes.iter().zip(b"\r\n".iter().cycle()).all(|(a, b)| a == b)
}

/// How often what is no socket is asked whether it has something, when that matters: pipes and TLS
/// may give way although they do, a pipe in memory in one of 100 polls.
pub(crate) const LAST_LOOKS: usize = 8;

/// How many bytes of empty lines are tolerated; a last one may have begun.
const EMPTY: usize = 2 * head::EMPTY_LINES;

/// How much is gathered before it is sent.
const FULL: usize = 64 * 1024;

/// The number of bytes that the server reads ahead to find out what has arrived, for a stream that
/// shows this only by a read. Requests beyond that get no answer when the server stops.
const READ_AHEAD: usize = 1024 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the connection's task shares with the body of the request that it serves.
struct Wire {
    /// `None` once the connection has gone on without this gate.
    transport: Option<Transport>,
    incoming: Incoming,
    /// Counts messages: a body that is kept beyond its exchange must not read the next one's.
    exchange: u32,
    /// Who waits for more of the body.
    reader: Option<Waker>,
    /// Who waits to write to an upgraded stream that is no socket.
    writer: Option<Waker>,
    /// Counts the reads of the body by the request's owner, successful or not.
    reads: u32,
    /// Bytes of the body that were read without a pause.
    streak: usize,
    /// The number of bytes that the client's kernel had yet to take at the last look.
    undelivered: u64,
    /// In the middle of a response whose end is the connection's: the client could take what it
    /// got for the whole.
    is_open_ended: bool,
    /// The owner of an upgraded stream has read to its end, or to an error.
    is_read_to_end: bool,
    seat: Arc<Seat>,
}

/// Says how far discarding a body has come.
enum Discarded {
    /// The reader or the discarding has taken the whole body.
    Whole,
    /// This many bytes were dropped, and more may be there.
    Some(u64),
    /// The body is longer than allowed, malformed or cut short.
    Bad,
}

impl Wire {
    /// Gives way if much of the body was read without a pause: a client that is faster than the
    /// reader must not keep others from their turn.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.streak < FULL {
            return Poll::Ready(());
        }
        self.streak = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads and drops some of the body, up to `most` bytes and as much as a turn allows. Hands out
    /// the waker of a reader that has waited for the body, so that the caller wakes that reader.
    fn poll_discard(
        &mut self,
        cx: &mut Context<'_>,
        most: u64,
        displaced: &mut Option<Waker>,
    ) -> Poll<Discarded> {
        if self.incoming.rest() == Rest::Nothing {
            return Poll::Ready(Discarded::Whole);
        }
        // From here on the handler's reads fail.
        self.exchange = self.exchange.wrapping_add(1);
        *displaced = self.reader.take();
        let (mut scrap, mut dropped) = (Buffer::new(), 0);
        while self.incoming.rest() != Rest::Nothing {
            match self.poll_body(cx, &mut scrap) {
                Poll::Ready(Ok(n)) if n > 0 && dropped + n as u64 <= most => dropped += n as u64,
                Poll::Ready(_) => return Poll::Ready(Discarded::Bad),
                Poll::Pending if dropped > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
            if dropped >= FULL as u64 {
                break;
            }
        }
        Poll::Ready(Discarded::Some(dropped))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(transport) = &mut self.transport else { return Poll::Ready(Err(over())) };
        let due = self.incoming.continue_is_asked();
        let before = transport.metered_received();
        let read = self.incoming.poll_body(transport, cx, buf);
        let n = match &read {
            Poll::Ready(Ok(n)) => *n,
            _ => 0,
        };
        self.streak = if n > 0 { self.streak + n } else { 0 };
        // Bytes may have come under a wrapper without making any content yet.
        let came = match (before, transport.metered_received()) {
            (Some(before), Some(after)) => after - before,
            _ => n as u64,
        };
        if came > 0 {
            self.seat.receive(came);
        }
        let activity = &self.seat.activity;
        // While the client takes no output, no byte of the body counts as a move.
        let is_stuck = activity.look().waits_for(Wait::Room);
        match &read {
            Poll::Pending => {
                self.reader = Some(cx.waker().clone());
                activity.wait(Wait::Body, is_stuck);
                if came > 0 && !is_stuck {
                    activity.progress();
                }
                if !due && self.incoming.continue_is_asked() {
                    // The connection's task sends it; the reader may be another.
                    self.seat.wake();
                }
            }
            // A read of the body is progress, whether the bytes are kept or discarded.
            Poll::Ready(_) if activity.look().waits_for(Wait::Body) => activity.got(Wait::Body),
            Poll::Ready(_) if activity.look().doing() == Doing::Discarding && !is_stuck => {
                activity.progress();
            }
            Poll::Ready(_) => {}
        }
        read
    }

    /// Ends a wait for the body that has been too long. From then on every read of the body fails,
    /// unless bytes are there that the reader has not taken, because then the client is not at
    /// fault. Returns the reader's waker, for the caller to wake.
    fn end_wait_for_body(&mut self, cx: &mut Context<'_>) -> Option<Waker> {
        // Only bytes that have not been read count. Bytes in the buffer did not help the reader,
        // because they may be the beginning of a chunk's size line.
        let has_more = match &mut self.transport {
            // Only a read shows what this stream holds. That read's waker replaces the reader's.
            Some(transport) if !transport.has_socket() => {
                let mut reads = (0..LAST_LOOKS).map(|_| self.incoming.poll_fill(transport, cx));
                matches!(reads.find(Poll::is_ready), Some(Poll::Ready(Ok(n))) if n > 0)
            }
            transport => transport.as_ref().is_some_and(|transport| transport.waiting() > 0),
        };
        if has_more {
            self.seat.activity.got(Wait::Body);
            return self.reader.take();
        }
        self.incoming.cut_body(Lost::Wrong(BodyError::TOO_SLOW));
        if let Some(transport) = &self.transport {
            transport.stop_reading();
        }
        // What is no socket does not tell whoever waits for it.
        self.reader.take()
    }
}

impl Describe for Mutex<Wire> {
    fn describe(&self) -> Option<(String, String)> {
        let wire = lock(self);
        let (method, target) = head::request_line(wire.incoming.message())?;
        Some((method.into_owned(), target.into_owned()))
    }
}

/// What a body says that is read after its exchange is over (rule W6: no clean end).
fn over() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the response has ended this request")
}
