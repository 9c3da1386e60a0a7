//! One connection, exchange after exchange: the request loop, and the rules of being idle, lingering
//! and closing.
//!
//! Invariant: a request whose first byte has arrived is finished (rule S8); an idle connection
//! holds its transport and nothing else (rule W12). Whether the server stops, and when, is looked
//! up, never decided here.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use async_io::Timer;
use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use http_types::{Method, Request, Response, StatusCode, Version};
use log::Level;

use crate::connection::Connection;
use crate::limits::Limits;
use crate::listener::Wrap;
use crate::registry::{Seat, Stage};
use crate::shutdown::{Phase, Shutdown};
use crate::transport::{Transport, Wrapped};
use crate::wire::buffer::Buffer;
use crate::wire::head::Bounds;
use crate::wire::response::{
    Asked, Reply, asks_to_close, ends_with_connection, has_body, plain, upgrades,
};
use crate::wire::{Broken, Gate, LAST_LOOKS, NoHead, is_empty_lines, leave};

/// A handler, whatever its own type.
pub(crate) type Handler = dyn Fn(Request) -> Pin<Box<dyn Future<Output = http_types::Result<Response>> + Send>>
    + Send
    + Sync;

/// What all connections of a server share.
pub(crate) struct Service {
    pub(crate) handler: Box<Handler>,
    pub(crate) limits: Limits,
    pub(crate) shutdown: Shutdown,
    /// The time for idle connections is over (rule S6).
    pub(crate) linger_is_over: AtomicBool,
    /// The server itself was dropped.
    pub(crate) is_gone: AtomicBool,
}

impl Service {
    fn is_draining(&self) -> bool {
        self.shutdown.phase() >= Phase::Draining
    }

    fn is_aborting(&self) -> bool {
        self.shutdown.phase() == Phase::Aborting || self.is_gone.load(Ordering::Acquire)
    }
}

/// Serves a connection until it ends or everything is aborted.
pub(crate) async fn serve(service: &Service, seat: &Arc<Seat>, transport: Transport) {
    aborted(service, seat).or(requests(service, seat, transport)).await;
}

/// The same for one that is wrapped first.
pub(crate) async fn serve_wrapped(
    service: &Service,
    seat: &Arc<Seat>,
    transport: Transport,
    wrap: &Wrap,
) {
    let served = async {
        if let Some(transport) = wrapped(service, seat, transport, wrap).await {
            requests(service, seat, transport).await;
        }
    };
    aborted(service, seat).or(served).await;
}

/// An abort drops the connection where it stands, before it can finish what the outcome names as cut
/// (rule S13); between requests it has a last look first.
fn aborted(service: &Service, seat: &Seat) -> impl Future<Output = ()> {
    poll_fn(|cx| {
        seat.register(cx.waker());
        let between = matches!(seat.stage(), Stage::Accepted | Stage::Idle);
        if service.is_aborting() && !between { Poll::Ready(()) } else { Poll::Pending }
    })
}

/// Waits for the client's first byte, as for a request's (rule S7), and lets the listener's wrapper
/// do its part (TLS's handshake), within the time for a head. `None` if there is nothing to serve.
async fn wrapped(
    service: &Service,
    seat: &Arc<Seat>,
    mut transport: Transport,
    wrap: &Wrap,
) -> Option<Transport> {
    let mut ahead = Vec::new();
    if transport.is_wrapped() {
        // Without a socket only a read can tell.
        let (bytes, n) = first_bytes(service, seat, &mut transport, true, &mut 0).await?;
        ahead.extend_from_slice(&bytes[..n]);
    }
    let (connection, socket) = Connection::share(transport, seat.peer, ahead);
    if let Some(socket) = &socket {
        let has_begun = poll_fn(|cx| {
            if service.is_aborting() {
                return Poll::Ready(false);
            }
            // What is in the socket wins, as in `first_bytes`.
            let readable = socket.poll_readable(cx);
            if readable.is_pending() && seat.stage() == Stage::Accepted {
                seat.enter(Stage::Idle);
            }
            let leave = seat.is_expired() || service.linger_is_over.load(Ordering::Acquire);
            match readable {
                Poll::Pending if leave => Poll::Ready(false),
                readable => readable.map(|readable| readable.is_ok()),
            }
        });
        if !has_begun.await {
            return None;
        }
    }
    seat.enter(Stage::Handshake);
    let handshake = async {
        // A wrapper's panic ends its connection and nothing else.
        let wrapped = AssertUnwindSafe(async { wrap(connection).await }).catch_unwind().await;
        wrapped.unwrap_or_else(|_| Err(io::Error::other("the wrapper has panicked")))
    };
    let late = poll_fn(|_| match seat.is_expired() {
        true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        false => Poll::Pending,
    });
    let stream = match handshake.or(late).await {
        Ok(stream) => stream,
        Err(error) => {
            log::debug!("{}: no connection: {error}", seat.peer);
            return None;
        }
    };
    seat.enter(Stage::Idle);
    if let (Some(socket), true) = (&socket, service.is_draining()) {
        // The linger may have been over before there was a connection to send a request on.
        let request = poll_fn(|cx| socket.poll_readable(cx).map(drop));
        let linger = async {
            Timer::after(service.limits.linger).await;
        };
        request.or(linger).await;
    }
    Some(Transport::Wrapped(Box::new(Wrapped { stream, socket })))
}

