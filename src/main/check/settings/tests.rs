//! Tests of the settings of `check`: defaults, requests, faults, and the command line that a report
//! repeats.
//!
//! No test here sends a request.

use super::super::load::Shape;
use super::*;
use clap::Parser;

#[test]
fn only_what_was_asked_for_is_a_fault() {
    let lost = Report { reset: 1, cut: 1, ..Report::default() };
    let refused = Report { refused: 2, ..Report::default() };
    let closed = Report { asked: 9, told: 1, untold: 3, ..Report::default() };
    for (flags, faults) in [
        (&[][..], ["2 lost", "", ""]),
        (&["--none-refused"], ["2 lost", "2 refused", ""]),
        (&["--seamless"], ["2 lost", "2 refused", "4 connections closed by the server"]),
    ] {
        let settings = settings(flags);
        let found = [&lost, &refused, &closed].map(|report| settings.faults(report).join(", "));
        assert_eq!(found, faults, "{flags:?}");
    }
}

/// A load that an operator starts by mistake must not be a burden.
#[test]
fn defaults_are_the_agreed_ones() {
    let settings = settings(&[]);
    assert_eq!((settings.clients, settings.idle, settings.restarts), (16, 0, 10));
    assert_eq!(settings.gap, Duration::from_millis(10));
    assert_eq!((settings.pause, settings.every), (Duration::from_secs(1), Duration::ZERO));
    assert_eq!(settings.duration, Duration::from_secs(5));
    assert_eq!(settings.patience, Duration::from_secs(30));
    assert!(!settings.blind && !settings.seamless && !settings.none_refused);
    let requests = settings.requests();
    assert_eq!((&*requests.get, requests.body, requests.post), ("/", None, None));
}

#[test]
fn requests_are_those_that_were_asked_for() {
    let first_line = |flags: &[&str], shape| {
        let (bytes, body) = settings(flags).requests().request(shape, 2);
        (String::from_utf8_lossy(&bytes).split("\r\n").next().unwrap().to_owned(), body)
    };
    let get = ["--path", "/a?b", "--body", "x"];
    let right = ("GET /a?b HTTP/1.1".to_owned(), Some(b"x".to_vec()));
    assert_eq!(first_line(&get, Shape::Kept), right);
    let slow = ["--slow", "/s", "--body", "x"];
    assert_eq!(first_line(&slow, Shape::Slow), ("GET /s HTTP/1.1".to_owned(), None));
    assert_eq!(first_line(&["--post", "/p"], Shape::Post).0, "POST /p HTTP/1.1");
    assert_eq!(first_line(&["--post", "/p"], Shape::Post).1, None);
    assert!(first_line(&["--post", "/p", "--echo"], Shape::Post).1.is_some());
    assert_eq!(first_line(&["--work", "0s"], Shape::Post).0, "POST /echo?for=0ms HTTP/1.1");

    let whole = |flags: &[&str]| {
        let (bytes, _) = settings(flags).requests().request(Shape::Fresh, 2);
        String::from_utf8(bytes).unwrap()
    };
    let close = "Connection: close\r\n\r\n";
    let usual = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:1\r\n{close}");
    assert_eq!(whole(&[]), usual);
    let own = format!("GET / HTTP/1.1\r\nhost: a.test\r\nA: b: c\r\n{close}");
    assert_eq!(whole(&["--header", "host: a.test", "--header", "A:b: c"]), own);
}

#[test]
fn a_command_line_can_be_typed_again() {
    let words = ["check", "[::1]:8082", "--", "sh", "-c", "echo 'a' > \"$B\"", ""];
    assert_eq!(
        shell_words(&words.map(OsString::from)),
        r#"smol-graceful check '[::1]:8082' -- sh -c 'echo '\''a'\'' > "$B"' ''"#
    );
}

/// Returns the settings of `smol-graceful check` with these arguments.
fn settings(args: &[&str]) -> Settings {
    Settings::parse_from(["check", "127.0.0.1:1"].iter().chain(args))
}
