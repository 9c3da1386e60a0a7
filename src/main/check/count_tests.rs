//! Tests of the counts, and of the reports that show them.
//!
//! No test here has a server or a client. The files whose functions are tested have no tests of
//! their own, because the tests in `tests/` include those files.

use std::time::{Duration, Instant};

use futures_lite::future;
use smol::block_on;

use super::load::timeline::{Band, Bucket, WIDTH};
use super::load::*;
use super::progress::{Counts, Progress, Restart};

#[test]
fn a_restart_wakes_a_quarter_of_the_crowd() {
    let tally = Tally::new(1, 40);
    let listeners: Vec<_> = (0..40).map(|_| tally.crowd.listen()).collect();
    tally.restart(|| ());
    let woken = listeners.into_iter().filter_map(|listener| block_on(future::poll_once(listener)));
    assert_eq!(woken.count(), 10);
}

/// A request is near a restart if it was under way in one, or began within a second after it.
#[test]
fn requests_near_a_restart_are_told_apart() {
    let tally = Tally::new(1, 0);
    let answer = |begun| tally.answer(Shape::Kept, 0, 1, begun);
    let before = Instant::now();
    answer(before);
    assert_eq!(tally.report().near.answers, 0);
    tally.restart(|| answer(before));
    answer(before);
    assert_eq!(tally.report().near.answers, 2);
    answer(Instant::now() + Duration::from_secs(2));
    let report = tally.report();
    assert_eq!((report.near.answers, report.all.answers, report.answered), (2, 4, 4));
}

#[test]
fn ninety_nine_of_a_hundred_are_within_p99() {
    let tally = Tally::new(1, 0);
    // The longest time is not the last.
    for millis in (1..=100).rev() {
        tally.all.add(Duration::from_millis(millis));
    }
    let Spread { answers, p99, longest } = tally.report().all;
    assert_eq!((answers, longest), (100, Duration::from_millis(100)));
    assert!((99.0..=100.0).contains(&(p99.as_secs_f64() * 1000.0)), "{p99:?}");
}

#[test]
fn targets_are_read_as_they_are_written() {
    for text in ["127.0.0.1:8082", "[::1]:8082", "unix:/run/app.sock"] {
        assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
    }
    for text in ["", "8082", ":8082", "localhost:8082", "unix:"] {
        assert!(text.parse::<Target>().is_err(), "{text}");
    }
}

/// The time of a request that is slow on purpose must not count among the others.
#[test]
fn slow_answers_have_no_time() {
    let tally = Tally::new(1, 0);
    let begun = Instant::now();
    tally.answer(Shape::Slow, 1, 1, begun);
    assert_eq!((tally.report().answered, tally.report().all.answers), (1, 0));
    assert_eq!((tally.take_slowest(), tally.timeline().buckets()[0].slowest), Default::default());
    tally.answer(Shape::Post, 0, 1, begun);
    let slowest = tally.take_slowest();
    assert!(slowest > Duration::ZERO);
    assert_eq!(tally.report().all.longest, slowest);
    assert_eq!(tally.take_slowest(), Duration::ZERO, "since the last call");
}

