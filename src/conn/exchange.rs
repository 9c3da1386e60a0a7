//! [`Active`]: a connection while it has something to do, exchange after exchange.
//!
//! Invariant: whether the connection goes on is decided before the response is sent, and what the
//! response promises is kept (rule S23). In the drain, the last response announces the close, and
//! what had arrived before it gets an answer, too (rules S8, S9).

use std::future::Future;
use std::sync::Arc;

use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use http_types::{Method, Response, StatusCode, Version};

use super::Service;
use super::handler::{Failure, answer_fault, apology, ask};
use super::leave::leave;
use crate::orders::Order;
use crate::seat::Seat;
use crate::transport::Transport;
use crate::wire::body::Framing;
use crate::wire::head::Head;
use crate::wire::response::{Asked, Reply, plain, upgrades};
use crate::wire::{Broken, Gate, NoHead, Rest};

/// A connection that serves requests.
pub(super) struct Active<'a> {
    service: &'a Service,
    seat: &'a Arc<Seat>,
    gate: Gate,
    /// In the drain: how much is left of what had arrived when the connection took note of the
    /// stop.
    owed: Option<u64>,
}

impl<'a> Active<'a> {
    pub(super) fn new(service: &'a Service, seat: &'a Arc<Seat>, gate: Gate) -> Self {
        Self { service, seat, gate, owed: None }
    }

