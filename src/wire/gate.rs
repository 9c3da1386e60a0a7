//! The gate in front of async-h1: owns a connection's read buffer and admits exactly one
//! well-formed message at a time.
//!
//! Invariant: async-h1 sees one message's body at a time, and never a byte of the next message
//! (rules W1, W2). A [`Gate`] lives while a connection is active, and an idle connection has none
//! (rule W12). The gate sends only what it is given, and does not decide when a connection stops.
//! As the one exception, the gate ends the discarding of a body once idle connections have to end.

mod request_body;
mod respond;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_lite::FutureExt;
use http_types::{Request, StatusCode, upgrade};
use smol::channel;

pub(crate) use respond::Broken;

use super::body::Framing;
use super::head::{self, Bounds, Head};
use super::idle::{Idle, Movable};
use super::incoming::Incoming;
use super::outgoing::Outgoing;
use super::request;
use super::shared::{End, Wire};
use super::upgraded::Upgraded;
use super::watch::Watch;
use crate::limits::Limits;
use crate::stop::activity::Doing;
use crate::stop::orders::Order;
use crate::stop::seat::{Describe, Seat};
use crate::stop::shutdown::Shutdown;
use crate::stream::socket::ClientLeft;
use crate::stream::transport::Transport;

/// The bytes of an active connection, in and out.
pub(crate) struct Gate {
    pub(super) wire: Arc<Wire>,
    pub(crate) seat: Arc<Seat>,
    bounds: Bounds,
    message: Message,
    /// Set if the stream is not a socket.
    is_wrapped: bool,
    /// The bytes to be sent. Responses to pipelined requests gather here (rule W10).
    pub(super) output: Outgoing,
    /// The way in which the connection ends if the gate is dropped now.
    if_dropped: End,
    /// Measures the exchanges, if the server has an observer.
    pub(super) watch: Option<Box<Watch>>,
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

    /// Reads the head. While the head is incomplete, sends the gathered responses, and finds out
    /// whether the connection has to leave, or whether the client has had its time.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        longest_body: u64,
        judged: &mut usize,
    ) -> Poll<Result<Begun, StatusCode>> {
        match self.poll_read_head(cx, longest_body, judged) {
            Poll::Ready(Ok(begun)) => return Poll::Ready(begun),
            Poll::Ready(Err(_)) => {
                self.note_gone();
                return Poll::Ready(Ok(Begun::End));
            }
            Poll::Pending => {}
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

    /// Parses the head that has arrived so far, and reads more until the head is complete.
    ///
    /// `judged` is how many bytes of the head [`head::parse`] has already seen. A client may send a
    /// head byte by byte, and parsing it from its beginning for every byte would be slow.
    ///
    /// # Errors
    ///
    /// Returns the error of the stream. The inner result is that of [`Gate::head`].
    fn poll_read_head(
        &mut self,
        cx: &mut Context<'_>,
        longest_body: u64,
        judged: &mut usize,
    ) -> Poll<io::Result<Result<Begun, StatusCode>>> {
        loop {
            let shared = &mut *self.wire.lock();
            let unread = shared.incoming.unread();
            let is_full = unread.len() >= self.bounds.head_bytes;
            let is_due = is_full || head::may_decide(unread, *judged);
            let parsed = if is_due { head::parse(unread, self.bounds) } else { Ok(None) };
            match parsed {
                Ok(None) => {}
                Ok(Some(Head { framing: Framing::Fixed(length), .. })) if length > longest_body => {
                    return Poll::Ready(Ok(Err(StatusCode::PayloadTooLarge)));
                }
                Ok(Some(head)) => {
                    shared.incoming.begin_message(&head, longest_body);
                    shared.change_body_key();
                    self.message = Message::of(&head);
                    self.seat.activity.go_on(Doing::Handler);
                    return Poll::Ready(Ok(Ok(Begun::Head(head))));
                }
                Err(status) => return Poll::Ready(Ok(Err(status))),
            }
            *judged = unread.len();
            let Some(transport) = &mut shared.transport else {
                return Poll::Ready(Ok(Ok(Begun::End)));
            };
            if ready!(shared.incoming.fill(|room| transport.poll_read(cx, room)))? == 0 {
                // A client may close its side of the connection and still listen.
                let is_cut = shared.incoming.has_request();
                let end = if is_cut { Err(StatusCode::BadRequest) } else { Ok(Begun::End) };
                return Poll::Ready(Ok(end));
            }
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
    /// Returns 400 if the request's host and target do not make a valid URL. [`head::parse`] has
    /// refused every other fault.
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

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