/// The time line has all events that the report counts.
#[test]
fn the_time_line_agrees_with_the_report() {
    let tally = Tally::new(1, 0);
    tally.answer(Shape::Kept, 0, 1, Instant::now());
    for is_first in [true, false, false, true] {
        tally.refuse(Shape::Fresh, is_first);
    }
    tally.close_as_asked();
    for _ in 0..3 {
        tally.close_as_told(Shape::Kept);
    }
    tally.close_untold(Shape::Slow);
    for kind in [Kind::Crossed, Kind::Reset, Kind::Cut, Kind::Wrong, Kind::Stalled] {
        tally.lose(failure(kind));
    }
    // Two requests are in the same restart, and one is outside.
    tally.restart(|| tally.restart(|| ()));
    let report = tally.report();
    let timeline = tally.timeline();
    let sum = timeline.buckets().iter().copied().fold(Bucket::default(), Bucket::and);
    assert_eq!((report.answered, sum.answered), (1, 1));
    assert_eq!((report.refused, report.attempts), (2, 4));
    assert_eq!((sum.refused, sum.attempts), (2, 4));
    assert_eq!((report.asked, report.told, report.untold), (1, 3, 1));
    assert_eq!((sum.told, sum.untold, sum.closed(), report.closed()), (3, 1, 4, 4));
    let kinds = [report.crossed, report.reset, report.cut, report.wrong, report.stalled];
    assert_eq!((kinds, report.lost(), sum.lost), ([1; 5], 5, 5));
    assert_eq!(timeline.restarts().len(), 2);

    // The line of the moment and the line of a restart have the same numbers.
    let progress = Progress::new(&tally, 7);
    let moment = progress.moment();
    assert!(moment.ends_with(" s: 1 answered, 2 refused, 5 lost, 4 closed"), "{moment}");
    let stretch = progress.begin(3);
    tally.refuse(Shape::Fresh, true);
    tally.close_untold(Shape::Kept);
    tally.close_as_told(Shape::Kept);
    tally.lose(failure(Kind::Cut));
    let restart = progress.end(&stretch, Duration::from_millis(1234));
    assert_eq!((restart.number, restart.of), (3, 7));
    assert_eq!(restart.counts, Counts { refused: 1, lost: 1, closed: 2 });
    let restart = Restart { slowest: Duration::from_micros(12_900), ..restart };
    let line = "restart 3 of 7 took 1.23 s: 1 refused, 1 lost, 2 closed, slowest 12 ms";
    assert_eq!(restart.to_string(), line);
}

/// Buckets become wider instead of more, and keep all counts.
#[test]
fn a_time_line_is_bounded() {
    let mut timeline = Timeline::new();
    for tenth in 0..20_000_u64 {
        let time = WIDTH * u32::try_from(tenth).unwrap();
        let slowest = Duration::from_micros(tenth);
        let bucket = timeline.at(time);
        *bucket = bucket.and(Bucket { answered: 1, slowest, lost: tenth % 2, ..Bucket::default() });
    }
    timeline.add_restart(Band { begun: WIDTH, ended: 2 * WIDTH });
    assert_eq!((timeline.width(), timeline.buckets().len()), (4 * WIDTH, 5000));
    let first = timeline.buckets()[0];
    let slowest = Duration::from_micros(3);
    assert_eq!(first, Bucket { answered: 4, slowest, lost: 2, ..Bucket::default() });
    let (columns, width) = timeline.in_at_most(400);
    assert_eq!((columns.len(), width), (385, 52 * WIDTH));
    assert_eq!(columns.iter().map(|column| column.answered).sum::<u64>(), 20_000);
    // Without buckets, the width is that of a new bucket.
    assert_eq!(Timeline::new().in_at_most(400), (vec![], WIDTH));
}

/// A reader needs the kinds one below the other, and a loss that stands out.
#[test]
fn a_report_reads_well() {
    let (answered, cut) = (12_345, 2);
    let report = Report { answered, cut, failures: vec![failure(Kind::Cut)], ..Report::default() };
    let text = report.to_string();
    let lines: Vec<_> = text.lines().collect();
    let words = "whole and right; p99 0.0ns, the longest took 0.0ns";
    assert_eq!(lines[0], format!("answered     12345  {words}"));
    assert_eq!(lines[8], "cut              2  LOST: an answer began and did not end");
    let words =
        "at 1.500 s, cut: GET, keep-alive, by client 1 (127.0.0.1:40000), after 20.0ms: closed";
    assert_eq!(lines[11..], [words, "… and 1 more"]);
}

fn failure(kind: Kind) -> Failure {
    Failure {
        kind,
        shape: Shape::Kept,
        client: "client 1 (127.0.0.1:40000)".to_owned(),
        at: Duration::from_millis(1500),
        elapsed: Duration::from_millis(20),
        what: "closed".to_owned(),
    }
}