    /// Serves request after request until nothing more has arrived. Returns the transport, and how
    /// many bytes of empty lines have come. Returns `None` if the connection has ended.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its arguments twice")]
    pub(super) fn run(mut self) -> impl Future<Output = Option<(Transport, usize)>> + Send + 'a {
        async move {
            for turn in 1_usize.. {
                if turn % 32 == 0 {
                    // A client that pipelines without end must not keep others from their turn.
                    yield_now().await;
                }
                let at_rest = match self.exchange().await {
                    Next::Exchange => continue,
                    Next::Idle => return self.gate.into_transport(),
                    Next::Refuse(asked, status) => {
                        self.refuse(asked, status).await.ok()?;
                        false
                    }
                    Next::Close { at_rest } => at_rest,
                    Next::Upgrade(asked, switching) => {
                        Box::pin(self.upgrade(*switching, asked)).await;
                        false
                    }
                    Next::End => return None,
                };
                self.close(at_rest).await;
                break;
            }
            None
        }
    }

    /// One request and its response.
    async fn exchange(&mut self) -> Next {
        let service = self.service;
        let limits = &service.limits;
        let longest_body = limits.body_bytes.unwrap_or(u64::MAX);
        let head = match self.gate.head(longest_body).await {
            Ok(head) => head,
            Err(NoHead::Closed) => return Next::End,
            Err(NoHead::Refused(status)) => {
                return Next::Refuse(presumably_asked(&self.gate), status);
            }
        };
        let asked = Asked::by(&head);
        if matches!(head.framing, Framing::Fixed(length) if length > longest_body) {
            return Next::Refuse(asked, StatusCode::PayloadTooLarge);
        }
        let answer = match ask(service, &self.gate, &head) {
            Ok(answer) => answer,
            Err(status) => return Next::Refuse(asked, status),
        };
        let answered = async { Some(answer.await) };
        let gone = async {
            self.gate.tend().await;
            None
        };
        let Some(answered) = answered.or(gone).await else {
            self.gate.reset();
            return Next::End;
        };
        let mut reply = match self.prepare(&head, answered).await {
            Prepared::Reply(reply) => reply,
            Prepared::Upgrade(switching) => return Next::Upgrade(asked, switching),
            Prepared::Refuse(status) => return Next::Refuse(asked, status),
        };

        // The client's wish, the response, the cost and the use of the body, and the stop all count
        // (rules W8, W9, S9). The response announces the decision, so nothing later changes it.
        let keep = head.keep_alive
            && reply.allows_another()
            && self.can_get_past_body(&mut reply).await
            && !(self.gate.order() >= Order::Finish && self.is_last().await);
        if !keep {
            reply.announce_close();
        }
        match self.gate.respond(&mut reply).await {
            Ok(()) => {}
            Err(Broken::Unseen) => {
                let status = self.gate.fault().unwrap_or(StatusCode::InternalServerError);
                return Next::Refuse(asked, status);
            }
            Err(Broken::Seen) => {
                self.gate.reset();
                return Next::End;
            }
        }
        if self.gate.order() >= Order::Finish {
            if self.gate.flush().await.is_err() {
                return Next::End;
            }
            service.shutdown.finished();
        }
        if !keep {
            return Next::Close {
                at_rest: self.gate.rest() == Rest::Nothing && !self.gate.has_input(),
            };
        }
        // The client has its answer, and is not waited for longer than an idle one (rule S6).
        if self.gate.rest() != Rest::Nothing && !self.gate.discard_body().await {
            return Next::Close { at_rest: false };
        }
        if self.gate.has_input() || self.owed.is_some() {
            return Next::Exchange;
        }
        match self.gate.flush().await {
            Ok(()) => Next::Idle,
            Err(_) => Next::End,
        }
    }

    /// Returns `true` if the connection can go on behind the request's body, read or not (rules W9,
    /// S23). The response then promises keep-alive, so the connection goes on whatever the rest of
    /// the body is.
    async fn can_get_past_body(&mut self, reply: &mut Reply) -> bool {
        let discard = self.service.limits.discard_bytes;
        match self.gate.rest() {
            Rest::Nothing => true,
            // A response that is made of the body reads the whole body, however long it is. Another
            // holder of the body may still read it, so nothing is discarded before the response has
            // been sent.
            _ if self.gate.body_is_held() && reply.has_body() => {
                self.gate.feeds(reply).await || self.gate.rest().is_at_most(discard)
            }
            rest => rest.is_at_most(discard) && self.gate.discard_arrived(discard).await,
        }
    }

    /// Returns `true` if the response that is about to be sent is the connection's last one, in the
    /// drain.
    ///
    /// It is, unless bytes of a further request had arrived when the connection took note of the
    /// stop: such a request is finished too, and the close is announced with its response (rules
    /// S8, S9). Later bytes do not prolong the connection.
    async fn is_last(&mut self) -> bool {
        if self.gate.rest() != Rest::Nothing {
            return true;
        }
        let waiting = self.gate.waiting().await;
        let left = match self.owed {
            None => waiting,
            Some(before) => waiting.min(before.saturating_sub(self.gate.taken())),
        };
        self.owed = Some(left);
        left == 0
    }

    /// Answers a request that reaches no handler; the connection ends with it (rule W4).
    async fn refuse(&mut self, asked: Asked, status: StatusCode) -> Result<(), Broken> {
        let (method, path) = self.gate.describe();
        log::debug!("{} {method} {path}: refused with {status}", self.gate.peer());
        let mut reply = Reply::new(plain(status), asked);
        reply.announce_close();
        self.gate.respond(&mut reply).await
    }

    /// Decides what to do with the answer of the handler.
    async fn prepare(&mut self, head: &Head, answered: Result<Response, Failure>) -> Prepared {
        let panicked = matches!(answered, Err(Failure::Panic));
        let response = answered.unwrap_or_else(|failure| apology(&self.gate, &failure));
        let response = answer_fault(&self.gate, response);
        if upgrades(&response) {
            let problem = if !head.upgrade {
                "it did not ask for that (on HTTP/1.1, with Connection: upgrade)"
            } else if !self.is_rid_of_body().await {
                "its body is not to be had"
            } else {
                return Prepared::Upgrade(Box::new(response));
            };
            let (peer, (method, path)) = (self.gate.peer(), self.gate.describe());
            log::warn!(
                "{peer} {method} {path}: the handler has upgraded the request, but {problem}"
            );
            return Prepared::Refuse(StatusCode::BadRequest);
        }
        let mut reply = Reply::new(response, Asked::by(head));
        if panicked {
            reply.announce_close();
        }
        Prepared::Reply(reply)
    }

    /// Discards the body, because the other protocol begins behind it (RFC 9110 section 7.8).
    /// Returns `false` if the body cannot be discarded.
    async fn is_rid_of_body(&mut self) -> bool {
        let discard = self.service.limits.discard_bytes;
        match self.gate.rest() {
            Rest::Nothing => true,
            rest => {
                rest.is_at_most(discard)
                    && self.gate.discard_arrived(discard).await
                    && self.gate.discard_body().await
            }
        }
    }

    /// Hands the connection over to another protocol, until that has ended (rule S11).
    async fn upgrade(&mut self, mut response: Response, asked: Asked) {
        let stream = response.send_upgrade();
        let mut reply = Reply::new(response, asked);
        if self.gate.respond(&mut reply).await.is_ok() && self.gate.flush().await.is_ok() {
            self.gate.upgrade(stream).await;
        }
    }

    /// Sends what is left, and takes leave of the client.
    async fn close(mut self, at_rest: bool) {
        if self.gate.flush().await.is_err() {
            return self.gate.reset();
        }
        if let Some(transport) = self.gate.take_transport() {
            leave(transport, self.seat, at_rest).await;
        }
    }
}

/// The connection's next step behind an exchange.
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

/// A request whose head could not be read is answered as HTTP/1.1 (RFC 9110 section 6.2), and
/// without a body if it may have been HEAD (section 9.3.2).
fn presumably_asked(gate: &Gate) -> Asked {
    let is_head = gate.describe().0 == Method::Head.as_ref();
    let method = if is_head { Method::Head } else { Method::Get };
    Asked { method, version: Version::Http1_1, accepts_trailers: false }
}
