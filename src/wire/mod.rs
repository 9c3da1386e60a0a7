//! The gate in front of async-h1: owns a connection's read buffer and admits exactly one
//! well-formed message at a time.
//!
//! Invariant: async-h1 sees one message's body at a time, and never a byte of the next message
//! (rules W1, W2). A [`Gate`] lives while a connection is active, and an idle connection has none
//! (rule W12). The gate sends only what it is given, and does not decide when a connection stops.
//! The gate only ends the discarding of a body once idle connections have to end.

pub(crate) mod asked;
pub(crate) mod body;
pub(crate) mod buffer;
pub(crate) mod fault;
mod field;
pub(crate) mod head;
mod idle;
mod incoming;
mod outgoing;
mod request;
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

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use http_types::{Request, StatusCode, upgrade};
use log::Level;
use smol::channel;

use crate::limits::Limits;
use crate::observe::ExchangeEnding;
use crate::stop::activity::{Doing, Wait};
use crate::stop::orders::Order;
use crate::stop::seat::{Describe, Seat};
use crate::stop::shutdown::Shutdown;
use crate::stream::socket::ClientLeft;
use crate::stream::transport::Transport;
use body::Framing;
use head::{Bounds, Head};
pub(crate) use idle::{Idle, Movable};
pub(crate) use incoming::{Incoming, Rest};
use outgoing::Outgoing;
use response::{Filled, Reply};
use shared::{Discarded, End, Wire};
use upgraded::Upgraded;
pub(crate) use watch::OpenExchange;
use watch::Watch;

/// The bytes of an active connection, in and out.
pub(crate) struct Gate {
    wire: Arc<Wire>,
    pub(crate) seat: Arc<Seat>,
    bounds: Bounds,
    message: Message,
    /// Set if the stream is not a socket.
    is_wrapped: bool,
    /// The bytes to be sent. Responses to pipelined requests gather here (rule W10).
    output: Outgoing,
    /// The way in which the connection ends if the gate is dropped now.
    if_dropped: End,
    /// Measures the exchanges, if the server has an observer.
    watch: Option<Box<Watch>>,
}

/// The message under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    /// No head has arrived since the last message.
    None,
    /// The message has no body, so the gate need not ask the wire about it. Most messages have no
    /// body, and take the lock of the wire only a few times.
    Bodiless,
    /// The message has a body.
    WithBody,
}

impl Message {
    fn of(head: &Head) -> Self {
        if head.framing.has_body() { Self::WithBody } else { Self::Bodiless }
    }
}

/// A response that could not be sent whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client may have seen a part of the response, so no other response can follow.
    Seen,
    /// No byte of the response was sent, so another response can take its place.
    Unseen,
    /// The body of the response was silent in the drain for too long (rule S27). In all else, this
    /// is like `Seen`.
    Silent,
}

/// The next step of a connection that waits for a head.
pub(crate) enum Begun {
    /// The head has arrived.
    Head(Head),
    /// The connection has to go to the successor with what has arrived (rule S8).
    Leave,
    /// The client has closed, or is gone.
    End,
}

impl Gate {
    /// Takes over a connection whose client has begun a request.
    pub(crate) fn new(
        transport: Transport,
        incoming: Incoming,
        seat: Arc<Seat>,
        bounds: Bounds,
    ) -> Self {
        Self {
            is_wrapped: transport.is_wrapped(),
            wire: Wire::new(transport, incoming, seat.clone()),
            seat,
            bounds,
            message: Message::None,
            output: Outgoing::default(),
            if_dropped: End::Close,
            watch: None,
        }
    }

    // ── The request ─────────────────────────────────────────────────────────────────────────

