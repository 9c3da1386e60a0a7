//! [`Watch`]: measures the exchanges of a connection for the observer.
//!
//! Invariant: the watch reports each exchange of which a byte has arrived, once, when the exchange
//! is over. An exchange that is dropped in the middle is reported as cut (rule O1). A connection
//! without an observer has no watch, and pays one branch for each step (rule O3). Does not change
//! what is read or sent.

use std::cell::LazyCell;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http_types::{Extensions, Response, StatusCode};

use super::Gate;
use super::head::{self, Head, Parts};
use super::outgoing::{Extent, Outgoing};
use super::shared::Shared;
use crate::observe::{Exchange, ExchangeEnding, Observer};
use crate::stop::seat::Seat;

/// The exchanges of an active connection that have not been reported.
pub(super) struct Watch {
    observer: Arc<Observer>,
    open: Option<OpenExchange>,
    /// The exchanges that are over apart from unsent bytes of their responses, in their order. A
    /// client that sends request after request has several of them, because the responses gather
    /// (rule W10).
    unsent: Vec<Unsent>,
    /// Set if nobody takes the responses any more.
    is_client_gone: bool,
}

/// The exchange under way.
pub(crate) struct OpenExchange {
    clock: Clock,
    /// The positions of the head's parts, once the head has arrived.
    head: Option<Parts>,
    /// The status of the response that is being sent.
    status: Option<StatusCode>,
    extensions: Extensions,
    /// The ending of the exchange, if nothing goes wrong from here on.
    ending: ExchangeEnding,
    /// Set once the whole response was made, so that only the rest of the request's body is
    /// missing.
    is_whole: bool,
}

struct Clock {
    began: SystemTime,
    instant: Instant,
    first_byte: Option<Duration>,
}

/// An exchange of whose response a part has not been sent.
struct Unsent {
    exchange: Exchange,
    clock: Clock,
    response: Extent,
    /// The end of the response among all bytes of the connection.
    end: u64,
}

impl Watch {
    fn new(observer: Arc<Observer>) -> Self {
        Self { observer, open: None, unsent: Vec::with_capacity(1), is_client_gone: false }
    }

    /// Begins an exchange, which counts as refused until its handler is called.
    fn begin(&mut self) {
        let clock = Clock { began: SystemTime::now(), instant: Instant::now(), first_byte: None };
        self.open = Some(OpenExchange {
            clock,
            head: None,
            status: None,
            extensions: Extensions::default(),
            ending: ExchangeEnding::Refused,
            is_whole: false,
        });
    }

    /// Ends the exchange under way, apart from the part of its response that is still to be sent.
    fn finish(&mut self, seat: &Arc<Seat>, shared: &Shared, output: &Outgoing) {
        let open = self.open.take();
        self.unsent.extend(open.and_then(|open| open.finish(seat, shared, output)));
    }

    /// Ends the exchange under way before its own end. If its response is whole, the unsent part
    /// decides how the exchange ends, as in [`Watch::finish`].
    fn break_off(&mut self, seat: &Arc<Seat>, shared: &Shared, output: &Outgoing) {
        // The reader of the body may be another task, which notes nothing here.
        self.is_client_gone |= shared.incoming.has_failed();
        let broken = self.broken();
        self.note(|open| match open.ending {
            ExchangeEnding::Panicked | ExchangeEnding::HandedOver => {}
            _ if open.is_whole => {}
            _ => open.ending = broken,
        });
        self.finish(seat, shared, output);
    }

    fn note(&mut self, note: impl FnOnce(&mut OpenExchange)) {
        if let Some(open) = &mut self.open {
            note(open);
        }
    }

    /// Returns the ending of an exchange whose response is not whole.
    fn broken(&self) -> ExchangeEnding {
        if self.is_client_gone { ExchangeEnding::Reset } else { ExchangeEnding::Cut }
    }

    /// Notes when responses begin to be sent, and reports each exchange whose response has been
    /// sent whole.
    fn report_sent(&mut self, output: &Outgoing) {
        let total = output.total();
        // Most calls have nothing to report, and then do not look at the clock.
        let instant = LazyCell::new(Instant::now);
        let open = self.open.as_mut().filter(|open| open.status.is_some());
        let open = open.map(|open| (&mut open.clock, output.message.begin));
        let unsent = self.unsent.iter_mut();
        let unsent = unsent.map(|unsent| (&mut unsent.clock, unsent.response.begin));
        for (clock, _) in unsent.chain(open).filter(|(_, begin)| total > *begin) {
            clock.first_byte.get_or_insert_with(|| *instant - clock.instant);
        }
        let whole = self.unsent.iter().take_while(|unsent| unsent.end <= total).count();
        for unsent in self.unsent.drain(..whole) {
            unsent.report(&self.observer, total, *instant);
        }
    }

