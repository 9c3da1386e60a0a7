//! [`Active`]: a connection while it has something to do, exchange after exchange.
//!
//! Invariant: the server decides whether a connection goes on before it sends the response, and
//! keeps what the response promises (rule S23). In the drain, the last response announces the
//! close, and each request that had begun to arrive at the stop gets an answer (rules S8, S9).

use std::future::Future;
use std::sync::Arc;

use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use http_types::{Method, Response, StatusCode, Version};

use super::Service;
use super::handler::{Failure, answer_fault, call_handler, failure_response};
use super::leave::{Expected, leave};
use crate::observe::ExchangeEnding;
use crate::stop::orders::Order;
use crate::stop::seat::Seat;
use crate::wire::asked::Asked;
use crate::wire::head::Head;
use crate::wire::response::{Reply, plain, upgrades};
use crate::wire::{Begun, Broken, Gate, Idle, Movable, OpenExchange, Rest};

/// The state of a connection after its active phase, if the connection goes on.
pub(super) enum AfterActive {
    /// Nothing more has arrived.
    Idle(Idle),
    /// The connection goes to the successor.
    Movable(Movable),
}

/// A connection that serves requests.
pub(super) struct Active<'a> {
    service: &'a Service,
    seat: &'a Arc<Seat>,
    gate: Gate,
    /// The number of bytes that had arrived when the connection took note of the stop, and that no
    /// response has answered since then. `None` before the connection takes note of a stop.
    unanswered: Option<u64>,
}

impl<'a> Active<'a> {
    pub(super) fn new(service: &'a Service, seat: &'a Arc<Seat>, gate: Gate) -> Self {
        Self { service, seat, gate, unanswered: None }
    }

