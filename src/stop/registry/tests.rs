//! Tests of [`Registry`]: which connections a sweep ends, and which of them the outcome names.
//!
//! The time is an argument of each call, so no test waits. No test here has a socket.

use super::*;
use crate::stop::activity::Wait;
use crate::stop::seat::Describe;
use crate::stream::socket::ClientLeft;
use crate::stream::transport::Peer;

struct Line;

impl Describe for Line {
    fn describe(&self) -> Option<(String, String)> {
        Some(("GET".into(), "/slow".into()))
    }
}

/// Returns the orders of a new server.
fn orders() -> Arc<Orders> {
    Arc::new(Orders::under(Arc::default()))
}

/// Returns a sweep before the stop.
fn running(limits: &Limits, now: Instant) -> Sweep<'_> {
    Sweep { limits, drains: false, streams: None, now }
}

fn registry_with(seat: &Arc<Seat>) -> Registry {
    let mut registry = Registry::default();
    registry.holders.insert(Holder::connection(seat.clone()));
    registry
}

#[test]
fn a_connection_expires_only_when_it_has_not_moved() {
    let limits = Limits::default().head_timeout(Duration::from_secs(3));
    let head: Arc<dyn Describe> = Arc::new(Line);
    let seat = Seat::new(Peer::Unix, orders());
    let mut registry = registry_with(&seat);
    let start = Instant::now();
    let after = |secs| start + Duration::from_secs(secs);
    seat.begin(Some(Arc::downgrade(&head)));
    registry.sweep(&seat.orders, &running(&limits, after(0)));
    registry.sweep(&seat.orders, &running(&limits, after(2)));
    assert!(!seat.is_expired());
    seat.activity.begin(Doing::Head);
    registry.sweep(&seat.orders, &running(&limits, after(4)));
    registry.sweep(&seat.orders, &running(&limits, after(6)));
    assert!(!seat.is_expired());
    registry.sweep(&seat.orders, &running(&limits, after(7)));
    assert!(seat.is_expired());
    // A move in the last moment counts.
    seat.activity.begin(Doing::Head);
    assert!(!seat.is_expired());
}

#[test]
fn a_handler_may_take_its_time() {
    let seat = Seat::new(Peer::Unix, orders());
    let mut registry = registry_with(&seat);
    seat.activity.begin(Doing::Handler);
    let start = Instant::now();
    for days in 0..3 {
        registry.sweep(
            &seat.orders,
            &running(&Limits::default(), start + Duration::from_secs(days * 86_400)),
        );
    }
    assert!(!seat.is_expired());
}

#[test]
fn a_sweep_leaves_other_servers_alone() {
    let seat = Seat::new(Peer::Unix, orders());
    let mut registry = registry_with(&seat);
    registry.sweep(
        &orders(),
        &running(&Limits::default(), Instant::now() + Duration::from_secs(86_400)),
    );
    assert!(!seat.is_expired());
    assert_eq!(registry.seats_of(&seat.orders).count(), 1);
    assert_eq!(registry.seats_of(&orders()).count(), 0);
}

/// Rule S27. Each case has the connection's stage, the seconds in which it moves, how far its
/// client has left, and the second in which the server closes it. The grace begins in second
/// 10, and a stream may be silent for 5 s.
#[test]
fn a_stream_is_closed_when_it_was_silent_in_the_drain() {
    use Doing::{Handler, Response, Upgraded};

    type Case<'a> = (&'a str, Doing, &'a dyn Fn(u64) -> bool, Option<ClientLeft>, Option<u64>);
    let (never, always) = (&|_| false, &|_| true);
    let half_closed = Some(ClientLeft::HalfClosed);
    let cases: [Case<'_>; 8] = [
        ("silent since long before", Upgraded, never, None, Some(15)),
        ("a response, too", Response, never, None, Some(15)),
        ("moves now and then", Response, &|second| second % 4 == 0, None, None),
        ("moves once", Upgraded, &|second| second == 12, None, Some(17)),
        ("moves, but its client sends nothing more", Upgraded, always, half_closed, Some(15)),
        ("a client that has only half-closed gets its answer", Response, always, half_closed, None),
        ("and is not waited for if nothing comes", Response, never, half_closed, Some(15)),
        ("a handler", Handler, never, None, None),
    ];
    for (name, doing, moves, left, expected) in cases {
        let seat = Seat::new(Peer::Unix, orders());
        let mut registry = registry_with(&seat);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        seat.activity.begin(doing);
        left.into_iter().for_each(|left| seat.client_left(left));
        let closed = (0..40).find(|second| {
            if moves(*second) {
                seat.activity.progress();
            }
            let streams = (*second >= 10).then(|| (after(10), Duration::from_secs(5)));
            let limits = &Limits::default();
            let sweep = Sweep { limits, drains: *second >= 5, streams, now: after(*second) };
            registry.sweep(&seat.orders, &sweep);
            seat.is_expired()
        });
        assert_eq!(closed, expected, "{name}");
    }
}

