//! Hand-overs in which the test plays the successor or the predecessor of the real binary, and
//! sends messages that no process of this version would send.
//!
//! So the test also sees the content of the batches and the answers. `keeper_fakes.rs` does this
//! for the parent channel.

#![cfg(target_os = "linux")]

mod common;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::fakes::{FakeChild, FakeKeeper};
use common::handover::{self, Handover, SocketKind, assert_live, over_tcp_and_unix};
use common::messages::{BATCH, Channel, answer_as_fake, batch, borrowed, connection, taken};
use common::{End, PATIENCE, wait_until};
use rustix::process::Signal;

// The test is the successor.

/// H2 and H3: an answer that makes no sense ends the hand-over. The successor may have the batch,
/// so the predecessor does not read it.
#[test]
fn a_batch_with_a_senseless_answer_is_the_successors() {
    let senseless: [&[u8]; 5] = [&taken(2, 1), &taken(1, 2), b"nonsense", b"T", b"P"];
    over_tcp_and_unix(|over| {
        for answer in senseless {
            let mut server = Handover::held(over);
            let predecessor = server.serving();
            let mut client = server.idle();
            let mut busy = server.in_flight("/wait/answer");
            let (_successor, passage) = successor_of(&mut server);
            let mut batch = passage.batch();
            assert_eq!((batch.number, batch.sockets.len()), (1, 1));
            passage.send(answer, &[]);
            server.line_of(predecessor, ": the successor's answer makes no sense");
            // When the busy connection has ended, the predecessor has dealt with the others.
            server.release("answer");
            assert_eq!(busy.response().text(), predecessor.to_string());
            assert_eq!(busy.end(), End::Eof);
            client.post("/echo", "hello");
            answer_as_fake(batch.sockets.remove(0));
            assert_eq!(client.response().text(), "fake");
            server.assert_handed_over(predecessor, 0);
        }
    });
}

/// H3: a second answer to a batch does not count for the next batch, and ends the hand-over.
#[test]
fn a_second_answer_to_a_batch_ends_the_hand_over() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let predecessor = server.serving();
        let _idle = server.idle();
        let mut client = server.in_flight("/wait/answer");
        let (_successor, passage) = successor_of(&mut server);
        assert_eq!(passage.batch().sockets.len(), 1);
        passage.send(&taken(1, 1), &[]);
        passage.send(&taken(1, 1), &[]);
        server.line_of(predecessor, ": the successor's answer makes no sense");
        server.release("answer");
        assert!(client.response().says_close());
        server.assert_handed_over(predecessor, 1);
    });
}

/// H2 and H6: if the passage closes without an answer, the batch comes back, even if the
/// successor's process lives on. Its connections have a linger of their own, and then end as in any
/// stop.
#[test]
fn a_passage_that_closes_without_an_answer_gives_the_batch_back() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &["--linger", "20s"]);
        let predecessor = server.serving();
        let mut clients: Vec<_> = (0..3).map(|_| server.idle()).collect();
        let (_successor, passage) = successor_of(&mut server);
        drop(passage.batch());
        drop(passage);
        server.line_of(predecessor, ": the successor has closed the passage");
        for client in &mut clients {
            let response = client.post("/echo", "hello").response();
            assert_eq!((&*response.text(), response.says_close()), ("hello", true));
            assert_eq!(client.end(), End::Eof);
        }
        server.assert_handed_over(predecessor, 0);
    });
}

/// H3 and H5: idle connections are asked a batch at a time, so the others are served until it is
/// their turn. The batches have numbers in order, and each connection is in one of them.
#[test]
fn idle_connections_are_asked_a_batch_at_a_time() {
    over_tcp_and_unix(|over| {
        // On a busy machine, the predecessor may ask the next batch, because no connection has come
        // for a while.
        let is_met = (0..5).any(|_| serves_all_but_a_batch(over));
        assert!(is_met, "those that were not asked are not served");
    });
}