    /// Serves request after request until nothing more has arrived, or until the connection has to
    /// leave. Returns `None` if the connection has ended.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its arguments twice")]
    pub(super) fn run(mut self) -> impl Future<Output = Option<AfterActive>> + Send + 'a {
        async move {
            for number in 1_usize.. {
                if number % TURN == 0 {
                    // A client that pipelines without end must not keep others from their turn.
                    yield_now().await;
                }
                let expected = match self.exchange().await {
                    Ok(Next::Exchange) => continue,
                    Ok(Next::Idle) => return self.gate.into_idle().map(AfterActive::Idle),
                    Ok(Next::Leave) => return self.gate.into_movable().map(AfterActive::Movable),
                    Ok(Next::Close) => self.expected(),
                    Ok(Next::Upgrade { response, is_wanted }) => {
                        // The upgrade is in a box, because it is rare, and would take room in every
                        // active connection.
                        Box::pin(self.upgrade(response, is_wanted)).await.ok()?;
                        Expected::More
                    }
                    Err(NoResponse::Refuse(status)) => {
                        self.refuse(status).await.ok()?;
                        Expected::More
                    }
                    Err(NoResponse::End) => return None,
                };
                self.close(expected).await;
                break;
            }
            None
        }
    }

    /// Serves one request.
    ///
    /// # Errors
    ///
    /// Returns [`NoResponse`] if the head is refused, if the client is gone, or if the response
    /// cannot be made or sent.
    async fn exchange(&mut self) -> Result<Next, NoResponse> {
        let longest_body = self.service.limits.body_bytes.unwrap_or(u64::MAX);
        self.gate.begin_exchange();
        let head = match self.gate.head(longest_body).await.map_err(NoResponse::Refuse)? {
            Begun::Head(head) => head,
            Begun::Leave => {
                self.gate.note(|open| open.ends_as(ExchangeEnding::HandedOver));
                return Ok(Next::Leave);
            }
            Begun::End => return Err(NoResponse::End),
        };
        self.gate.note(|open| open.got_head(&head));
        let mut reply = match self.answer(&head).await? {
            Answer::Reply(reply) => reply,
            Answer::Upgrade(response) => {
                return Ok(Next::Upgrade { response, is_wanted: head.upgrade });
            }
        };

        // The server decides before the response goes out, because the response announces the
        // decision (rule S23).
        let keep = self.decide_to_keep(&head, &mut reply).await;
        if !keep {
            reply.announce_close();
        }
        self.gate.respond(&mut reply).await.map_err(|broken| self.give_up(broken))?;
        self.gate.note(OpenExchange::has_responded);
        if self.seat.orders.is_stopping() {
            // The outcome counts a request as finished only when its response has left the gate.
            self.gate.flush().await.map_err(|_| NoResponse::End)?;
            self.service.shutdown.count_finished();
        }
        // `discard_body` fails if the body is malformed or cut short, or the client is gone. Once
        // idle connections have to end, the drain does not wait for the rest of the body (rule S6).
        let goes_on = keep && self.gate.discard_body().await;
        self.gate.finish_exchange();
        if goes_on { self.next().await } else { Ok(Next::Close) }
    }

    /// Calls the handler, and makes a reply of its answer. Gives the handler up if the client is
    /// gone meanwhile (rule S22).
    ///
    /// # Errors
    ///
    /// Returns [`NoResponse`] if the client is gone, or if the request's host and target do not
    /// make a valid URL.
    async fn answer(&mut self, head: &Head) -> Result<Answer, NoResponse> {
        let call = call_handler(self.service, &self.gate, head).map_err(NoResponse::Refuse)?;
        self.gate.note(OpenExchange::called);
        let called = async { Some(call.await) };
        let client_gone = async {
            self.gate.tend().await;
            None
        };
        let Some(called) = called.or(client_gone).await else {
            self.gate.reset();
            return Err(NoResponse::End);
        };
        Ok(self.prepare(head, called))
    }

    /// Makes a reply of the handler's answer. An error or a panic becomes a response of the server.
    fn prepare(&mut self, head: &Head, mut called: Result<Response, Failure>) -> Answer {
        let panicked = matches!(called, Err(Failure::Panic));
        match &mut called {
            Ok(response) => self.gate.note(|open| open.answered(response)),
            Err(Failure::Panic) => self.gate.note(|open| open.ends_as(ExchangeEnding::Panicked)),
            Err(Failure::Error(_)) => {}
        }
        let mut response = called.unwrap_or_else(|failure| failure_response(&self.gate, &failure));
        answer_fault(&self.gate, &mut response);
        if upgrades(&response) {
            return Answer::Upgrade(Box::new(response));
        }
        let mut reply = Reply::new(response, Asked::by(head));
        if panicked {
            reply.announce_close();
        }
        Answer::Reply(reply)
    }

    /// Decides whether the connection goes on after this response. Returns `true` if it does, and
    /// counts in a drain what is still unanswered. The client, the response, the rest of the body
    /// and the stop can each end the connection (rules W8, W9, S9).
    async fn decide_to_keep(&mut self, head: &Head, reply: &mut Reply) -> bool {
        if !head.keep_alive || !reply.allows_another() {
            return false;
        }
        // From here on, the steps read from the socket, which a connection that ends need not do.
        if !self.settle_body(reply).await {
            return false;
        }
        self.seat.order() < Order::Finish || self.recount_unanswered() > 0
    }

    /// Decides on the step after an exchange, for a connection that goes on.
    ///
    /// # Errors
    ///
    /// Returns [`NoResponse::End`] if the client is gone.
    async fn next(&mut self) -> Result<Next, NoResponse> {
        // `unanswered` is not 0 here, because the connection would then have announced its close.
        // The unanswered bytes may still be in the kernel, because `read_ahead` may count bytes
        // without reading them.
        let has_more = self.gate.has_input() || self.unanswered.is_some();
        let leaves = self.gate.is_to_leave();
        if has_more && !leaves {
            return Ok(Next::Exchange);
        }
        self.gate.flush().await.map_err(|_| NoResponse::End)?;
        if !leaves {
            return Ok(Next::Idle);
        }
        // The connection becomes idle only now, so that its idle age leaves out the time of the
        // request (rule H8).
        self.seat.fall_idle();
        Ok(Next::Leave)
    }

    /// Decides what becomes of the rest of the request's body, and discards the part that has
    /// arrived if nothing reads the body. Returns `true` if the connection can go on after the
    /// body (rule W9).
    async fn settle_body(&mut self, reply: &mut Reply) -> bool {
        let most_discarded = self.service.limits.discard_bytes;
        let is_held = self.gate.rest() != Rest::Nothing && self.gate.body_is_held();
        if !is_held || !reply.has_body() {
            return self.gate.discard_arrived(most_discarded).await;
        }
        // The holder may still read the body, so the server discards nothing before it has sent the
        // response. A response that is made of the body reads the whole body, however long it is.
        let is_made_of_it = self.gate.begin_body(reply).await;
        is_made_of_it || self.gate.rest().is_at_most(most_discarded)
    }

    /// Reads in the drain what has arrived behind the request. Returns how many of these bytes the
    /// server still has to answer, and 0 if this response is the connection's last one.
    ///
    /// A further request gets an answer if it had begun to arrive when the connection took note of
    /// the stop. The response to the last such request announces the close (rules S8, S9). Later
    /// bytes do not prolong the connection.
    fn recount_unanswered(&mut self) -> u64 {
        if self.gate.rest() != Rest::Nothing {
            return 0;
        }
        let arrived = self.gate.read_ahead();
        let unanswered = match self.unanswered {
            None => arrived,
            Some(before) => arrived.min(before.saturating_sub(self.gate.taken())),
        };
        self.unanswered = Some(unanswered);
        unanswered
    }

    /// Decides what to do after a response that could not be sent whole.
    fn give_up(&self, broken: Broken) -> NoResponse {
        if broken == Broken::Unseen {
            return NoResponse::Refuse(
                self.gate.fault().unwrap_or(StatusCode::InternalServerError),
            );
        }
        if broken == Broken::Silent {
            self.service.shutdown.count_stream_closed();
        }
        self.gate.reset();
        NoResponse::End
    }

    /// Answers a request with `status` and without a handler. The connection ends after this
    /// answer (rule W4).
    async fn refuse(&mut self, status: StatusCode) -> Result<(), Broken> {
        log::debug!("{}: refused with {status}", self.gate.label());
        let mut reply = Reply::new(plain(status), self.assumed_asked());
        reply.announce_close();
        self.gate.respond(&mut reply).await?;
        self.gate.finish_exchange();
        Ok(())
    }

    /// Hands the connection over to another protocol, and waits until that protocol has ended (rule
    /// S11). Refuses the request if its client has not asked for an upgrade, or if the rest of its
    /// body cannot be read.
    async fn upgrade(&mut self, response: Box<Response>, is_wanted: bool) -> Result<(), Broken> {
        let problem = if !is_wanted {
            "it did not ask for that (on HTTP/1.1, with Connection: upgrade)"
        } else if !self.skip_body().await {
            "its body is not to be had"
        } else {
            self.change_protocol(*response).await;
            return Ok(());
        };
        let label = self.gate.label();
        log::warn!("{label}: the handler has upgraded the request, but {problem}");
        self.refuse(StatusCode::BadRequest).await
    }

    /// Discards the rest of the request's body, because another protocol begins behind the body
    /// (RFC 9110 section 7.8). Returns `false` if the rest is too long or cannot be read.
    async fn skip_body(&mut self) -> bool {
        let most = self.service.limits.discard_bytes;
        self.gate.discard_arrived(most).await && self.gate.discard_body().await
    }

    /// Sends the response that changes the protocol, and lends the stream to the other protocol
    /// until that has ended.
    async fn change_protocol(&mut self, mut response: Response) {
        let stream = response.send_upgrade();
        let mut reply = Reply::new(response, self.assumed_asked());
        if self.gate.respond(&mut reply).await.is_ok() && self.gate.flush().await.is_ok() {
            let was_silent = self.gate.upgrade(stream).await;
            if was_silent {
                self.service.shutdown.count_stream_closed();
            }
            self.gate.note(|open| open.ends_as(ExchangeEnding::Upgraded));
            self.gate.finish_exchange();
        }
    }

    /// Returns what the client may still send after the connection's last exchange.
    fn expected(&self) -> Expected {
        let is_at_rest = self.gate.rest() == Rest::Nothing && !self.gate.has_input();
        if is_at_rest { Expected::Nothing } else { Expected::More }
    }

    /// Sends what is left, and takes leave of the client.
    async fn close(mut self, expected: Expected) {
        if self.gate.flush().await.is_err() {
            return self.gate.reset();
        }
        if let Some(transport) = self.gate.take_transport() {
            leave(transport, self.seat, expected).await;
        }
    }

    /// Returns how to answer a request whose head may not have been read. The answer is in HTTP/1.1
    /// (RFC 9110 section 6.2), and has no body if the method may be HEAD (section 9.3.2).
    fn assumed_asked(&self) -> Asked {
        let is_head = self.gate.request_line().0 == Method::Head.as_ref();
        let method = if is_head { Method::Head } else { Method::Get };
        Asked { method, version: Version::Http1_1, accepts_trailers: false }
    }
}