    /// Reports what is left when the connection ends, or leaves.
    fn report_rest(&mut self, output: &Outgoing) {
        let (total, instant, broken) = (output.total(), Instant::now(), self.broken());
        for mut unsent in mem::take(&mut self.unsent) {
            if unsent.end > total && unsent.exchange.ending != ExchangeEnding::Panicked {
                unsent.exchange.ending = broken;
            }
            unsent.report(&self.observer, total, instant);
        }
    }
}

impl Gate {
    /// Lets the observer hear of each exchange from now on.
    pub(crate) fn observed_by(mut self, observer: Option<&Arc<Observer>>) -> Self {
        self.watch = observer.map(|observer| Box::new(Watch::new(observer.clone())));
        self
    }

    /// Begins an exchange, for the observer.
    pub(crate) fn begin_exchange(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.begin();
        }
    }

    /// Notes something of the exchange under way, for the observer.
    pub(crate) fn note(&mut self, note: impl FnOnce(&mut OpenExchange)) {
        if let Some(watch) = &mut self.watch {
            watch.note(note);
        }
    }

    /// Ends the exchange under way. The observer hears of it once the response has been sent.
    pub(crate) fn finish_exchange(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.finish(&self.seat, &self.wire.lock(), &self.output);
            watch.report_sent(&self.output);
        }
    }

    /// Notes what has been sent.
    pub(super) fn note_sent(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.report_sent(&self.output);
        }
    }

    /// Notes that nobody takes the responses any more.
    pub(super) fn note_gone(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.is_client_gone = true;
        }
    }

    /// Reports what is left when the connection ends, or leaves.
    pub(super) fn report_rest(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            watch.break_off(&self.seat, &self.wire.lock(), &self.output);
            watch.report_rest(&self.output);
        }
    }
}

impl OpenExchange {
    /// Notes that the head has arrived.
    pub(crate) fn got_head(&mut self, head: &Head) {
        self.head = Some(head.parts());
    }

    /// Notes that the server has called the handler.
    pub(crate) fn called(&mut self) {
        self.ending = ExchangeEnding::Answered;
    }

    /// Takes what the handler has put into its response for the observer.
    pub(crate) fn answered(&mut self, response: &mut Response) {
        self.extensions = mem::take(response.ext_mut());
    }

    /// Sets how the exchange ends, if nothing goes wrong from here on.
    pub(crate) fn ends_as(&mut self, ending: ExchangeEnding) {
        self.ending = ending;
    }

    /// Notes that a response with this status begins.
    pub(super) fn responds(&mut self, status: Option<StatusCode>) {
        self.status = status;
    }

    /// Notes that the response is whole.
    pub(crate) fn has_responded(&mut self) {
        self.is_whole = true;
    }

    /// Ends the exchange, apart from the part of its response that is still to be sent. Returns
    /// `None` if no byte of a request has arrived.
    fn finish(self, seat: &Arc<Seat>, shared: &Shared, output: &Outgoing) -> Option<Unsent> {
        let incoming = &shared.incoming;
        let (request, received) = match self.head {
            Some(parts) => (parts.text(incoming.message()), incoming.taken()),
            None if incoming.has_request() => {
                (head::text_so_far(incoming.unread()), incoming.unread().len() as u64)
            }
            None => return None,
        };
        let exchange = Exchange {
            seat: seat.clone(),
            request,
            status: self.status,
            received: received + shared.upgraded.received,
            sent: shared.upgraded.sent,
            body_sent: shared.upgraded.sent,
            began: self.clock.began,
            first_byte: None,
            took: Duration::ZERO,
            ending: self.ending,
            extensions: self.extensions,
        };
        let end = output.position();
        let response = match self.status {
            Some(_) => output.message,
            None => Extent { begin: end, head_end: end },
        };
        Some(Unsent { exchange, clock: self.clock, response, end })
    }
}