/// Hands 601 connections over, and checks the batches. Returns `true` if the predecessor serves all
/// connections but one batch while the first batch has no answer.
fn serves_all_but_a_batch(over: SocketKind) -> bool {
    const IDLE: usize = 600;
    // The linger is so long that the predecessor does not serve the waiting connections meanwhile.
    let mut server = Handover::server(over, &["--linger", "100s", "--grace", "200s"]);
    let predecessor = server.serving();
    let mut clients: Vec<_> = (0..IDLE).map(|_| server.idle()).collect();
    let mut busy = server.connect();
    busy.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe").fill().unwrap();
    let (_successor, passage) = successor_of(&mut server);
    let mut batch = passage.batch();
    // The request of the busy client ends at once, and then its connection is idle like the others.
    assert!(!busy.send("llo").response().says_close());
    for client in &mut clients {
        client.get("/livez");
    }
    let is_met = || clients.iter().filter(|client| client.has_something()).count() >= IDLE - BATCH;
    let deadline = Instant::now() + Duration::from_secs(2);
    while !is_met() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let is_met = is_met();
    let mut count = 0;
    for number in 1.. {
        let length = batch.sockets.len();
        assert!(length <= BATCH, "{length}");
        assert_eq!((batch.number, batch.listeners), (number, vec![LISTENER; length]));
        count += length;
        passage.send(&taken(number, length), &[]);
        if count == IDLE + 1 {
            break;
        }
        batch = passage.batch();
    }
    server.assert_handed_over(predecessor, IDLE as u64 + 1);
    // No further batch comes.
    assert!(passage.receive().is_none());
    is_met
}

// The test is the predecessor.

/// If a predecessor's message makes no sense, the successor closes the passage, and no other
/// connection is affected.
#[test]
fn a_predecessor_that_makes_no_sense_costs_nobody_else() {
    over_tcp_and_unix(|over| {
        for senseless in [b"nonsense".to_vec(), taken(1, 1)] {
            let mut predecessor = FakePredecessor::of(over);
            let [(first, mut kept), (second, mut lost)] = [connection(over), connection(over)];
            predecessor.send(1, &[LISTENER], vec![first]);
            assert_eq!(predecessor.passage.message(), taken(1, 1));
            predecessor.send_batch(&senseless, vec![second]);
            assert!(predecessor.passage.receive().is_none());
            assert_eq!(lost.end(), End::Eof);
            let server = &mut predecessor.keeper;
            server.child.wait_for("the predecessor hands over no more connections: ");
            assert_live(&mut kept);
            assert_live(&mut server.connect());
            server.end();
        }
    });
}

/// H7: of an odd batch, the successor takes the connections that it can take, in order, and answers
/// with their number.
#[test]
fn a_successor_takes_the_beginning_of_an_odd_batch() {
    over_tcp_and_unix(|over| {
        let mut predecessor = FakePredecessor::of(over);
        let known = LISTENER;
        // The server has no listener with this number.
        let unknown = LISTENER + 1;
        let (mut number, mut kept) = (0, Vec::new());
        let cases: [(&[u32], usize, usize, bool); 6] = [
            // Each case has the listeners, the number of sockets, the number that is taken, and
            // whether the successor would take more.
            (&[known; 2], 2, 2, true),
            // The rest of the sockets is missing, as if the successor had no descriptors for them.
            (&[known; 3], 1, 1, false),
            (&[known; 2], 0, 0, false),
            (&[known; 2], 3, 2, true),
            (&[known, unknown, known], 3, 1, true),
            (&[], 0, 0, true),
        ];
        for (listeners, sockets, count, takes_more) in cases {
            number += 1;
            let (sockets, mut clients): (Vec<_>, Vec<_>) =
                (0..sockets).map(|_| connection(over)).unzip();
            predecessor.send(number, listeners, sockets);
            let mut answer = taken(number, count);
            *answer.last_mut().unwrap() = u8::from(takes_more);
            assert_eq!(predecessor.passage.message(), answer, "{count} of {listeners:?}");
            // The successor has no copies of the connections that it did not take.
            assert!(clients[count..].iter_mut().all(|client| client.end() == End::Eof));
            clients.truncate(count);
            clients.iter_mut().for_each(assert_live);
            kept.extend(clients);
        }
        kept.iter_mut().for_each(assert_live);
        predecessor.keeper.end();
    });
}

/// H8: the idle age and the bytes that were read ahead come along. S7: a request counts more than
/// an idle age over the limit.
#[test]
fn a_successor_heeds_the_idle_age_and_the_bytes_read_ahead() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    over_tcp_and_unix(|over| {
        let mut predecessor = FakePredecessor::of(over);
        let (sockets, mut clients): (Vec<_>, Vec<_>) = (0..4).map(|_| connection(over)).unzip();
        let get = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
        clients[3].send(get);
        let facts = [(HOUR, ""), (Duration::ZERO, ""), (HOUR, &get[..20]), (HOUR, "")]
            .map(|(idle, ahead)| (LISTENER, idle, ahead));
        predecessor.send_batch(&batch(1, &facts), sockets);
        assert_eq!(predecessor.passage.message(), taken(1, 4));
        clients[2].send(&get[20..]);
        for client in &mut clients[2..] {
            assert_eq!(client.response().text(), "live\n");
        }
        assert_eq!(clients[0].end(), End::Eof);
        assert_live(&mut clients[1]);
        predecessor.keeper.end();
    });
}