/// Idle, active, idle, active, …
async fn requests(service: &Service, seat: &Arc<Seat>, mut transport: Transport) {
    let mut fresh = true;
    // Bytes of empty lines so far: they count as the head's, however they were cut.
    let mut empty = 0;
    while let Some((bytes, n)) = first_bytes(service, seat, &mut transport, fresh, &mut empty).await
    {
        fresh = false;
        // The active phase is a future of its own, dropped when the connection falls idle (W12).
        let gate = Gate::new(transport, bytes, n, seat.clone(), bounds(&service.limits));
        let active = Box::pin(exchanges(service, seat, gate));
        // A handler's panic is answered where it happens; a panic of a response's body ends here.
        match AssertUnwindSafe(active).catch_unwind().await {
            Ok(Some(idle)) => (transport, empty) = idle,
            Ok(None) | Err(_) => return,
        }
    }
    if service.is_aborting() {
        // The kernel says it: a reset if something was left unread, a FIN otherwise.
        return;
    }
    // An idle connection is closed with a FIN (rule S6); its client may be slow to take what it was
    // sent.
    if transport.undelivered() > 0 || transport.is_wrapped() {
        // In a box: it is seldom needed, and would make room in every idle connection.
        Box::pin(leave(transport, seat, true, || service.is_draining())).await;
    } else {
        let _ = poll_fn(|cx| transport.poll_half_close(cx)).await;
    }
}

