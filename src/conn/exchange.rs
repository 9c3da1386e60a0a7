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
use super::leave::leave;
use crate::observe::ExchangeEnding;
use crate::stop::orders::Order;
use crate::stop::seat::Seat;
use crate::wire::asked::Asked;
use crate::wire::head::Head;
use crate::wire::response::{Reply, plain, upgrades};
use crate::wire::{Begun, Broken, Gate, Idle, Movable, OpenExchange, Rest};

/// The end of an active phase behind which the connection goes on.
pub(super) enum Behind {
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
    /// In the drain, the number of unanswered bytes among those that had arrived when the
    /// connection took note of the stop. `None` before that.
    owed: Option<u64>,
}

impl<'a> Active<'a> {
    pub(super) fn new(service: &'a Service, seat: &'a Arc<Seat>, gate: Gate) -> Self {
        Self { service, seat, gate, owed: None }
    }

    /// Serves request after request until nothing more has arrived, or until the connection has to
    /// leave. Returns `None` if the connection has ended.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its arguments twice")]
    pub(super) fn run(mut self) -> impl Future<Output = Option<Behind>> + Send + 'a {
        async move {
            for turn in 1_usize.. {
                if turn % 32 == 0 {
                    // A client that pipelines without end must not keep others from their turn.
                    yield_now().await;
                }
                let at_rest = match self.exchange().await {
                    Ok(Next::Exchange) => continue,
                    Ok(Next::Idle) => return self.gate.into_idle().map(Behind::Idle),
                    Ok(Next::Leave) => return self.gate.into_movable().map(Behind::Movable),
                    Ok(Next::Close) => self.gate.rest() == Rest::Nothing && !self.gate.has_input(),
                    Err(Instead::Refuse(status)) => {
                        self.refuse(status).await.ok()?;
                        false
                    }
                    Err(Instead::Upgrade { response, is_wanted }) => {
                        // The upgrade is in a box, because it is rare, and would take room in every
                        // active connection.
                        Box::pin(self.upgrade(response, is_wanted)).await.ok()?;
                        false
                    }
                    Err(Instead::End) => return None,
                };
                self.close(at_rest).await;
                break;
            }
            None
        }
    }

    /// Serves one request.
    ///
    /// # Errors
    ///
    /// Returns the step that the connection takes instead of sending the handler's response.
    async fn exchange(&mut self) -> Result<Next, Instead> {
        let service = self.service;
        let longest_body = service.limits.body_bytes.unwrap_or(u64::MAX);
        self.gate.begin_exchange();
        let head = match self.gate.head(longest_body).await.map_err(Instead::Refuse)? {
            Begun::Head(head) => head,
            Begun::Leave => {
                self.gate.note(|open| open.ends_as(ExchangeEnding::HandedOver));
                return Ok(Next::Leave);
            }
            Begun::End => return Err(Instead::End),
        };
        self.gate.note(|open| open.got_head(&head));
        let answer = call_handler(service, &self.gate, &head).map_err(Instead::Refuse)?;
        self.gate.note(OpenExchange::called);
        let answered = async { Some(answer.await) };
        let gone = async {
            self.gate.tend().await;
            None
        };
        let Some(answered) = answered.or(gone).await else {
            self.gate.reset();
            return Err(Instead::End);
        };
        let mut reply = self.prepare(&head, answered)?;

        // The decision depends on the client's wish, the response, the rest of the body, and the
        // stop (rules W8, W9, S9). The response announces the decision, so nothing changes it later
        // (rule S23).
        let keep = head.keep_alive
            && reply.allows_another()
            && self.settle_body(&mut reply).await
            && (self.seat.order() < Order::Finish || self.recount_owed() > 0);
        if !keep {
            reply.announce_close();
        }
        self.gate.respond(&mut reply).await.map_err(|broken| self.give_up(broken))?;
        self.gate.note(OpenExchange::has_responded);
        if self.seat.orders.is_stopping() {
            self.gate.flush().await.map_err(|_| Instead::End)?;
            service.shutdown.count_finished();
        }
        // The client has its answer, so the drain waits for the rest of the body no longer than for
        // an idle connection (rule S6).
        let goes_on = keep && self.gate.discard_body().await;
        self.gate.finish_exchange();
        if !goes_on {
            return Ok(Next::Close);
        }
        let has_more = self.gate.has_input() || self.owed.is_some();
        let leaves = self.gate.is_to_leave();
        if has_more && !leaves {
            return Ok(Next::Exchange);
        }
        self.gate.flush().await.map_err(|_| Instead::End)?;
        if !leaves {
            return Ok(Next::Idle);
        }
        // The connection becomes idle only now, so that its idle age leaves out the time of the
        // request (rule H8).
        self.seat.fall_idle();
        Ok(Next::Leave)
    }

    /// Makes a reply of the handler's answer.
    ///
    /// # Errors
    ///
    /// Returns [`Instead::Upgrade`] if the response hands the connection over to another protocol.
    fn prepare(
        &mut self,
        head: &Head,
        mut answered: Result<Response, Failure>,
    ) -> Result<Reply, Instead> {
        let panicked = matches!(answered, Err(Failure::Panic));
        match &mut answered {
            Ok(response) => self.gate.note(|open| open.answered(response)),
            Err(Failure::Panic) => self.gate.note(|open| open.ends_as(ExchangeEnding::Panicked)),
            Err(Failure::Error(_)) => {}
        }
        let mut response =
            answered.unwrap_or_else(|failure| failure_response(&self.gate, &failure));
        answer_fault(&self.gate, &mut response);
        if upgrades(&response) {
            return Err(Instead::Upgrade { response: Box::new(response), is_wanted: head.upgrade });
        }
        let mut reply = Reply::new(response, Asked::by(head));
        if panicked {
            reply.announce_close();
        }
        Ok(reply)
    }

    /// Decides what becomes of the rest of the request's body, and discards the part that has
    /// arrived if nothing reads the body. Returns `true` if the connection can go on behind the
    /// body (rules W9, S23). The response then promises keep-alive, so the connection goes on
    /// however long the rest is.
    async fn settle_body(&mut self, reply: &mut Reply) -> bool {
        let discard = self.service.limits.discard_bytes;
        if self.gate.rest() != Rest::Nothing && self.gate.body_is_held() && reply.has_body() {
            // A response that is made of the body reads the whole body, however long it is. Another
            // holder may still read the body, so the server discards nothing before it has sent the
            // response.
            self.gate.begin_body(reply).await || self.gate.rest().is_at_most(discard)
        } else {
            self.gate.discard_arrived(discard).await
        }
    }

    /// Reads in the drain what has arrived behind the request. Returns how many of these bytes the
    /// server still has to answer, and 0 if this response is the connection's last one.
    ///
    /// A further request gets an answer if it had begun to arrive when the connection took note of
    /// the stop. The response to the last such request announces the close (rules S8, S9). Later
    /// bytes do not prolong the connection.
    fn recount_owed(&mut self) -> u64 {
        if self.gate.rest() != Rest::Nothing {
            return 0;
        }
        let arrived = self.gate.read_ahead();
        let owed = match self.owed {
            None => arrived,
            Some(before) => arrived.min(before.saturating_sub(self.gate.taken())),
        };
        self.owed = Some(owed);
        owed
    }

    /// Decides what to do after a response that could not be sent whole.
    fn give_up(&self, broken: Broken) -> Instead {
        if broken == Broken::Unseen {
            return Instead::Refuse(self.gate.fault().unwrap_or(StatusCode::InternalServerError));
        }
        if broken == Broken::Silent {
            self.service.shutdown.count_stream_closed();
        }
        self.gate.reset();
        Instead::End
    }

    /// Answers a request with `status` and without a handler. The connection ends behind this
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
        let discard = self.service.limits.discard_bytes;
        let problem = if !is_wanted {
            "it did not ask for that (on HTTP/1.1, with Connection: upgrade)"
        } else if self.gate.discard_arrived(discard).await && self.gate.discard_body().await {
            // The other protocol begins behind the body (RFC 9110 section 7.8).
            self.change_protocol(*response).await;
            return Ok(());
        } else {
            "its body is not to be had"
        };
        let label = self.gate.label();
        log::warn!("{label}: the handler has upgraded the request, but {problem}");
        self.refuse(StatusCode::BadRequest).await
    }

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

    /// Sends what is left, and takes leave of the client. With `at_rest`, the client owes nothing
    /// and has sent nothing more.
    async fn close(mut self, at_rest: bool) {
        if self.gate.flush().await.is_err() {
            return self.gate.reset();
        }
        if let Some(transport) = self.gate.take_transport() {
            leave(transport, self.seat, at_rest).await;
        }
    }

    /// Returns how to answer a request whose head may not have been read. The answer is in HTTP/1.1
    /// (RFC 9110 section 6.2), and has no body if the method may be HEAD (section 9.3.2).
    fn assumed_asked(&self) -> Asked {
        let is_head = self.gate.describe().0 == Method::Head.as_ref();
        let method = if is_head { Method::Head } else { Method::Get };
        Asked { method, version: Version::Http1_1, accepts_trailers: false }
    }
}

/// The connection's next step behind an exchange.
enum Next {
    /// Another exchange follows.
    Exchange,
    /// Nothing more has arrived.
    Idle,
    /// The connection goes to the successor.
    Leave,
    /// The connection ends.
    Close,
}

/// The connection's step instead of sending the handler's response.
enum Instead {
    /// The client gets this status, and the connection ends.
    Refuse(StatusCode),
    /// The connection is handed over to another protocol by this response, if the client wants it.
    Upgrade { response: Box<Response>, is_wanted: bool },
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