/// The number of requests that a connection serves before other tasks get their turn.
const TURN: usize = 32;

/// The answer to a request, from the handler or in its place.
#[expect(clippy::large_enum_variant, reason = "a box would cost each reply an allocation")]
enum Answer {
    Reply(Reply),
    /// The response hands the connection over to another protocol.
    Upgrade(Box<Response>),
}

/// The connection's next step after a request.
enum Next {
    /// Another exchange follows.
    Exchange,
    /// Nothing more has arrived.
    Idle,
    /// The connection goes to the successor.
    Leave,
    /// The connection is handed over to another protocol by this response, if the client wants it.
    Upgrade { response: Box<Response>, is_wanted: bool },
    /// The connection ends.
    Close,
}

/// The early end of an exchange, after which the connection ends, too. The server either answers
/// with a status, or has nothing more to send.
enum NoResponse {
    /// The client gets this status, and the connection ends.
    Refuse(StatusCode),
    /// The connection has ended.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_result<'a, T>(_: impl FnOnce(Active<'a>) -> T) -> usize {
        size_of::<T>()
    }

    /// A connection allocates this much each time that it becomes active, and 1,032 bytes are the
    /// most that glibc's malloc caches for each thread.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn an_active_connection_fits_the_cache_of_malloc() {
        let size = size_of_result(Active::run);
        assert!(size <= 1032, "{size}");
    }
}