impl Unsent {
    /// Reports the exchange, when `total` bytes have been sent.
    fn report(self, observer: &Observer, total: u64, now: Instant) {
        let Self { mut exchange, clock, response, end } = self;
        let sent_until = end.min(total);
        exchange.sent += sent_until.saturating_sub(response.begin);
        exchange.body_sent += sent_until.saturating_sub(response.head_end);
        if sent_until <= response.begin {
            exchange.status = None;
        }
        exchange.first_byte = clock.first_byte;
        exchange.took = now - clock.instant;
        observer.tell(&exchange);
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::Bounds;
    use super::super::{Begun, Incoming};
    use super::*;
    use crate::stop::orders::Orders;
    use crate::stream::connection::Connection;
    use crate::stream::transport::Peer;
    use futures_lite::future::{block_on, poll_once};
    use std::sync::mpsc;

    /// Rule O1. Each case: what was read, and what is reported when the connection leaves.
    #[test]
    fn a_part_of_a_head_that_goes_to_the_successor_is_reported() {
        for (read, expected) in [
            (
                "GET /half HTTP/1.1\r\nHo",
                vec![("/half".to_owned(), ExchangeEnding::HandedOver, 22)],
            ),
            ("\r\n", vec![]),
            ("", vec![]),
        ] {
            let (send, reports) = mpsc::channel();
            let observer = Arc::new(Observer::new(move |exchange| {
                let report = (exchange.target().to_owned(), exchange.ending(), exchange.received());
                send.send(report).unwrap();
            }));
            let seat = Seat::new(Peer::Unix, Arc::new(Orders::under(Arc::default())));
            let (_client, connection) = Connection::pair();
            let transport = connection.into_transport(None, None);
            let incoming = Incoming::with(read.as_bytes());
            let bounds = Bounds { head_bytes: 8192, headers: 100 };
            let mut gate =
                Gate::new(transport, incoming, seat, bounds).observed_by(Some(&observer));
            gate.begin_exchange();
            let head = block_on(poll_once(gate.head(0)));
            assert!(head.is_none_or(|head| matches!(head, Ok(Begun::End))), "{read:?}");
            gate.note(|open| open.ends_as(ExchangeEnding::HandedOver));
            assert_eq!(gate.into_movable().unwrap().ahead, read.as_bytes());
            drop(observer);
            assert_eq!(reports.iter().collect::<Vec<_>>(), expected);
        }
    }

    /// Rule O3. Every look at the clock and every allocation for the observer is in a [`Watch`],
    /// and every note goes through it. Without an observer there is no watch, from the first byte
    /// to the end, and the place for it in the gate is one pointer.
    #[test]
    fn a_connection_without_an_observer_has_no_watch() {
        let seat = Seat::new(Peer::Unix, Arc::new(Orders::under(Arc::default())));
        let (_client, connection) = Connection::pair();
        let incoming = Incoming::with(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let bounds = Bounds { head_bytes: 8192, headers: 100 };
        let transport = connection.into_transport(None, None);
        let mut gate = Gate::new(transport, incoming, seat, bounds).observed_by(None);
        let unmeasured = |gate: &mut Gate| {
            gate.note(|_| panic!("there is an exchange to note something of"));
            assert!(gate.watch.is_none());
        };
        gate.begin_exchange();
        unmeasured(&mut gate);
        assert!(matches!(block_on(gate.head(0)), Ok(Begun::Head(_))));
        gate.output.begin_message();
        gate.output.replace(0..0, b"a head");
        gate.output.end_head();
        gate.finish_exchange();
        unmeasured(&mut gate);
        assert!(block_on(gate.flush()).is_ok());
        gate.note_gone();
        gate.report_rest();
        unmeasured(&mut gate);
        assert_eq!(size_of_val(&gate.watch), size_of::<usize>());
    }

    /// A response may wait for room in front of its head. The exchange has then sent nothing,
    /// whatever the exchange before has sent.
    #[test]
    fn a_response_without_a_head_has_sent_nothing() {
        let (send, reports) = mpsc::channel();
        let observer = Arc::new(Observer::new(move |exchange| {
            let sizes = (exchange.sent(), exchange.body_sent());
            send.send((exchange.target().to_owned(), exchange.status().is_some(), sizes)).unwrap();
        }));
        let seat = Seat::new(Peer::Unix, Arc::new(Orders::under(Arc::default())));
        let (_client, connection) = Connection::pair();
        let head = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let incoming = Incoming::with((head("/first") + &head("/second")).as_bytes());
        let bounds = Bounds { head_bytes: 8192, headers: 100 };
        let transport = connection.into_transport(None, None);
        let mut gate = Gate::new(transport, incoming, seat, bounds).observed_by(Some(&observer));
        let begin = |gate: &mut Gate| {
            gate.begin_exchange();
            let Ok(Begun::Head(head)) = block_on(gate.head(0)) else { panic!("no head") };
            gate.note(|open| open.got_head(&head));
            gate.note(|open| open.responds(Some(StatusCode::Ok)));
            gate.output.begin_message();
        };

        begin(&mut gate);
        gate.output.replace(0..0, b"a head");
        gate.output.end_head();
        gate.output.replace(6..6, b" and a body");
        gate.finish_exchange();
        assert!(block_on(gate.flush()).is_ok());
        begin(&mut gate);
        drop((gate, observer));

        let expected =
            [("/first".to_owned(), true, (17, 11)), ("/second".to_owned(), false, (0, 0))];
        assert_eq!(reports.iter().collect::<Vec<_>>(), expected);
    }
}
