//! One connection, exchange after exchange: the request loop, and the rules of being idle, lingering
//! and closing.
//!
//! Invariant: a request whose first byte has arrived is finished (rule S8); an idle connection
//! holds its transport and nothing else (rule W12). Whether the server stops, and when, is looked
//! up, never decided here.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_io::Timer;
use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use http_types::{Method, Request, Response, StatusCode, Version};
use log::Level;

use crate::connection::Connection;
use crate::limits::Limits;
use crate::orders::{Order, Orders};
use crate::registry::{Seat, Stage};
use crate::shutdown::Shutdown;
use crate::transport::{Peer, Transport};
use crate::wire::body::Framing;
use crate::wire::buffer::Buffer;
use crate::wire::head::{Bounds, Head};
use crate::wire::response::{Asked, Reply, plain, upgrades};
use crate::wire::{Broken, Gate, LAST_LOOKS, NoHead, is_empty_lines, leave};
use crate::wrapper::Wrapper;

/// A handler, whatever its own type.
pub(crate) type Handler = dyn Fn(Request) -> Pin<Box<dyn Handling>> + Send + Sync;

/// A handler at work on a request: its own future, not another one around it.
pub(crate) trait Handling: Send {
    fn poll_response(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<http_types::Result<Response>>;
}

impl<F, R> Handling for F
where
    F: Future<Output = http_types::Result<R>> + Send,
    R: Into<Response>,
{
    fn poll_response(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<http_types::Result<Response>> {
        self.poll(cx).map_ok(Into::into)
    }
}

/// What all connections of a server share.
pub(crate) struct Service {
    pub(crate) handler: Box<Handler>,
    pub(crate) limits: Limits,
    pub(crate) shutdown: Shutdown,
    /// The server's orders to its connections.
    pub(crate) orders: Arc<Orders>,
}

/// Serves a connection until it ends or everything is aborted.
pub(crate) async fn serve(service: &Service, seat: &Arc<Seat>, transport: Transport) {
    aborted(seat).or(requests(service, seat, transport)).await;
}

/// Serves a connection like [`serve`], after the listener's wrapper has done its part.
pub(crate) async fn serve_wrapped(
    service: &Service,
    seat: &Arc<Seat>,
    transport: Transport,
    wrapper: &Wrapper,
) {
    let served = async {
        if let Some(transport) = wrapped(service, seat, transport, wrapper).await {
            requests(service, seat, transport).await;
        }
    };
    aborted(seat).or(served).await;
}

/// An abort drops the connection where it stands, before it can finish what the outcome names as cut
/// (rule S13); between requests it has a last look first.
fn aborted(seat: &Seat) -> impl Future<Output = ()> {
    poll_fn(|cx| {
        seat.register(cx.waker());
        let between = matches!(seat.stage(), Stage::Accepted | Stage::Idle);
        if seat.order() == Order::Abort && !between { Poll::Ready(()) } else { Poll::Pending }
    })
}

/// Waits for the client's first byte, as for a request's (rule S7), and lets the listener's wrapper
/// do its part (TLS's handshake), within the time for a head. `None` if there is nothing to serve.
async fn wrapped(
    service: &Service,
    seat: &Arc<Seat>,
    mut transport: Transport,
    wrapper: &Wrapper,
) -> Option<Transport> {
    let mut ahead = Vec::new();
    if transport.is_wrapped() {
        // Without a socket only a read can tell.
        let (bytes, n) = first_bytes(seat, &mut transport, true, &mut 0).await?;
        ahead.extend_from_slice(&bytes[..n]);
    }
    let (connection, socket, meter) = Connection::share(transport, seat.peer(), ahead);
    if let Some(socket) = &socket {
        let has_begun = poll_fn(|cx| {
            if seat.order() == Order::Abort {
                return Poll::Ready(false);
            }
            // What is in the socket wins, as in `first_bytes`.
            let readable = socket.poll_readable(cx);
            if readable.is_pending() && seat.stage() == Stage::Accepted {
                seat.enter(Stage::Idle);
            }
            let leave = seat.is_expired() || seat.order() >= Order::LastLook;
            match readable {
                Poll::Pending if leave => Poll::Ready(false),
                readable => readable.map(|readable| readable.is_ok()),
            }
        });
        // A client that leaves without sending anything, as health checks do, has not begun a
        // handshake.
        if !has_begun.await || socket.waiting() == 0 {
            return None;
        }
    }
    seat.enter(Stage::Handshake);
    let handshake = wrapper.wrap(connection);
    let late = poll_fn(|_| match seat.is_expired() {
        true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        false => Poll::Pending,
    });
    let connection = match handshake.or(late).await {
        Ok(connection) => connection,
        Err(error) => {
            wrapper.handshakes.fail(seat.peer(), &error);
            return None;
        }
    };
    if connection.peer() != Peer::Unknown {
        seat.name(connection.peer());
    }
    seat.end();
    let mut transport = connection.into_transport(socket, Some(meter));
    if seat.order() >= Order::Finish {
        // The linger may have been over before there was a connection to send a request on. The
        // wrapper may have read the request already, so the socket does not tell.
        let request = poll_fn(|cx| match seat.order() {
            Order::Abort => Poll::Ready(()),
            _ => transport.poll_ahead(cx),
        });
        let linger = async {
            Timer::after(service.limits.linger).await;
        };
        request.or(linger).await;
    }
    Some(transport)
}

/// Idle, active, idle, active, …
async fn requests(service: &Service, seat: &Arc<Seat>, mut transport: Transport) {
    let mut fresh = true;
    // Bytes of empty lines so far: they count as the head's, however they were cut.
    let mut empty = 0;
    while let Some((bytes, n)) = first_bytes(seat, &mut transport, fresh, &mut empty).await {
        fresh = false;
        // The active phase is a future of its own, dropped when the connection falls idle (W12).
        let gate = Gate::new(transport, bytes, n, seat.clone(), bounds(&service.limits));
        let active = Box::pin(exchanges(service, gate));
        // A handler's panic is answered where it happens; a panic of a response's body ends here.
        match AssertUnwindSafe(active).catch_unwind().await {
            Ok(Some(idle)) => (transport, empty) = idle,
            Ok(None) | Err(_) => return,
        }
    }
    // The close says it: a FIN after the last look (rule S6), or a reset if an abort has left
    // something unread. Only a client that is slow to take what it was sent needs more.
    let is_delivered = transport.undelivered() == 0 && !transport.is_wrapped();
    if !is_delivered && seat.order() < Order::Abort {
        // In a box: it is seldom needed, and would make room in every idle connection.
        Box::pin(leave(transport, seat, true)).await;
    }
}

/// Waits for a request to begin; `None` when the connection is to be closed.
///
/// What is already in the socket wins over every reason to close (rules S6, S7).
async fn first_bytes(
    seat: &Seat,
    transport: &mut Transport,
    fresh: bool,
    empty: &mut usize,
) -> Option<(Buffer, usize)> {
    // A new client has mostly sent its request by now; later, waiting first saves a read.
    let mut look = fresh;
    // A wrapped stream may return `Pending` although it holds data (piper yields at random), so
    // poll it a few more times.
    let mut looks = LAST_LOOKS;
    poll_fn(|cx| {
        loop {
            if seat.order() == Order::Abort {
                // What nobody has read is cut too, and has to be named.
                let asked = has_asked(transport, cx);
                seat.enter(if asked { Stage::Accepted } else { Stage::Idle });
                return Poll::Ready(None);
            }
            let leave = seat.is_expired() || seat.order() >= Order::LastLook;
            if !(look || leave) {
                match transport.poll_event(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(None),
                    Poll::Pending => {
                        // A task that is woken has to look itself.
                        look = true;
                        return Poll::Pending;
                    }
                }
            }
            look = true;
            let mut bytes = Buffer::new();
            bytes[..*empty]
                .iter_mut()
                .zip(b"\r\n".iter().cycle())
                .for_each(|(to, byte)| *to = *byte);
            let room = &mut bytes[*empty..];
            let read = match leave {
                true => transport.poll_last_read(cx, room),
                false => transport.poll_read(cx, room),
            };
            match read {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                // Empty lines are no request yet (RFC 9112 section 2.2).
                Poll::Ready(Ok(n)) if is_empty_lines(&bytes[..*empty + n]) => {
                    *empty += n;
                    continue;
                }
                Poll::Ready(Ok(n)) => return Poll::Ready(Some((bytes, *empty + n))),
                Poll::Pending if leave && transport.is_wrapped() && looks > 1 => {
                    looks -= 1;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // Under a wrapper, a part of a request has arrived that does not make a byte yet
                // (rules S6, S8).
                Poll::Pending if transport.has_begun() => {
                    if seat.stage() != Stage::Head {
                        seat.begin(None);
                    } else if seat.is_expired() {
                        return Poll::Ready(None);
                    }
                    return Poll::Pending;
                }
                // That was the last look.
                Poll::Pending if leave => return Poll::Ready(None),
                Poll::Pending => {}
            }
            // TLS sends records of its own, so a record may end without a byte of a request.
            if matches!(seat.stage(), Stage::Accepted | Stage::Head) {
                seat.enter(Stage::Idle);
            }
            // The read has left its waker.
            return Poll::Pending;
        }
    })
    .await
}

/// Returns `true` if the client has sent a part of a request that the server will not read any
/// more.
fn has_asked(transport: &mut Transport, cx: &mut Context<'_>) -> bool {
    if !transport.is_wrapped() {
        return transport.waiting() > 0;
    }
    let mut bytes = Buffer::new();
    // A wrapped stream may return `Pending` although it holds data, so poll it a few more times.
    let mut reads = (0..LAST_LOOKS).map(|_| transport.poll_last_read(cx, &mut bytes));
    match reads.find(Poll::is_ready) {
        Some(Poll::Ready(read)) => read.is_ok_and(|n| !is_empty_lines(&bytes[..n])),
        _ => transport.has_begun(),
    }
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds { head_bytes: limits.head_bytes, headers: limits.headers }
}

/// Request after request, until nothing more has arrived: then the transport comes back, and how
/// many bytes of empty lines have. `None` when the connection has ended.
#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its arguments twice")]
fn exchanges(
    service: &Service,
    mut gate: Gate,
) -> impl Future<Output = Option<(Transport, usize)>> + Send {
    async move {
        // In the drain: how much of what had arrived when the connection took note of it is left.
        let mut owed = None;
        for turn in 1_usize.. {
            if turn % 32 == 0 {
                // A client that pipelines without end must not keep others from their turn.
                yield_now().await;
            }
            let at_rest = match exchange(service, &mut gate, &mut owed).await {
                Next::Exchange => continue,
                Next::Idle => return gate.into_transport(),
                Next::Refuse(asked, status) => {
                    refuse(&mut gate, asked, status).await.ok()?;
                    false
                }
                Next::Close { at_rest } => at_rest,
                Next::Upgrade(asked, switching) => {
                    Box::pin(upgrade(&mut gate, *switching, asked)).await;
                    false
                }
                Next::End => return None,
            };
            gate.close(at_rest).await;
            break;
        }
        None
    }
}

/// What comes behind an exchange.
enum Next {
    /// Another one.
    Exchange,
    /// Nothing more has arrived.
    Idle,
    /// The client gets this status instead of a handler's response, and the connection ends.
    Refuse(Asked, StatusCode),
    /// The connection is handed over to another protocol by this response.
    Upgrade(Asked, Box<Response>),
    /// The connection ends; `at_rest` if the client owes nothing and has sent nothing more.
    Close { at_rest: bool },
    /// The connection has ended.
    End,
}

/// One request and its response.
async fn exchange(service: &Service, gate: &mut Gate, owed: &mut Option<u64>) -> Next {
    let limits = &service.limits;
    let longest_body = limits.body_bytes.unwrap_or(u64::MAX);
    let head = match gate.head(longest_body).await {
        Ok(head) => head,
        Err(NoHead::Closed) => return Next::End,
        Err(NoHead::Refused(status)) => return Next::Refuse(presumably_asked(gate), status),
    };
    let asked = Asked::by(&head);
    if matches!(head.framing, Framing::Fixed(length) if length > longest_body) {
        return Next::Refuse(asked, StatusCode::PayloadTooLarge);
    }
    let answer = match ask(service, gate, &head) {
        Ok(answer) => answer,
        Err(status) => return Next::Refuse(asked, status),
    };
    let answered = async { Some(answer.await) };
    let gone = async {
        gate.tend().await;
        None
    };
    let Some(answered) = answered.or(gone).await else {
        gate.reset();
        return Next::End;
    };
    let mut reply = match prepare(service, gate, &head, answered).await {
        Prepared::Reply(reply) => reply,
        Prepared::Upgrade(switching) => return Next::Upgrade(asked, switching),
        Prepared::Refuse(status) => return Next::Refuse(asked, status),
    };

    // The client's wish, the response, the cost and the use of the body, and the stop all count
    // (rules W8, W9, S9). The response announces the decision, so nothing later changes it.
    let keep = head.keep_alive
        && reply.allows_another()
        && can_get_past_body(gate, &mut reply, limits.discard_bytes).await
        && !(gate.order() >= Order::Finish && is_last(gate, owed).await);
    if !keep {
        reply.announce_close();
    }
    match gate.respond(&mut reply).await {
        Ok(()) => {}
        Err(Broken::Unseen) => {
            let status = gate.fault().unwrap_or(StatusCode::InternalServerError);
            return Next::Refuse(asked, status);
        }
        Err(Broken::Seen) => {
            gate.reset();
            return Next::End;
        }
    }
    if gate.order() >= Order::Finish {
        if gate.flush().await.is_err() {
            return Next::End;
        }
        service.shutdown.finished();
    }
    if !keep {
        return Next::Close { at_rest: gate.body_is_taken() && !gate.has_input() };
    }
    // The client has its answer, and is not waited for longer than an idle one (rule S6).
    if !(gate.body_is_taken() || gate.discard_body().await) {
        return Next::Close { at_rest: false };
    }
    if gate.has_input() || owed.is_some() {
        return Next::Exchange;
    }
    match gate.flush().await {
        Ok(()) => Next::Idle,
        Err(_) => Next::End,
    }
}

/// Returns `true` if the connection can go on behind the request's body, read or not (rules W9, S23). The
/// response then promises keep-alive, so the connection goes on whatever the rest of the body is.
async fn can_get_past_body(gate: &mut Gate, reply: &mut Reply, discard: u64) -> bool {
    if gate.body_is_taken() {
        return true;
    }
    if gate.body_is_held() && reply.has_body() {
        // A response that is made of the body reads the whole body, however long it is. Another
        // holder of the body may still read it, so nothing is discarded before the response has
        // been sent.
        return gate.feeds(reply).await || gate.can_discard(discard);
    }
    gate.can_discard(discard) && gate.discard_arrived(discard).await
}

/// Whether the response that is about to be sent is the connection's last one, in the drain.
///
/// It is, unless bytes of a further request had arrived when the connection took note of the stop:
/// such a request is finished too, and the close is announced with its response (rules S8, S9).
/// What arrives later does not prolong the connection.
async fn is_last(gate: &Gate, owed: &mut Option<u64>) -> bool {
    if !gate.body_is_taken() {
        return true;
    }
    let waiting = gate.waiting().await;
    let left = match owed {
        None => waiting,
        Some(before) => waiting.min(before.saturating_sub(gate.taken())),
    };
    *owed = Some(left);
    left == 0
}

/// Answers a request that reaches no handler; the connection ends with it (rule W4).
async fn refuse(gate: &mut Gate, asked: Asked, status: StatusCode) -> Result<(), Broken> {
    let (method, path) = gate.describe();
    log::debug!("{} {method} {path}: refused with {status}", gate.peer());
    let mut reply = Reply::new(plain(status), asked);
    reply.announce_close();
    gate.respond(&mut reply).await
}

/// The server's next step with a handler's answer.
#[expect(clippy::large_enum_variant, reason = "it is moved once, and most are replies")]
enum Prepared {
    /// The server sends the reply.
    Reply(Reply),
    /// The response hands the connection over to another protocol.
    Upgrade(Box<Response>),
    /// The client gets this status instead.
    Refuse(StatusCode),
}

async fn prepare(
    service: &Service,
    gate: &mut Gate,
    head: &Head,
    answered: Result<Response, Failure>,
) -> Prepared {
    let panicked = matches!(answered, Err(Failure::Panic));
    let response = answered.unwrap_or_else(|failure| apology(gate, &failure));
    let response = answer_fault(gate, response);
    if upgrades(&response) {
        let problem = if !head.upgrade {
            "it did not ask for that (on HTTP/1.1, with Connection: upgrade)"
        } else if !is_rid_of_body(service, gate).await {
            "its body is not to be had"
        } else {
            return Prepared::Upgrade(Box::new(response));
        };
        let (peer, (method, path)) = (gate.peer(), gate.describe());
        log::warn!("{peer} {method} {path}: the handler has upgraded the request, but {problem}");
        return Prepared::Refuse(StatusCode::BadRequest);
    }
    let mut reply = Reply::new(response, Asked::by(head));
    if panicked {
        reply.announce_close();
    }
    Prepared::Reply(reply)
}

/// Discards the body, because the other protocol begins behind it (RFC 9110 section 7.8). Returns
/// `false` if the body cannot be discarded.
async fn is_rid_of_body(service: &Service, gate: &mut Gate) -> bool {
    let discard = service.limits.discard_bytes;
    gate.body_is_taken()
        || gate.can_discard(discard)
            && gate.discard_arrived(discard).await
            && gate.discard_body().await
}

/// Hands the connection over to another protocol, until that has ended (rule S11).
async fn upgrade(gate: &mut Gate, mut response: Response, asked: Asked) {
    let stream = response.send_upgrade();
    let mut reply = Reply::new(response, asked);
    if gate.respond(&mut reply).await.is_ok() && gate.flush().await.is_ok() {
        gate.upgrade(stream).await;
    }
}

/// A request whose head could not be read is answered as HTTP/1.1 (RFC 9110 section 6.2), and
/// without a body if it may have been HEAD (section 9.3.2).
fn presumably_asked(gate: &Gate) -> Asked {
    let is_head = gate.describe().0 == Method::Head.as_ref();
    let method = if is_head { Method::Head } else { Method::Get };
    Asked { method, version: Version::Http1_1, accepts_trailers: false }
}

/// Why there is no response.
enum Failure {
    Error(http_types::Error),
    Panic,
}

/// The response for a request whose handler had none.
fn apology(gate: &Gate, failure: &Failure) -> Response {
    let (peer, (method, path)) = (gate.peer(), gate.describe());
    match failure {
        // If the client got its body wrong, the error is the client's.
        Failure::Error(error) => {
            let status = gate.fault().unwrap_or(error.status());
            // Clients must not fill the log with their own faults.
            let level = if status.is_server_error() { Level::Warn } else { Level::Debug };
            log::log!(level, "{peer} {method} {path}: {status}: {error}");
            plain(status)
        }
        Failure::Panic => {
            log::error!("{peer} {method} {path}: the handler has panicked");
            plain(StatusCode::InternalServerError)
        }
    }
}

/// Puts the status of the client's fault in the place of a response that does not know it (rule
/// W16).
///
/// Many programs answer 500 to every error that they do not know, or take the status from
/// http-types, which calls every body that it could not read 422.
fn answer_fault(gate: &Gate, response: Response) -> Response {
    let answered = response.status();
    let is_unaware = answered.is_server_error() || answered == StatusCode::UnprocessableEntity;
    match gate.fault() {
        Some(status) if is_unaware => {
            let (peer, (method, path)) = (gate.peer(), gate.describe());
            log::debug!("{peer} {method} {path}: {status} for its body, instead of {answered}");
            plain(status)
        }
        _ => response,
    }
}

/// Calls the handler with the message. Its panic ends here, be it now or later (rule S17).
///
/// # Errors
///
/// 400 if no URL says what the client has asked for.
fn ask(
    service: &Service,
    gate: &Gate,
    head: &Head,
) -> Result<impl Future<Output = Result<Response, Failure>> + use<>, StatusCode> {
    let mut request = gate.request(head)?;
    gate.peer().sign(&mut request);
    request.ext_mut().insert(service.shutdown.token_for(gate.call()));
    let called = panic::catch_unwind(AssertUnwindSafe(|| (service.handler)(request)));
    Ok(async {
        // The panic hook has said where.
        let mut handling = called.map_err(|_| Failure::Panic)?;
        let handled = poll_fn(|cx| handling.as_mut().poll_response(cx));
        let handled = AssertUnwindSafe(handled).catch_unwind();
        handled.await.map_err(|_| Failure::Panic)?.map_err(Failure::Error)
    })
}