    /// Waits for the head of the next message.
    ///
    /// # Errors
    ///
    /// Returns the status with which the server has to answer the head.
    pub(crate) async fn head(&mut self, longest_body: u64) -> Result<Begun, StatusCode> {
        if mem::replace(&mut self.message, Message::None) != Message::None {
            self.wire.lock().incoming.finish_message();
        }
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
    ) -> Poll<Result<Begun, StatusCode>> {
        let has_failed = loop {
            let shared = &mut *self.wire.lock();
            let unread = shared.incoming.unread();
            let is_full = unread.len() >= self.bounds.head_bytes;
            if is_full || head::may_decide(unread, *judged) {
                if let Some(head) = head::parse(unread, self.bounds)? {
                    if matches!(head.framing, Framing::Fixed(length) if length > longest_body) {
                        return Poll::Ready(Err(StatusCode::PayloadTooLarge));
                    }
                    shared.incoming.begin_message(&head, longest_body);
                    shared.change_body_key();
                    self.message = Message::of(&head);
                    self.seat.activity.go_on(Doing::Handler);
                    return Poll::Ready(Ok(Begun::Head(head)));
                }
            }
            *judged = unread.len();
            let Some(transport) = &mut shared.transport else {
                return Poll::Ready(Ok(Begun::End));
            };
            match shared.incoming.fill(|room| transport.poll_read(cx, room)) {
                // A client may close its side of the connection and still listen.
                Poll::Ready(Ok(0)) if shared.incoming.has_request() => {
                    return Poll::Ready(Err(StatusCode::BadRequest));
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Begun::End)),
                Poll::Ready(Err(_)) => break true,
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break false,
            }
        };
        if has_failed {
            self.note_gone();
            return Poll::Ready(Ok(Begun::End));
        }
        if self.seat.is_expired() {
            return Poll::Ready(Err(StatusCode::RequestTimeout));
        }
        // The client may wait for the gathered responses before it sends the rest of this head.
        match self.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Ok(Begun::End)),
            Poll::Ready(Ok(())) if self.is_to_leave() => Poll::Ready(Ok(Begun::Leave)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// Returns `true` if the connection has to go to the successor, and the bytes that were read
    /// from it fit into a batch. The caller first sends the responses that were gathered.
    pub(crate) fn is_to_leave(&self) -> bool {
        self.seat.order() == Order::Leave
            && self.wire.lock().incoming.unread().len() <= Limits::MOST_AHEAD
    }

    /// Makes the request that the handler gets, with the token of `shutdown`.
    ///
    /// # Errors
    ///
    /// Returns 400 if no URL says what the client has asked for. [`head::parse`] has refused every
    /// other fault.
    pub(crate) fn request(&self, head: &Head, shutdown: &Shutdown) -> Result<Request, StatusCode> {
        let scheme = if self.seat.is_https() { "https" } else { "http" };
        let mut request = request::request(head, &self.wire, scheme)?;
        let shared = self.wire.lock();
        request::set_addresses(&mut request, &self.seat, shared.transport.as_ref());
        // The server is about to call the request's handler.
        let target = head.target(shared.incoming.message());
        request.ext_mut().insert(shutdown.attached(self.seat.call(), target));
        Ok(request)
    }

    /// Returns method and target of the message under way.
    pub(crate) fn request_line(&self) -> (String, String) {
        self.wire.request_line()
    }

    /// Returns peer, method and target as the beginning of a log line.
    pub(crate) fn label(&self) -> String {
        let (method, target) = self.request_line();
        format!("{} {method} {target}", self.seat.peer())
    }

    // ── Its body ────────────────────────────────────────────────────────────────────────────

    fn has_body(&self) -> bool {
        self.message == Message::WithBody
    }

    /// Returns what is left of the message's body.
    pub(crate) fn rest(&self) -> Rest {
        if self.has_body() { self.wire.lock().incoming.rest() } else { Rest::Nothing }
    }

    /// Returns the status for a body that the client got wrong, and `None` for every other body.
    pub(crate) fn fault(&self) -> Option<StatusCode> {
        if self.has_body() { self.wire.lock().incoming.fault() } else { None }
    }

    /// Returns `true` if the request's owner still holds the body, so the response's body may be
    /// made of it.
    pub(crate) fn body_is_held(&self) -> bool {
        Arc::strong_count(&self.wire) > 1
    }

    /// Polls the body of `reply` for its first bytes. Returns `true` if this poll has read the
    /// request's body, because the response's body is then made of it.
    ///
    /// The result is also `true` if another task reads the request's body at the same moment.
    pub(crate) async fn begin_body(&mut self, reply: &mut Reply) -> bool {
        let before = self.wire.lock().reads;
        let begun = poll_fn(|cx| {
            reply.poll_begin(cx);
            Poll::Ready(())
        });
        if AssertUnwindSafe(begun).catch_unwind().await.is_err() {
            self.note(|open| open.ends_as(ExchangeEnding::Panicked));
            // `respond` ends the response (rule S17), and does not poll this body again, because a
            // stream may go on behind the item that has panicked, and would then look whole.
            reply.fail(io::Error::other("it has panicked"));
        }
        // The client may hold back its first byte until it gets `100 Continue`.
        self.say_continue();
        self.wire.lock().reads != before
    }

    /// Reads and drops the rest of the body. Returns `false` if the body is malformed or cut short,
    /// if the client is gone, or if the server wants idle connections to end before the body has
    /// ended.
    ///
    /// The server has sent the response by now, so nobody waits for the rest, and the drain may cut
    /// the discarding short. The response has promised that the connection goes on, so the body may
    /// be of any length.
    pub(crate) async fn discard_body(&mut self) -> bool {
        if !self.has_body() || !self.wire.revoke_body() {
            return true;
        }
        self.wire.lock().incoming.lift_bound();
        self.seat.activity.go_on(Doing::Discarding);
        let mut most = u64::MAX;
        poll_fn(|cx| {
            let discarded = self.wire.lock().poll_discard(cx, &mut most);
            match discarded {
                Poll::Ready(Discarded::Whole) => Poll::Ready(true),
                Poll::Ready(Discarded::Bad) => Poll::Ready(false),
                _ if self.seat.order() >= Order::LastLook => Poll::Ready(false),
                Poll::Ready(Discarded::Part) | Poll::Pending => self.poll_tend(cx).map(|()| false),
            }
        })
        .await
    }

    /// Reads and drops at most `most` bytes of the body that have already arrived.
    ///
    /// Returns `true` if the body is complete, or if its rest is not known to be malformed or
    /// longer than what is left of `most`.
    pub(crate) async fn discard_arrived(&mut self, mut most: u64) -> bool {
        if !self.rest().is_at_most(most) {
            return false;
        }
        if !self.wire.revoke_body() {
            return true;
        }
        poll_fn(|cx| {
            let discarded = self.wire.lock().poll_discard_arrived(cx, &mut most);
            match discarded {
                Poll::Ready(Discarded::Whole) => Poll::Ready(true),
                Poll::Ready(Discarded::Bad) => Poll::Ready(false),
                Poll::Ready(Discarded::Part) => Poll::Pending,
                Poll::Pending => Poll::Ready(self.rest().is_at_most(most)),
            }
        })
        .await
    }

    /// Finds out how many bytes have arrived behind the message, and reads them only if nothing
    /// else shows whether they are more than empty lines. Returns 0 for the empty lines that are
    /// tolerated, and at least 1 if a part of a request has arrived. The caller must have taken the
    /// message whole.
    pub(crate) fn read_ahead(&self) -> u64 {
        self.wire.lock().read_ahead()
    }

    /// Returns how many bytes of the message were taken from the connection, head included.
    pub(crate) fn taken(&self) -> u64 {
        self.wire.lock().incoming.taken()
    }

    /// Returns `true` if bytes of a next message have been read.
    pub(crate) fn has_input(&self) -> bool {
        self.wire.lock().incoming.has_request()
    }

    // ── While the handler runs ──────────────────────────────────────────────────────────────

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
            let is_open = self.wire.lock().transport.is_some();
            if is_open && (gone || self.poll_tend(cx).is_ready()) {
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
    fn answer_sweep(&mut self) -> bool {
        if !self.seat.take_asked() {
            return false;
        }
        let left =
            self.wire.lock().transport.as_ref().map_or(Some(ClientLeft::Gone), Transport::left);
        if let Some(left) = left {
            self.seat.client_left(left);
        }
        let is_gone = left == Some(ClientLeft::Gone);
        if is_gone {
            self.note_gone();
        }
        is_gone
    }

    /// Appends `100 Continue` to the output if a reader waits for a body that the client sends only
    /// then.
    fn say_continue(&mut self) {
        if self.takes_continue() {
            self.output.append(CONTINUE);
        }
    }

    /// Returns `true`, once, if the caller has to send `100 Continue`.
    fn takes_continue(&self) -> bool {
        self.has_body() && self.wire.lock().incoming.take_continue()
    }

    /// Ends a wait for the body that has been too long, and sends pending output. Returns `Ready`
    /// if the client is gone or takes nothing.
    fn poll_tend(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.seat.is_expired() && self.seat.stage().waits_for_body() {
            self.wire.lock().end_wait_for_body(cx);
            self.wire.wake();
        }
        match self.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Pending if self.seat.is_expired() => {
                self.note_gone();
                Poll::Ready(())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    // ── The response ────────────────────────────────────────────────────────────────────────

    /// Encodes a response and sends what does not fit into the buffer. [`Gate::flush`] sends the
    /// rest, together with the next response (rule W10).
    ///
    /// # Errors
    ///
    /// Returns [`Broken`] if the response's body fails, or if the client is gone, even while the
    /// body is pending (rule S22).
    pub(crate) async fn respond(&mut self, reply: &mut Reply) -> Result<(), Broken> {
        self.seat.activity.go_on(Doing::Response);
        self.note(|open| open.responds(reply.status()));
        self.forget_wait_for_body();
        if self.is_wrapped {
            // A wrapped stream may hold back bytes until a flush, so the body goes through the
            // buffer.
            reply.gather();
        }
        // If the body ends with the connection, an early end would make a part of the response look
        // whole.
        let is_open_ended = reply.ends_with_connection();
        self.if_dropped = if is_open_ended { End::Reset } else { End::Close };
        self.output.begin_message();
        // A panic of the response's body ends the response like any other failure (rule S17).
        let sent = AssertUnwindSafe(self.send(reply)).catch_unwind().await;
        sent.unwrap_or_else(|_| {
            self.note(|open| open.ends_as(ExchangeEnding::Panicked));
            Err(self.take_back())
        })?;
        if is_open_ended {
            self.flush().await?;
            self.if_dropped = End::Close;
        }
        Ok(())
    }

    async fn send(&mut self, reply: &mut Reply) -> Result<(), Broken> {
        loop {
            if self.output.len() >= FULL {
                self.flush().await?;
                self.give_way().await?;
            }
            match self.fill(reply).await? {
                Filled::More => {}
                Filled::Whole => return Ok(()),
                Filled::Slice => {
                    if self.flushed(|gate, cx| gate.poll_send_slice(cx, reply)).await? {
                        return Ok(());
                    }
                    self.give_way().await?;
                }
            }
        }
    }

    /// Gives other tasks their turn, because a fast client may never make this task wait.
    async fn give_way(&mut self) -> Result<(), Broken> {
        yield_now().await;
        if self.answer_sweep() { Err(Broken::Seen) } else { Ok(()) }
    }

    /// Adds some of the response to the output, and tends the connection while the response's body
    /// is pending.
    async fn fill(&mut self, reply: &mut Reply) -> Result<Filled, Broken> {
        poll_fn(|cx| {
            let filled = reply.poll_fill(cx, &mut self.output);
            // The body of the response is made of the request's body, which the client sends only
            // after `100 Continue`. `100 Continue` has to come before the final response (rule W7).
            if self.takes_continue() {
                self.output.put_before_message(CONTINUE);
            }
            match filled {
                Poll::Ready(Ok(filled)) => Poll::Ready(Ok(filled)),
                Poll::Ready(Err(error)) => {
                    // A response that is made of the request's body fails with that body. A
                    // client's fault has a lower level, so that clients cannot fill the log.
                    let is_clients = self.has_body() && self.wire.lock().incoming.is_cut();
                    let level = if is_clients { Level::Debug } else { Level::Warn };
                    log::log!(level, "{}: the response's body: {error}", self.label());
                    Poll::Ready(Err(self.take_back()))
                }
                Poll::Pending if self.answer_sweep() => Poll::Ready(Err(Broken::Seen)),
                Poll::Pending if self.is_silent() => Poll::Ready(Err(Broken::Silent)),
                Poll::Pending => self.poll_tend(cx).map(|()| Err(Broken::Seen)),
            }
        })
        .await
    }

    /// Returns `true` if a stream has been silent in the drain for too long (rule S27). No other
    /// limit holds in these stages.
    fn is_silent(&self) -> bool {
        self.seat.is_expired() && self.seat.stage().is_stream()
    }

    /// Removes the response under way from the output, if that is still possible.
    fn take_back(&mut self) -> Broken {
        if self.output.take_back_message() { Broken::Unseen } else { Broken::Seen }
    }

    /// Ends a wait for the body, because its reader may be gone: a handler may have stopped
    /// waiting, and the gate itself discards only what has arrived. Without this, the client would
    /// have to send a body that nobody reads. A reader that still waits is woken, and begins a new
    /// wait.
    fn forget_wait_for_body(&self) {
        if self.seat.activity.look().waits_for(Wait::Body) {
            self.seat.activity.got(Wait::Body);
            self.wire.wake();
        }
    }

    /// Sends everything, unless the client is gone (rule S22).
    pub(crate) async fn flush(&mut self) -> Result<(), Broken> {
        self.flushed(Self::poll_flush).await
    }

    /// Waits until `send` has sent something, unless the client is gone (rule S22) or takes
    /// nothing.
    async fn flushed<T>(
        &mut self,
        mut send: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Result<T, Broken> {
        poll_fn(|cx| match send(self, cx) {
            Poll::Pending if self.seat.is_expired() || self.answer_sweep() => {
                self.note_gone();
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

    /// Sends the whole output, and behind it a part of the body from where the body lies in memory.
    /// Returns `true` if the body is then complete.
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
        let sent = match &mut self.wire.lock().transport {
            Some(transport) => self.output.poll_send(transport, &self.seat, cx, tail),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        if matches!(sent, Poll::Ready(Err(_))) {
            self.note_gone();
        }
        self.note_sent();
        sent
    }

    // ── The end ─────────────────────────────────────────────────────────────────────────────

    /// Hands the raw stream to the task that waits for it. Returns `false` when that task has
    /// dropped the stream (rule S11) or the client is gone (rule S22). Returns `true` when the
    /// stream has been silent in the drain for too long (rule S27). Later reads and writes of the
    /// task fail.
    pub(crate) async fn upgrade(&mut self, to: upgrade::Sender) -> bool {
        self.seat.activity.begin(Doing::Upgraded);
        self.if_dropped = End::ShutDown;
        let (open, closed) = channel::bounded::<Infallible>(1);
        let stream = Upgraded { wire: self.wire.clone(), _open: open };
        to.send(upgrade::Connection::new(stream)).await;
        // Nothing is ever sent, so this channel closes when the stream is dropped.
        let dropped = async {
            let _ = closed.recv().await;
            false
        };
        let gone = poll_fn(|_| {
            if self.answer_sweep() && self.wire.lock().has_nothing_to_read() {
                Poll::Ready(false)
            } else if self.is_silent() {
                Poll::Ready(true)
            } else {
                Poll::Pending
            }
        });
        dropped.or(gone).await
    }

    /// Makes the connection idle (rule W12). Returns `None` if the connection has ended.
    pub(crate) fn into_idle(self) -> Option<Idle> {
        self.seat.fall_idle();
        let mut shared = self.wire.lock();
        let transport = shared.transport.take()?;
        Some(Idle::behind(&shared.incoming, transport))
    }

    /// Returns the connection with what was read behind the last message. Returns `None` if the
    /// connection has ended. Does not send pending output (see [`Gate::flush`]).
    pub(crate) fn into_movable(self) -> Option<Movable> {
        let mut shared = self.wire.lock();
        let transport = shared.transport.take()?;
        Some(Movable { transport, ahead: shared.incoming.unread().to_vec() })
    }

    /// Returns the transport, so that the caller can end the connection. Does not send pending
    /// output (see [`Gate::flush`]).
    pub(crate) fn take_transport(self) -> Option<Transport> {
        self.wire.lock().transport.take()
    }

    /// Ends the connection with a reset, so that the client cannot take a part of the response for
    /// the whole. A task that still reads the body gets an error.
    pub(crate) fn reset(&self) {
        self.wire.end(End::Reset);
    }
}

impl Drop for Gate {
    /// Ends the connection, because a body that the handler has kept must not keep the socket open.
    fn drop(&mut self) {
        self.wire.end(self.if_dropped);
        self.report_rest();
    }
}

/// The number of bytes that the gate gathers before it sends them.
const FULL: usize = 64 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