/// Rule S13: the line has peer, stage, method, path and age.
#[test]
fn a_request_is_named_and_an_idle_connection_is_not() {
    let head: Arc<dyn Describe> = Arc::new(Line);
    let seat = Seat::new(Peer::from(([127, 0, 0, 1], 9)), orders());
    let registry = registry_with(&seat);
    // The connection's task has not looked yet, so the client may have sent a request.
    let line = registry.may_be_cut(Instant::now())[0].work.to_string();
    assert!(line.starts_with("127.0.0.1:9 - - (not looked at yet, "), "{line}");
    seat.activity.begin(Doing::Idle);
    assert!(!registry.may_be_cut(Instant::now())[0].is_cut());
    seat.begin(Some(Arc::downgrade(&head)));
    seat.activity.begin(Doing::Handler);
    let cuts = registry.may_be_cut(Instant::now() + Duration::from_secs(2));
    let line = cuts[0].work.to_string();
    assert!(line.starts_with("127.0.0.1:9 GET /slow (in the handler, 2."), "{line}");
    seat.fall_idle();
    assert!(!registry.may_be_cut(Instant::now())[0].is_cut());
}

/// Each case has the bytes that a client sends in each second, whether the server waits for the
/// body in that second, and the second in which the client is too slow.
#[test]
fn a_body_has_to_come_at_a_rate() {
    type Case<'a> = (&'a str, &'a dyn Fn(u64) -> u64, &'a dyn Fn(u64) -> bool, Option<u64>);
    let cases: [Case<'_>; 8] = [
        ("nothing", &|_| 0, &|_| true, Some(6)),
        ("a byte now and then", &|n| u64::from(n % 29 == 0), &|_| true, Some(6)),
        ("just enough", &|_| 240, &|_| true, None),
        ("a little less", &|_| 230, &|_| true, Some(121)),
        ("enough, in bursts", &|n| if n % 5 == 4 { 1200 } else { 0 }, &|_| true, None),
        ("much, and then nothing", &|n| if n < 3 { 1 << 30 } else { 0 }, &|_| true, Some(34)),
        ("a server that does not wait", &|_| 0, &|_| false, None),
        ("a server that waits half of the time", &|_| 0, &|n| n % 4 < 3, Some(10)),
    ];
    for (what, sent, waits, expected) in cases {
        let seat = Seat::new(Peer::Unix, orders());
        let Holder::Connection(mut watched) = Holder::connection(seat.clone()) else {
            unreachable!()
        };
        let (limits, start) = (Limits::default(), Instant::now());
        let slow = (0..1000).find(|&second| {
            let now = start + Duration::from_secs(second);
            let stage = if waits(second) { Stage::Body } else { Stage::Handler };
            let is_slow = watched.is_slow(stage, &limits, now);
            seat.receive(sent(second));
            is_slow
        });
        assert_eq!(slow, expected, "{what}");
    }
}

/// The bytes before the first look count, and each request has a credit of its own.
#[test]
fn the_pace_is_that_of_one_body() {
    let seat = Seat::new(Peer::Unix, orders());
    let Holder::Connection(mut watched) = Holder::connection(seat.clone()) else { unreachable!() };
    let (limits, start) = (Limits::default(), Instant::now());
    let mut slow_after = |from: u64, sent: u64| {
        seat.call();
        seat.receive(sent);
        (0..100).find(|second| {
            let now = start + Duration::from_secs(from + second);
            watched.is_slow(Stage::Body, &limits, now)
        })
    };
    assert_eq!(slow_after(0, 1_000_000), Some(31));
    assert_eq!(slow_after(100, 0), Some(6));
    assert_eq!(slow_after(200, 240), Some(7));
}

#[test]
fn no_rate_is_no_rate() {
    let limits = Limits::default().body_rate(0);
    let seat = Seat::new(Peer::Unix, orders());
    let mut registry = registry_with(&seat);
    seat.activity.wait(Wait::Body, false);
    let start = Instant::now();
    for second in 0..25 {
        registry.sweep(&seat.orders, &running(&limits, start + Duration::from_secs(second)));
        assert!(!seat.is_expired());
    }
}

#[test]
fn those_who_have_been_idle_longest_give_way() {
    let mut registry = Registry::default();
    let head: Arc<dyn Describe> = Arc::new(Line);
    let own = orders();
    let seats: Vec<_> = (0..40).map(|_| Seat::new(Peer::Unix, own.clone())).collect();
    for seat in &seats {
        registry.holders.insert(Holder::connection(seat.clone()));
        seat.fall_idle();
    }
    let now = Instant::now();
    assert!(registry.expire_idle_longest(&own, 32, Duration::from_secs(1), now).is_empty());
    assert!(registry.expire_idle_longest(&orders(), 32, Duration::ZERO, now).is_empty());
    // One connection in eight gives way, but not one that is at work or has just been at work.
    seats[0].begin(Some(Arc::downgrade(&head)));
    seats[1].fall_idle();
    assert_eq!(registry.expire_idle_longest(&own, 1, Duration::ZERO, now).len(), 1);
    let chosen = registry.expire_idle_longest(&own, 32, Duration::ZERO, now);
    assert_eq!(chosen.len(), 4);
    for (n, seat) in seats.iter().enumerate() {
        let is_chosen = chosen.iter().any(|one| Arc::ptr_eq(one, seat));
        assert_eq!(is_chosen, (2..6).contains(&n), "{n}");
    }
    assert!(chosen[0].is_expired());
    assert!(!seats[0].is_expired(), "it is at work");
}