/// Waits for a request to begin; `None` when the connection is to be closed.
///
/// What is already in the socket wins over every reason to close (rules S6, S7).
async fn first_bytes(
    service: &Service,
    seat: &Seat,
    transport: &mut Transport,
    fresh: bool,
    empty: &mut usize,
) -> Option<(Buffer, usize)> {
    // A new client has mostly sent its request by now; later, waiting first saves a read.
    let mut look = fresh;
    // What is no socket may give way although it has something: then it is asked again.
    let mut looks = LAST_LOOKS;
    poll_fn(|cx| {
        loop {
            if service.is_aborting() {
                // What nobody has read is cut too, and has to be named.
                let asked = transport.waiting() > 0;
                seat.enter(if asked { Stage::Accepted } else { Stage::Idle });
                return Poll::Ready(None);
            }
            let leave = seat.is_expired() || service.linger_is_over.load(Ordering::Acquire);
            if !(look || leave) {
                match transport.poll_readable(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
            look = false;
            let mut bytes = Buffer::new();
            bytes[..*empty]
                .iter_mut()
                .zip(b"\r\n".iter().cycle())
                .for_each(|(to, byte)| *to = *byte);
            match transport.poll_read(cx, &mut bytes[*empty..]) {
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
                // That was the last look.
                Poll::Pending if leave => return Poll::Ready(None),
                Poll::Pending => {}
            }
            if seat.stage() == Stage::Accepted {
                seat.enter(Stage::Idle);
            }
            // The read has left its waker.
            return Poll::Pending;
        }
    })
    .await
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds { head_bytes: limits.head_bytes, headers: limits.headers }
}

/// Request after request, until nothing more has arrived: then the transport comes back, and how
/// many bytes of empty lines have. `None`
/// when the connection has ended.
async fn exchanges(service: &Service, seat: &Seat, mut gate: Gate) -> Option<(Transport, usize)> {
    let limits = &service.limits;
    let longest_body = limits.body_bytes.unwrap_or(u64::MAX);
    // In the drain: how much of what had arrived when the connection took note of it is left.
    let mut owed = None;
    for turn in 1_usize.. {
        if turn % 32 == 0 {
            // A client that pipelines without end must not keep others from their turn.
            yield_now().await;
        }
        let head = match gate.head(longest_body).await {
            Ok(head) => head,
            Err(NoHead::Closed) => return None,
            Err(NoHead::Refused(status)) => {
                let asked = presumably_asked(&gate);
                return refuse(service, gate, asked, status).await;
            }
        };
        let asked = Asked { method: head.method, version: head.version };
        if gate.body_left() > longest_body {
            return refuse(service, gate, asked, StatusCode::PayloadTooLarge).await;
        }
        seat.enter(Stage::Handler);
        let mut request = match gate.decode(&head).await {
            Ok(request) => request,
            Err(status) => return refuse(service, gate, asked, status).await,
        };
        request.set_peer_addr(Some(seat.peer));
        request.ext_mut().insert(service.shutdown.token());

        let answer = async { Some(answer(service, request).await) };
        let gone = async {
            gate.tend(|| service.is_draining()).await;
            None
        };
        let Some(answer) = answer.or(gone).await else {
            gate.reset();
            return None;
        };
        let mut panicked = false;
        let mut response = match answer {
            Ok(response) => response,
            // If the client got its body wrong, the error is the client's.
            Err(Failure::Error(error)) => {
                let status = gate.fault().unwrap_or(error.status());
                let (method, path) = gate.describe();
                // Clients must not fill the log with their own faults.
                let level = if status.is_server_error() { Level::Warn } else { Level::Debug };
                log::log!(level, "{} {method} {path}: {status}: {error}", seat.peer);
                plain(status)
            }
            Err(Failure::Panic) => {
                let (method, path) = gate.describe();
                log::error!("{} {method} {path}: the handler has panicked", seat.peer);
                panicked = true;
                plain(StatusCode::InternalServerError)
            }
        };
        if upgrades(&response) {
            if head.upgrade && gate.body_is_taken() {
                let stream = response.send_upgrade();
                let reply = Reply::new(response, asked, false);
                if gate.respond(reply).await.is_ok() && gate.flush().await.is_ok() {
                    gate.upgrade(stream).await;
                }
                return None;
            }
            log::warn!("a handler has upgraded a request that did not ask for it");
            response = plain(StatusCode::InternalServerError);
        }

        // What the client asks for, what the response allows, what the body costs and is worth,
        // what the stop leaves time for (rules W8, W9, S9).
        let mut discard = limits.discard_bytes;
        let keep = !panicked
            && head.keep_alive
            && !asks_to_close(&response)
            && !ends_with_connection(&response, asked)
            && (gate.body_is_held() && has_body(&response, asked)
                || gate.can_discard(discard) && gate.discard_arrived(&mut discard).await)
            && !(service.is_draining() && is_last(&gate, &mut owed).await);
        match gate.respond(Reply::new(response, asked, !keep)).await {
            Ok(()) => {}
            Err(Broken::Unseen) => {
                let status = gate.fault().unwrap_or(StatusCode::InternalServerError);
                return refuse(service, gate, asked, status).await;
            }
            Err(Broken::Seen) => {
                gate.reset();
                return None;
            }
        }
        if service.is_draining() {
            if gate.flush().await.is_err() {
                return None;
            }
            service.shutdown.finished();
        }
        if !keep {
            let at_rest = gate.body_is_taken() && !gate.has_input();
            gate.close(at_rest, || service.is_draining()).await;
            return None;
        }
        // The client has its answer, and is not waited for longer than an idle one (rule S6).
        let over = || service.linger_is_over.load(Ordering::Acquire);
        if !gate.can_discard(discard) || !gate.discard_body(&mut discard, over).await {
            gate.close(false, || service.is_draining()).await;
            return None;
        }
        if !gate.has_input() && owed.is_none() {
            gate.flush().await.ok()?;
            return gate.into_transport();
        }
    }
    None
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

/// Answers a request that reaches no handler, and ends the connection (rule W4).
async fn refuse(
    service: &Service,
    mut gate: Gate,
    asked: Asked,
    status: StatusCode,
) -> Option<(Transport, usize)> {
    let (method, path) = gate.describe();
    log::debug!("{} {method} {path}: refused with {status}", gate.peer());
    let reply = Reply::new(plain(status), asked, true);
    if gate.respond(reply).await.is_ok() {
        gate.close(false, || service.is_draining()).await;
    }
    None
}

/// A request whose head could not be read is answered as HTTP/1.1 (RFC 9110 section 6.2), and
/// without a body if it may have been HEAD (section 9.3.2).
fn presumably_asked(gate: &Gate) -> Asked {
    let is_head = gate.describe().0 == Method::Head.as_ref();
    let method = if is_head { Method::Head } else { Method::Get };
    Asked { method, version: Version::Http1_1 }
}

/// Why there is no response.
enum Failure {
    Error(http_types::Error),
    Panic,
}

/// Runs the handler on `request`. Its panic ends here (rule S17).
async fn answer(service: &Service, request: Request) -> Result<Response, Failure> {
    let handled = async { (service.handler)(request).await };
    match AssertUnwindSafe(handled).catch_unwind().await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(Failure::Error(error)),
        // The panic hook has said where.
        Err(_) => Err(Failure::Panic),
    }
}