/// A predecessor that sends batch after batch without waiting for answers holds up neither clients
/// nor a stop.
#[test]
fn an_endless_stream_of_batches_holds_up_nobody() {
    /// The number of batches that wait for the successor. The kernel has room for more.
    const AHEAD: u32 = 100;
    over_tcp_and_unix(|over| {
        let mut predecessor = FakePredecessor::of(over);
        let FakePredecessor { keeper: server, passage } = &mut predecessor;
        let answered = AtomicU32::new(0);
        thread::scope(|scope| {
            let stream = scope.spawn(|| {
                // If the test fails, the deadline ends this loop.
                let deadline = Instant::now() + 2 * PATIENCE;
                for number in 1.. {
                    if Instant::now() > deadline
                        || passage.try_send(&batch(number, &[]), &[]).is_err()
                    {
                        return number;
                    }
                    if number > AHEAD {
                        let Some((answer, _)) = passage.receive() else { return number };
                        assert_eq!(answer, taken(number - AHEAD, 0));
                        answered.store(number - AHEAD, Ordering::Relaxed);
                    }
                }
                0
            });
            wait_until("answers", || answered.load(Ordering::Relaxed) > AHEAD);
            for _ in 0..20 {
                assert_live(&mut server.connect());
            }
            assert!(!stream.is_finished());
            server.end();
            assert!(stream.join().unwrap() > answered.load(Ordering::Relaxed));
        });
    });
}

/// H1, S1 and S7: the successor counts a connection that it has taken, so a stop right after the
/// answer waits for its request.
#[test]
fn a_stop_right_after_the_answer_finishes_what_was_taken() {
    const CLIENTS: usize = 50;
    over_tcp_and_unix(|over| {
        let mut predecessor = FakePredecessor::of(over);
        let (sockets, mut clients): (Vec<_>, Vec<_>) =
            (0..CLIENTS).map(|_| connection(over)).unzip();
        for client in &mut clients {
            client.post("/echo", "hello");
        }
        predecessor.send(1, &[LISTENER; CLIENTS], sockets);
        assert_eq!(predecessor.passage.message(), taken(1, CLIENTS));
        let server = &mut predecessor.keeper;
        server.child.signal(Signal::TERM);
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello");
            assert_eq!(client.end(), End::Eof);
        }
        assert_eq!(server.child.exit_code(), 0, "{}", server.child);
    });
}

// The parts of the tests above.

/// The number of a server's only listener.
const LISTENER: u32 = 0;

/// Restarts a server with one listener. The test is the successor that takes all of its
/// connections. Returns the passage, too.
fn successor_of(server: &mut Handover) -> (FakeChild, Channel) {
    let successor = FakeChild::successor_of(server);
    assert_eq!(successor.offered[0].0, LISTENER);
    successor.say_ready(&[LISTENER]);
    let passage = successor.channel.pass();
    server.wait_for_successor();
    (successor, passage)
}

/// The predecessor of the real binary with one listener, played by the test.
struct FakePredecessor {
    keeper: FakeKeeper,
    passage: Channel,
}

impl FakePredecessor {
    fn of(over: SocketKind) -> Self {
        let keeper = FakeKeeper::start(over);
        let (passage, other) = Channel::pair();
        keeper.pass(&other);
        drop(other);
        Self { keeper, passage }
    }

    /// Sends connections that came to these listeners and have just fallen idle. The test keeps no
    /// copies.
    fn send(&self, number: u32, listeners: &[u32], sockets: Vec<OwnedFd>) {
        let connections: Vec<_> =
            listeners.iter().map(|listener| (*listener, Duration::ZERO, "")).collect();
        self.send_batch(&batch(number, &connections), sockets);
    }

    fn send_batch(&self, batch: &[u8], sockets: Vec<OwnedFd>) {
        self.passage.send(batch, &borrowed(&sockets));
        drop(sockets);
    }
}

/// Serves if another test has started this process for that.
#[test]
fn the_program_of_these_tests() {
    handover::serve();
}
